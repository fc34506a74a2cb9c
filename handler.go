package simplequeue

import (
	"context"
	"fmt"
	"sort"
)

// Handler runs the jobs of a queue.
type Handler interface {
	// Queue names the queue the handler serves: a name, a prefix followed by
	// '*', or "*" for every queue. Where several handlers match, the exact name
	// wins, then the longest prefix.
	Queue() string
	// Process runs one attempt of a job. nil completes it; an error is a failed
	// attempt, or what the constructors [RetryAfter], [RescheduleAfter],
	// [Cancel], [Critical], [Unprocessable] and [Complete] say.
	//
	// ctx ends when the job times out, is cancelled, loses its lease, or when
	// Run stops; [context.Cause] tells which. A handler should return soon
	// after: its permits are held until it does.
	//
	// Process may run more than once for a job, so what it does outside the
	// database should bear repeating.
	Process(ctx context.Context, job *Job) error
}

// HandlerFunc makes a Handler of a function.
func HandlerFunc(queue string, process func(ctx context.Context, job *Job) error) Handler {
	return &handlerFunc{queue: queue, process: process}
}

type handlerFunc struct {
	queue   string
	process func(ctx context.Context, job *Job) error
}

func (h *handlerFunc) Queue() string                               { return h.queue }
func (h *handlerFunc) Process(ctx context.Context, job *Job) error { return h.process(ctx, job) }

// Typed makes a Handler of a function that takes the payload decoded into T.
// A job whose payload does not decode ends as unprocessable and is not retried.
func Typed[T any](queue string, process func(ctx context.Context, job *Job, payload T) error) Handler {
	return HandlerFunc(queue, func(ctx context.Context, job *Job) error {
		var payload T
		if err := job.Decode(&payload); err != nil {
			return err
		}
		return process(ctx, job, payload)
	})
}

// Permitter is implemented by a Handler that limits its jobs by a permit of its
// own: memory, a licence, a connection to somewhere.
type Permitter interface {
	// Acquire waits until the job may run, and returns a function that gives
	// the permit back; it is called once, when Process has returned. ctx ends
	// after Options.PermitWait: the job is then given back without an attempt.
	//
	// An error says that the job is not to run now. [RescheduleAfter] and
	// [RescheduleAt] put it off and count neither as attempt nor as reschedule;
	// [Cancel], [Complete], [Unprocessable] and [Critical] end it; any other
	// error is a failed attempt, unless ctx has ended.
	Acquire(ctx context.Context, job *Job) (release func(), err error)
}

// Multi is implemented by a Handler that serves several queues; its Queue
// method is then not asked.
type Multi interface {
	Queues() []string
}

// ServeQueues returns h serving the given queues or prefixes instead of its own.
func ServeQueues(h Handler, queues ...string) Handler {
	return &multi{Handler: h, queues: queues}
}

type multi struct {
	Handler
	queues []string
}

func (m *multi) Queues() []string { return m.queues }
func (m *multi) Unwrap() Handler  { return m.Handler }

// Middleware wraps a handler, as in net/http. Use [Wrap] to make the wrapped
// handler: it keeps what the inner one implements beside Handler.
type Middleware = func(Handler) Handler

// Wrap returns h with another Process. A handler that wraps another by itself
// should have a method Unwrap() Handler, through which its [Permitter],
// [Multi] and [Mux] are found.
func Wrap(h Handler, process func(ctx context.Context, job *Job) error) Handler {
	return &wrapped{Handler: h, process: process}
}

type wrapped struct {
	Handler
	process func(ctx context.Context, job *Job) error
}

func (w *wrapped) Process(ctx context.Context, job *Job) error { return w.process(ctx, job) }
func (w *wrapped) Unwrap() Handler                             { return w.Handler }

// Mux routes the jobs of one queue by kind. A job whose kind it does not know
// waits, without using up an attempt, for a program that does.
type Mux struct {
	queue string
	kinds map[string]Handler
}

// NewMux returns a Mux for a queue, with no kinds.
func NewMux(queue string) *Mux { return &Mux{queue: queue, kinds: map[string]Handler{}} }

// Handle lets h run the jobs of a kind and returns the Mux. h's own queue is
// not asked; its [Permitter] is. A kind given twice is a mistake in the program
// and panics, as in net/http.
func (m *Mux) Handle(kind string, h Handler) *Mux {
	if _, dup := m.kinds[kind]; dup {
		panic(fmt.Sprintf("simplequeue: kind %q handled twice on queue %q", kind, m.queue))
	}
	m.kinds[kind] = h
	return m
}

// HandleFunc is Handle for a function.
func (m *Mux) HandleFunc(kind string, process func(ctx context.Context, job *Job) error) *Mux {
	return m.Handle(kind, HandlerFunc(m.queue, process))
}

// Queue returns the queue given to NewMux.
func (m *Mux) Queue() string { return m.queue }

// Process runs the job with the handler of its kind.
func (m *Mux) Process(ctx context.Context, job *Job) error {
	h, ok := m.kinds[job.Kind]
	if !ok {
		return &outcome{action: actPark, err: unknownKind(job.Kind)}
	}
	return h.Process(ctx, job)
}

func unknownKind(kind string) error { return fmt.Errorf("no handler for kind %q", kind) }

// Acquire asks the [Permitter] of the kind's handler, if it is one.
func (m *Mux) Acquire(ctx context.Context, job *Job) (func(), error) {
	if p, ok := find[Permitter](m.kinds[job.Kind]); ok {
		return p.Acquire(ctx, job)
	}
	return func() {}, nil
}

func (m *Mux) knownKinds() []string {
	kinds := make([]string, 0, len(m.kinds))
	for k := range m.kinds {
		kinds = append(kinds, k)
	}
	sort.Strings(kinds)
	return kinds
}

// find looks for T on h and on what h wraps.
func find[T any](h Handler) (T, bool) {
	for h != nil {
		if t, ok := h.(T); ok {
			return t, true
		}
		u, ok := h.(interface{ Unwrap() Handler })
		if !ok {
			break
		}
		h = u.Unwrap()
	}
	var none T
	return none, false
}
