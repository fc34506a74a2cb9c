package simplequeue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/simplequeue/simplequeue/backoff"
	"github.com/simplequeue/simplequeue/internal/store"
)

// runner runs claims, each in a goroutine that is not shared while it runs.
type runner struct {
	queue          *SimpleQueue
	payloads       claimer
	memory         *payloadMemory
	ctx            context.Context // whose values handlers see; it does not end
	flush          context.Context // in which outcomes are accepted
	global         *semaphore.Weighted
	permitWait     time.Duration
	stuckAfter     time.Duration
	maxReschedules int
	completer      *completer
	beater         *beater
	freed          func(*claim)
	room           func() // told when more jobs of a queue may come to wait
	log            *slog.Logger
	stats          *counters
	refusing       atomic.Bool // claims that arrive now are given back unrun

	jobs  sync.WaitGroup
	mu    sync.Mutex
	ready []*claim // not begun yet
	// coming: a goroutine is on its way that will take the first of ready. There
	// always is one while ready is not empty.
	coming bool
}

// start runs claims that hold a global permit each. The beater has them.
func (r *runner) start(claims []*claim) {
	r.jobs.Add(len(claims))
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ready = append(r.ready, claims...)
	r.send()
}

// send starts a goroutine for the first claim that is ready, unless one is on
// its way. r.mu is held.
func (r *runner) send() {
	if len(r.ready) > 0 && !r.coming {
		r.coming = true
		go r.work()
	}
}

// work runs the next claim, and then more of them while there are. Whoever takes
// a claim sends another goroutine for the next, so none waits for the end of
// another; but where handlers are quick few goroutines run them all: new ones,
// whose stacks have to grow first, would be the larger part of the cost of a
// short job.
func (r *runner) work() {
	for c := r.take(true); c != nil; c = r.take(false) {
		r.run(c)
	}
}

// take returns nil when every claim has been taken.
func (r *runner) take(arrived bool) *claim {
	r.mu.Lock()
	defer r.mu.Unlock()
	if arrived {
		r.coming = false
	}
	if len(r.ready) == 0 {
		r.ready = nil
		return nil
	}
	c := r.ready[0]
	r.ready[0], r.ready = nil, r.ready[1:]
	r.send()
	return c
}

// attempt is what became of one call of a handler.
type attempt struct {
	err      error
	cause    error // of the context's end, nil if it has not ended
	deferral bool  // err is a permit's
	returned bool
}

// run is the life of a job in this process. Everything that must happen once
// the handler has returned is deferred: a handler may panic, or end its
// goroutine by runtime.Goexit.
func (r *runner) run(c *claim) {
	defer r.jobs.Done()
	inside := &running{queue: r.queue, job: c.full(), claim: c}
	inside.job.run = inside
	ctx, cancel := context.WithCancelCause(context.WithValue(r.ctx, contextKey{}, inside))
	defer cancel(nil)
	r.stats.running.Add(1)
	beat := startHeartbeat(c, cancel, r.stuckAfter, func() { r.stuck(c, context.Cause(ctx)) })
	a := attempt{}
	defer func() {
		beat.end()
		if inside.logged.Load() != nil {
			r.queue.lines.hurry()
		}
		r.finish(c, &a)
	}()
	if r.refusing.Load() || c.unpermitted {
		c.route.window.leave(true)
		a.err, a.returned = errGiveBack, true
		return
	}
	r.permitted(ctx, c, inside, &a)
}

// permitted runs the handler under the queue's permit, with the memory for its
// payload, and under the handler's own permit.
func (r *runner) permitted(ctx context.Context, c *claim, inside *running, a *attempt) {
	left := false
	leave := func(granted bool) {
		if !left {
			left = true
			if c.route.window.leave(granted) && granted {
				r.room()
			}
		}
	}
	defer leave(false)
	defer r.recoverInto(a, ctx)

	if c.route.kinds != nil && !c.route.kinds[c.job.Kind] {
		leave(true)
		a.err, a.returned = errPark, true
		return
	}
	if !c.route.permits.tryAcquire() {
		wait, stop := context.WithTimeout(ctx, r.permitWait)
		err := c.route.permits.acquire(wait)
		stop()
		if err != nil {
			a.err, a.cause, a.returned = errGiveBack, context.Cause(ctx), true
			return
		}
	}
	defer c.route.permits.release()

	if c.apart() { // the handler's permit may depend on the payload
		if err := r.load(ctx, c, &left); err != nil {
			a.err, a.cause, a.returned = err, context.Cause(ctx), true
			return
		}
		inside.job = c.full()
	}
	if c.route.permitter != nil {
		wait, stop := context.WithTimeout(ctx, r.permitWait)
		defer stop()
		release, gaveUp, err := r.ask(wait, c)
		if err == nil && release != nil {
			defer r.releasePermit(c, release)
		}
		switch {
		case gaveUp:
			a.err, a.returned = errGiveBack, true
			return
		case err != nil:
			a.permit(ctx, wait, err)
			leave(a.answered())
			a.returned = true // not before: the error's methods may panic
			return
		}
		stop()
	}
	leave(true)
	r.process(ctx, c, a)
}

// ask asks the handler for its permit. A handler that goes on asking long after
// the wait is over is reported as stuck, and its job, which has not begun, is
// given back: then a late grant must not start it.
func (r *runner) ask(wait context.Context, c *claim) (release func(), gaveUp bool, err error) {
	if r.stuckAfter >= 0 {
		t := time.AfterFunc(r.permitWait+r.stuckAfter, func() { r.giveUp(c, verdict{action: actGiveBack}) })
		defer func() { gaveUp = !t.Stop() }()
	}
	release, err = c.route.permitter.Acquire(wait, c.full())
	return release, false, err
}

// permit sorts the error of a handler's permit: not granted in time, or what
// the error says.
func (a *attempt) permit(ctx, wait context.Context, err error) {
	a.deferral, a.err = true, err
	var o *outcome
	if ctx.Err() != nil {
		a.cause = context.Cause(ctx)
	} else if wait.Err() != nil && !errors.As(err, &o) {
		a.err = errGiveBack
	}
}

// answered reports whether a permit's error decided about the job. Otherwise
// the wait was in vain: the job will come again.
func (a *attempt) answered() bool {
	var o *outcome
	return !errors.As(a.err, &o) || o.action != actGiveBack && o.action != actReschedule
}

// releasePermit gives a handler's permit back. The outcome stands even if that
// panics.
func (r *runner) releasePermit(c *claim, release func()) {
	defer func() {
		if p := recover(); p != nil {
			r.log.Error("release of a handler's permit panicked", "job_id", c.job.ID, "queue", c.job.Queue, "err", p)
		}
	}()
	release()
}

func (r *runner) process(ctx context.Context, c *claim, a *attempt) {
	timeout := c.route.timeout
	if c.job.Timeout != 0 {
		timeout = c.job.Timeout
	}
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, timeout, ErrTimeout)
		defer cancel()
	}
	// The heartbeat watches the outer context, which a timeout does not end.
	if timeout > 0 && r.stuckAfter >= 0 {
		t := time.AfterFunc(timeout+r.stuckAfter, func() { r.stuck(c, ErrTimeout) })
		defer t.Stop()
	}
	defer func() {
		if ctx.Err() != nil {
			a.cause = context.Cause(ctx)
		}
	}()
	job := c.full()
	job.run.ctx = ctx
	a.err = c.route.handler.Process(ctx, job)
	a.returned = true
}

const exitText = "handler ended its goroutine (runtime.Goexit)"

// recoverInto turns a panic or runtime.Goexit into a failed attempt. It is the
// one place that recovers a handler's panics, beside that of a [Batch].
func (r *runner) recoverInto(a *attempt, ctx context.Context) {
	if a.returned {
		return
	}
	a.err = panicked(recover())
	a.returned, a.deferral = true, false
	if a.cause == nil && ctx.Err() != nil {
		a.cause = context.Cause(ctx)
	}
}

// panicked is the failure of a function of the user's that did not return, for p
// or by ending its goroutine.
func panicked(p any) error {
	text := exitText
	if p != nil {
		text = fmt.Sprintf("panic: %v", p)
	}
	return &panicError{text: text, stack: string(debug.Stack())}
}

// load gets a payload that did not come with the claim, once there is memory for
// it: at once, or after a wait that few jobs of a queue may begin. Its error is
// the job's outcome; left is set where the job has left the window.
func (r *runner) load(ctx context.Context, c *claim, left *bool) error {
	if !r.memory.tryTake(c) {
		if !c.route.window.stay() {
			*left = true
			return errGiveBack
		}
		wait, stop := context.WithTimeout(ctx, r.permitWait)
		err := r.memory.take(wait, c)
		stop()
		if err != nil {
			return errGiveBack
		}
	}
	return r.fetch(ctx, c)
}

// fetch reads the payload of this job alone. Its error is the job's outcome:
// where the server refuses to send the payload, it would do so for ever.
func (r *runner) fetch(ctx context.Context, c *claim) error {
	found, err := r.payloads.Payloads(ctx, claimLimit, [][16]byte{c.job.ID})
	if err != nil && !store.Transient(err) && !store.SchemaMissing(err) {
		return Unprocessable(fmt.Errorf("the payload, stored apart, cannot be read: %w", err))
	}
	if err != nil {
		return errGiveBack
	}
	p, ok := found[c.job.ID]
	if !ok {
		return Unprocessable(errors.New("the payload, stored apart, is gone"))
	}
	c.fetched(p)
	return nil
}

var (
	errGiveBack = &outcome{action: actGiveBack}
	errPark     = &outcome{action: actPark}
)

// finish decides about the outcome and ends the job here. Deciding calls into
// the user's errors and policies, which may panic or end the goroutine too.
func (r *runner) finish(c *claim, a *attempt) {
	v, decided := verdict{}, false
	defer func() {
		if !decided {
			v = r.undecided(c, a, recover())
		}
		r.settle(c, a, v)
	}()
	if !errors.Is(a.cause, ErrLeaseLost) {
		v = r.decide(c, a)
	}
	decided = true
}

// undecided is the verdict where the user's code has kept decide from one.
func (r *runner) undecided(c *claim, a *attempt, panicked any) verdict {
	err := &panicError{text: fmt.Sprintf("no outcome of an error of type %T: %v", a.err, panicked), stack: string(debug.Stack())}
	p := policy{backoff: delayBy(backoff.Default), maxReschedules: r.maxReschedules}
	return decide(c.job, err, a.cause, false, p)
}

// settle hands the outcome to the completer and frees what the job held.
func (r *runner) settle(c *claim, a *attempt, v verdict) {
	if v.action == actPark && c.route.kinds == nil {
		c.route.parks.Store(true) // a Mux that middleware hides: what it parks is not for it
	}
	var mine bool
	if errors.Is(a.cause, ErrLeaseLost) {
		mine = c.settled.CompareAndSwap(false, true) // there is nothing left to settle
	} else {
		mine = r.completer.accept(r.flush, outcomeOf{claim: c, verdict: v})
	}
	if !mine {
		r.stats.stuck.Add(-1) // it was given up as stuck, or abandoned by a stop
	}
	r.memory.giveBack(c)
	c.route.inFlight.Add(-1)
	r.stats.running.Add(-1)
	if !c.unpermitted {
		r.global.Release(1)
	}
	r.freed(c)
}

func (r *runner) decide(c *claim, a *attempt) verdict {
	p := policy{backoff: c.route.backoff, maxReschedules: r.maxReschedules}
	v := decide(c.full(), a.err, a.cause, a.deferral, p)
	if v.action == actComplete && c.completing.Load() {
		otherwise := decide(c.full(), ErrNotCommitted, a.cause, false, p)
		v.otherwise = &otherwise
	}
	return v
}

// stuck gives up on a handler that does not return although its context has
// ended: the attempt is recorded as failed, so that the job goes on elsewhere;
// the permits stay taken until the handler returns. Where the context has ended
// because of a cancel or a stop, that decides.
func (r *runner) stuck(c *claim, cause error) {
	err := fmt.Errorf("handler did not return after its context had ended: %w", cause)
	if errors.Is(cause, ErrLeaseLost) {
		if c.settled.CompareAndSwap(false, true) {
			r.reportStuck(c)
		}
		return
	}
	r.giveUp(c, r.decide(c, &attempt{err: err, cause: cause, returned: true}))
}

func (r *runner) giveUp(c *claim, v verdict) {
	if r.completer.accept(r.flush, outcomeOf{claim: c, verdict: v}) {
		r.reportStuck(c)
	}
}

func (r *runner) reportStuck(c *claim) {
	r.stats.stuck.Add(1)
	r.log.Error("handler does not return although its context has ended", "job_id", c.job.ID,
		"queue", c.job.Queue, "kind", c.job.Kind, "attempt", c.job.Attempt)
}

// abandon gives back the claims whose handlers have not returned at the end of a
// stop. What they return later has no effect. It reports how many there were.
func (r *runner) abandon(ctx context.Context) (abandoned int) {
	for _, c := range r.beater.unsettled() {
		if !r.completer.accept(ctx, outcomeOf{claim: c, verdict: verdict{action: actGiveBack}}) {
			continue
		}
		abandoned++
		r.stats.stuck.Add(1)
		r.log.Error("handler still running at the end of the stop, job given back", "job_id", c.job.ID,
			"queue", c.job.Queue, "kind", c.job.Kind, "attempt", c.job.Attempt)
	}
	return abandoned
}

// wakesFor lists the lanes into which a batch of written outcomes has put jobs,
// and in how long the first retry is due.
func wakesFor(batch []outcomeOf) (lanes []store.Lane, due time.Duration, waits bool) {
	seen := map[store.Lane]bool{}
	for _, o := range batch {
		switch {
		case o.verdict.action == actGiveBack:
			l := store.Lane{Queue: o.claim.job.Queue, Priority: store.FrontLane}
			if o.claim.suspect {
				l.Priority = store.SuspectLane
			}
			if !seen[l] {
				seen[l] = true
				lanes = append(lanes, l)
			}
		case o.verdict.state == "" && o.verdict.at.IsZero():
			if !waits || o.verdict.after < due {
				due = o.verdict.after
			}
			waits = true
		}
	}
	return lanes, due, waits
}
