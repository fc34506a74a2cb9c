package simplequeue

import (
	"bytes"
	"context"
	"maps"
	"slices"
	"time"

	"github.com/simplequeue/simplequeue/backoff"
)

// Template is the definition of one sort of job, whose payload is a T: what its
// jobs have in common, from which they are made, and by which they are handled.
// It is usually a package variable:
//
//	var Resize = simplequeue.Template[ResizeArgs]{
//		Defaults: simplequeue.NewJob{Queue: "images", Kind: "resize", MaxAttempts: 5},
//	}
//
// A template is safe for concurrent use as long as its fields do not change.
type Template[T any] struct {
	// Defaults are what each job begins with. ID and Payload are not used.
	Defaults NewJob
	// Backoff is the delay before the next attempt of the template's jobs, where
	// they run in its Handler. nil means the queue's.
	Backoff backoff.Policy
}

// New returns a job of the template, to insert alone, in a list or in a
// transaction. The options change what the defaults say, whatever value they
// set, zero values included, and so does changing the job that is returned: it
// shares nothing with the template.
func (t *Template[T]) New(payload T, opts ...func(*NewJob)) NewJob {
	job := t.Defaults
	job.Raw = bytes.Clone(job.Raw)
	job.Metadata, job.TraceContext = maps.Clone(job.Metadata), maps.Clone(job.TraceContext)
	job.Unique.Fields = slices.Clone(job.Unique.Fields)
	job.Payload = payload
	job.ID = [16]byte{}
	for _, opt := range opts {
		opt(&job)
	}
	// A time given at insert takes the place of the template's way to say it.
	if job.Delay != 0 && !job.RunAt.IsZero() {
		if job.Delay == t.Defaults.Delay {
			job.Delay = 0
		} else if job.RunAt.Equal(t.Defaults.RunAt) {
			job.RunAt = time.Time{}
		}
	}
	return job
}

// Insert stores a job of the template, as [SimpleQueue.Insert] does.
func (t *Template[T]) Insert(ctx context.Context, q *SimpleQueue, payload T, opts ...func(*NewJob)) (Inserted, error) {
	return q.Insert(ctx, t.New(payload, opts...))
}

// Handler makes a Handler of the template's jobs. One of a template with a kind
// leaves the queue's other kinds alone: they wait for a handler that knows them.
// [Options].Handlers takes the handlers of several kinds of one queue side by
// side; [Mux.Handle] takes them too.
//
// A job whose payload does not decode ends as unprocessable and is not retried.
func (t *Template[T]) Handler(process func(ctx context.Context, job *Job, payload T) error) Handler {
	return t.handler(Typed(t.Defaults.Queue, process))
}

// handler gives h what the template says about running its jobs.
func (t *Template[T]) handler(h Handler) Handler {
	if t.Backoff != nil {
		h = &backingOff{Handler: h, policy: t.Backoff}
	}
	if t.Defaults.Kind == "" {
		return h
	}
	return NewMux(t.Defaults.Queue).Handle(t.Defaults.Kind, h)
}

// backingOff is a handler whose jobs have a backoff of their own.
type backingOff struct {
	Handler
	policy backoff.Policy
}

func (b *backingOff) Unwrap() Handler { return b.Handler }

// backoffOf is the policy of the handler that runs a kind, nil for the queue's.
func backoffOf(h Handler, kind string) backoff.Policy {
	for h != nil {
		if b, ok := find[*backingOff](h); ok {
			return b.policy
		}
		m, ok := find[*Mux](h)
		if !ok {
			break
		}
		h = m.kinds[kind]
	}
	return nil
}
