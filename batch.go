package simplequeue

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Batch makes a Handler of a function that takes several jobs of a queue at once:
// up to size of them, for which the first one waits at most as long as wait says.
// It starts with fewer when the queue has no more permits, and when Run stops.
// There may be several batches at a time.
//
// nil completes all jobs of the batch. An error is the outcome of each of them,
// with the meaning it has for a single job, unless it is a [BatchErrors], which
// says the outcome of each. A panic is a failed attempt of each.
//
// Each job is a job like any other: it has its own attempt, permits, lease and
// outcome, and waits for the others in its own goroutine. Their time together is
// bounded by their timeout, which includes the wait: only jobs with one timeout
// share a batch. ctx ends when the contexts of all jobs have ended, for the reason
// of the last; it belongs to no job. [Job.Context] is that of one, and ends when
// that job is cancelled or has lost its lease. The permits of all are held until
// the function has returned.
//
// A job whose worker has died, or whose last attempt panicked, comes alone, so
// that one bad job does not take the others along again.
//
// New refuses a size below 1 and a wait that is not positive.
func Batch(queue string, size int, wait time.Duration, process func(ctx context.Context, jobs []*Job) error) Handler {
	return &batcher{queue: queue, size: size, wait: wait, process: process, open: map[batchKey]*gathering{}}
}

// BatchErrors are the outcomes of the jobs of a [Batch]: nil completes a job. It
// has as many as there are jobs, in their order, or none, which completes all.
type BatchErrors []error

func (e BatchErrors) Error() string {
	failed, first := 0, ""
	for _, err := range e {
		if err == nil {
			continue
		}
		if failed++; failed == 1 {
			first = ", the first: " + textOf(err)
		}
	}
	return fmt.Sprintf("%d of %d jobs failed%s", failed, len(e), first)
}

// Context is the context with which a handler was called for the job: in a
// [Batch] that of one job among others, for its [Logger] and for the jobs that it
// inserts. Outside a handler it is context.Background().
func (j *Job) Context() context.Context {
	if j.run == nil || j.run.ctx == nil {
		return context.Background()
	}
	return j.run.ctx
}

// batcher gathers jobs, whose goroutines wait in Process.
type batcher struct {
	queue   string
	size    int
	wait    time.Duration
	process func(ctx context.Context, jobs []*Job) error

	mu   sync.Mutex
	open map[batchKey]*gathering // not started yet
}

// batchKey is what the jobs of a batch have in common.
type batchKey struct {
	in      *SimpleQueue
	queue   string
	timeout time.Duration
}

// gathering is a batch. Its first fields are guarded by the batcher until it
// starts, and belong to its goroutine then; the others are written before done
// is closed.
type gathering struct {
	key      batchKey
	members  []member
	timer    *time.Timer
	started  bool
	done     chan struct{} // closed when the function has returned
	outcomes map[*Job]error
	err      error // of those that are not in outcomes
	timedOut bool
}

type member struct {
	ctx context.Context
	job *Job
}

func (b *batcher) Queue() string { return b.queue }

// problem says what is wrong with it, or nothing.
func (b *batcher) problem() string {
	switch {
	case b.size < 1:
		return fmt.Sprintf("has a batch size of %d: must be at least 1", b.size)
	case b.wait <= 0:
		return fmt.Sprintf("has a wait of %v: must be positive", b.wait)
	case b.process == nil:
		return "has no function"
	}
	return ""
}

// Process joins a batch and waits for its end. A job whose context ends before
// the batch starts leaves it.
func (b *batcher) Process(ctx context.Context, job *Job) error {
	m := member{ctx, job}
	var stopping chan struct{}
	if job.run != nil {
		job.run.ctx, stopping = ctx, job.run.queue.stopping
	}
	g := b.join(m)
	select {
	case <-g.done:
	case <-stopping: // nothing more will come
		b.start(g)
	case <-ctx.Done():
		if b.leave(g, m) {
			return ctx.Err()
		}
	}
	<-g.done // whatever becomes of the job meanwhile: the function has it
	if g.timedOut {
		<-ctx.Done() // at the same time, by another timer
	}
	if err, ok := g.outcomes[job]; ok {
		return err
	}
	return g.err
}

// most is how many jobs can be in a batch with this one.
func (b *batcher) most(job *Job) int {
	last := len(job.Errors) - 1
	if job.CrashCount > 0 || last >= 0 && job.Errors[last].Stack != "" {
		return 1
	}
	if job.run == nil {
		return b.size
	}
	if job.run.claim.route.single {
		return 1
	}
	permits, _ := job.run.claim.route.permits.state()
	return min(b.size, permits, job.run.queue.opts.GlobalPermits)
}

func (b *batcher) join(m member) *gathering {
	most := b.most(m.job)
	b.mu.Lock()
	defer b.mu.Unlock()
	key := batchKey{queue: m.job.Queue, timeout: m.job.Timeout}
	if m.job.run != nil {
		key.in = m.job.run.queue
	}
	g := b.open[key]
	if g == nil || most == 1 {
		g = &gathering{key: key, done: make(chan struct{})}
		if most > 1 {
			b.open[key] = g
			g.timer = time.AfterFunc(b.wait, func() { b.start(g) })
		}
	}
	g.members = append(g.members, m)
	if len(g.members) >= most {
		b.begin(g)
	}
	return g
}

// leave reports whether the batch has not started.
func (b *batcher) leave(g *gathering, m member) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if g.started {
		return false
	}
	g.members = slices.DeleteFunc(g.members, func(other member) bool { return other.job == m.job })
	if len(g.members) == 0 {
		b.close(g)
	}
	return true
}

func (b *batcher) start(g *gathering) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.begin(g)
}

// begin starts a batch, once. b.mu is held.
func (b *batcher) begin(g *gathering) {
	if !g.started {
		b.close(g)
		go b.run(g)
	}
}

// close lets nobody join any more. b.mu is held.
func (b *batcher) close(g *gathering) {
	g.started = true
	if g.timer != nil {
		g.timer.Stop()
		delete(b.open, g.key)
	}
}

// run calls the function, in a goroutine of its own: it may panic, or end that.
func (b *batcher) run(g *gathering) {
	defer close(g.done)
	ctx, end := g.context()
	defer end()
	returned := false
	defer func() {
		if !returned {
			g.outcomes, g.err = nil, panicked(recover())
		}
		g.timedOut = errors.Is(ctx.Err(), context.DeadlineExceeded)
	}()
	jobs := make([]*Job, len(g.members))
	for i, m := range g.members {
		jobs[i] = m.job
	}
	err := b.process(ctx, jobs)
	g.share(jobs, err)
	returned = true
}

// share gives each job its outcome. The function may have sorted the jobs.
func (g *gathering) share(jobs []*Job, err error) {
	var each BatchErrors
	switch {
	case err == nil:
	case !errors.As(err, &each):
		g.err = err
	case len(each) == 0:
	case len(each) != len(jobs):
		g.err = fmt.Errorf("simplequeue: the handler of a batch of %d jobs returned the outcomes of %d", len(jobs), len(each))
	default:
		g.err = errors.New("simplequeue: the handler of a batch has taken the job out of it")
		g.outcomes = make(map[*Job]error, len(jobs))
		for i, job := range jobs {
			g.outcomes[job] = each[i]
		}
	}
}

// context ends when those of all jobs have. It has the values of the first one's,
// but for the job.
func (g *gathering) context() (ctx context.Context, end func()) {
	ctx = context.WithoutCancel(g.members[0].ctx)
	if g.key.in != nil {
		ctx = context.WithValue(ctx, contextKey{}, &running{queue: g.key.in})
	}
	ctx, cancel := context.WithCancelCause(ctx)
	stop := func() {}
	latest, timed := g.deadline()
	if timed {
		ctx, stop = context.WithDeadlineCause(ctx, latest, ErrTimeout)
	}
	var left atomic.Int32
	left.Store(int32(len(g.members)))
	detach := make([]func() bool, len(g.members))
	for i, m := range g.members {
		detach[i] = context.AfterFunc(m.ctx, func() {
			// Those that time out do so together, by the deadline of the batch.
			if left.Add(-1) == 0 && (!timed || !errors.Is(m.ctx.Err(), context.DeadlineExceeded)) {
				cancel(context.Cause(m.ctx))
			}
		})
	}
	return ctx, func() {
		for _, d := range detach {
			d()
		}
		stop()
		cancel(nil)
	}
}

// deadline is the latest of the jobs', if they have deadlines.
func (g *gathering) deadline() (latest time.Time, timed bool) {
	for _, m := range g.members {
		d, ok := m.ctx.Deadline()
		if !ok {
			return time.Time{}, false
		}
		if d.After(latest) {
			latest = d
		}
	}
	return latest, true
}
