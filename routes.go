package simplequeue

import (
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/simplequeue/simplequeue/backoff"
)

// routes finds the handler of a queue: by its exact name, else by the longest
// prefix. What is found is kept, since permits belong to a queue: as is a lane
// in the database, once a queue has used it.
type routes struct {
	opts     *Options
	exact    map[string]Handler
	prefixes []prefixRoute // longest first
	empty    bool
	ages     bool // some queue has priority aging

	mu     sync.RWMutex
	queues map[string]*queueRoute
	limits map[string]int // set by SetQueuePermits before a queue was met
}

type prefixRoute struct {
	prefix  string
	handler Handler
}

// queueRoute is a queue that this process serves, with what its jobs share.
type queueRoute struct {
	name      string
	handler   Handler
	permitter Permitter       // nil if the handler has no permit of its own
	kinds     map[string]bool // nil if it takes every kind
	parks     atomic.Bool     // it takes every kind and has parked a job all the same
	permits   *permits
	window    *window
	inFlight  atomic.Int64
	paused    atomic.Bool
	backoff   func(job *Job, err error) time.Duration
	timeout   time.Duration
	retention Retention
	weight    int           // its share of the global permits, beside those of the others
	aging     time.Duration // 0 for none
	single    bool          // its jobs run one at a time, so that a batch waits for no other
}

func newRoutes(opts *Options) (_ *routes, err error) {
	r := &routes{
		opts: opts, exact: map[string]Handler{}, empty: len(opts.Handlers) == 0,
		queues: map[string]*queueRoute{}, limits: map[string]int{}, ages: opts.Aging > 0,
	}
	for _, o := range opts.Queues {
		r.ages = r.ages || o.Aging > 0
	}
	seen := map[string]bool{}
	for i, h := range opts.Handlers {
		option := fmt.Sprintf("Handlers[%d]", i)
		if h == nil {
			return nil, &InvalidOptionError{option, nil, "must not be nil"}
		}
		patterns := []string{h.Queue()}
		if m, ok := find[Multi](h); ok {
			patterns = m.Queues()
		}
		if len(patterns) == 0 {
			return nil, &InvalidOptionError{option, h, "serves no queue"}
		}
		if err := checkBackoff(option, h); err != nil {
			return nil, err
		}
		if err := checkBatch(option, h); err != nil {
			return nil, err
		}
		for _, p := range patterns {
			if seen[p] {
				if r.exact[p], err = besides(r.exact[p], h); err != nil {
					return nil, &InvalidOptionError{option, p, err.Error()}
				}
				continue
			}
			seen[p] = true
			if prefix, ok := strings.CutSuffix(p, "*"); ok {
				if problem := queueNameProblem(prefix); prefix != "" && problem != "" {
					return nil, &InvalidOptionError{option, p, "prefix " + problem}
				}
				r.prefixes = append(r.prefixes, prefixRoute{prefix, h})
				continue
			}
			if problem := queueNameProblem(p); problem != "" {
				return nil, &InvalidOptionError{option, p, "queue " + problem}
			}
			r.exact[p] = h
		}
	}
	sort.SliceStable(r.prefixes, func(i, j int) bool { return len(r.prefixes[i].prefix) > len(r.prefixes[j].prefix) })
	return r, nil
}

// besides is one handler for the kinds of two, which serve the same queue.
func besides(first, second Handler) (Handler, error) {
	a, ok := first.(*Mux)
	b, too := second.(*Mux)
	if !ok || !too {
		return nil, errors.New("is served by an earlier handler")
	}
	m := NewMux(a.queue)
	for _, from := range []*Mux{a, b} {
		for kind, h := range from.kinds {
			if m.kinds[kind] != nil {
				return nil, fmt.Errorf("kind %q is served by an earlier handler", kind)
			}
			m.kinds[kind] = h
		}
	}
	return m, nil
}

// checkBackoff asks the policies that templates have given to h.
func checkBackoff(option string, h Handler) error {
	kinds := []string{""}
	if m, ok := find[*Mux](h); ok {
		kinds = m.knownKinds()
	}
	for _, kind := range kinds {
		if p := backoffOf(h, kind); p != nil {
			if err := validatePolicy(option+".Backoff", p); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkBatch checks the sizes of batches.
func checkBatch(option string, h Handler) error {
	if b, ok := find[*batcher](h); ok && b.problem() != "" {
		return &InvalidOptionError{option, b.queue, b.problem()}
	}
	if m, ok := find[*Mux](h); ok {
		for _, kind := range m.knownKinds() {
			if err := checkBatch(option, m.kinds[kind]); err != nil {
				return err
			}
		}
	}
	return nil
}

// names lists what is served, for operators.
func (r *routes) names() []string {
	names := []string{}
	for name := range r.exact {
		names = append(names, name)
	}
	for _, p := range r.prefixes {
		names = append(names, p.prefix+"*")
	}
	slices.Sort(names)
	return names
}

// find returns the route of a queue, or nil if nobody here serves it.
func (r *routes) find(queue string) *queueRoute {
	r.mu.RLock()
	q := r.queues[queue]
	r.mu.RUnlock()
	if q != nil {
		return q
	}
	h := r.match(queue)
	if h == nil {
		return nil // and nothing is kept: there is no end of such names
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if q := r.queues[queue]; q != nil {
		return q
	}
	q = r.build(queue, h)
	r.queues[queue] = q
	return q
}

// match finds the handler of a queue, or nil.
func (r *routes) match(queue string) Handler {
	if h, ok := r.exact[queue]; ok {
		return h
	}
	for _, p := range r.prefixes {
		if strings.HasPrefix(queue, p.prefix) {
			return p.handler
		}
	}
	return nil
}

func (r *routes) build(queue string, h Handler) *queueRoute {
	for _, m := range slices.Backward(r.opts.Middleware) {
		h = m(h)
	}
	o := r.opts.Queues[queue]
	q := &queueRoute{
		name: queue, handler: h, permits: newPermits(r.limit(queue)), window: newWindow(maxWindow),
		timeout: r.opts.Timeout, retention: o.Retention.or(r.opts.Retention), weight: max(1, o.Weight), aging: r.opts.Aging,
	}
	if o.Aging != 0 {
		q.aging = max(0, o.Aging)
	}
	if o.Timeout != 0 {
		q.timeout = o.Timeout
	}
	policy := r.opts.Backoff
	if o.Backoff != nil {
		policy = o.Backoff
	}
	q.backoff = func(job *Job, err error) time.Duration {
		if own := backoffOf(h, job.Kind); own != nil {
			return delayBy(own)(job, err)
		}
		return delayBy(policy)(job, err)
	}
	if p, ok := find[Permitter](h); ok {
		q.permitter, q.window = p, newWindow(firstWindow)
	}
	if m, ok := find[*Mux](h); ok {
		q.kinds = map[string]bool{}
		for _, k := range m.knownKinds() {
			q.kinds[k] = true
		}
	}
	return q
}

func (r *routes) limit(queue string) int {
	if n, ok := r.limits[queue]; ok {
		return n
	}
	if n := r.opts.Queues[queue].Permits; n > 0 {
		return n
	}
	return r.opts.QueuePermits
}

// resize changes the permits of a queue, met or not.
func (r *routes) resize(queue string, limit int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.limits[queue] = limit
	if q := r.queues[queue]; q != nil {
		q.permits.resize(limit)
	}
}

// served lists the queues met so far.
func (r *routes) served() []*queueRoute {
	r.mu.RLock()
	defer r.mu.RUnlock()
	list := make([]*queueRoute, 0, len(r.queues))
	for _, q := range r.queues {
		list = append(list, q)
	}
	return list
}

// budget is how many more jobs of the queue may be claimed.
func (q *queueRoute) budget() int {
	if q.paused.Load() {
		return 0
	}
	limit, _ := q.permits.state()
	return max(0, min(limit-int(q.inFlight.Load()), q.window.room()))
}

// delayBy gives a policy the job and the error if it wants them, and bounds
// what comes back. A policy that panics must not cost the job its outcome.
func delayBy(p backoff.Policy) func(*Job, error) time.Duration {
	return func(job *Job, err error) (d time.Duration) {
		defer func() {
			if recover() != nil {
				d = backoff.Clamp(backoff.Default.Delay(job.Attempt))
			}
		}()
		if f, ok := p.(BackoffFunc); ok {
			return backoff.Clamp(f(job, err))
		}
		return backoff.Clamp(p.Delay(job.Attempt))
	}
}

// or fills the zero fields of r from above.
func (r Retention) or(above Retention) Retention {
	def(&r.Archive, above.Archive)
	def(&r.DeadLetter, above.DeadLetter)
	return r
}

var errNoHandlers = errors.New("simplequeue: Options.Handlers is empty: Run has nothing to run")
