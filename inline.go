package simplequeue

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/semaphore"

	"github.com/simplequeue/simplequeue/internal/inside"
	"github.com/simplequeue/simplequeue/internal/store"
	"github.com/simplequeue/simplequeue/janitor"
)

// What package simplequeuetest is made of: the parts of the engine, run one job
// after the other.

func init() {
	inside.Within = func(queue any, tx pgx.Tx) any { return queue.(*SimpleQueue).within(tx) }
	inside.Worker = func(ctx context.Context, queue any, queues []string) (func() (*inside.Attempt, error), func(), error) {
		w, err := newInliner(ctx, queue.(*SimpleQueue))
		if err != nil {
			return nil, nil, err
		}
		return func() (*inside.Attempt, error) { return w.next(ctx, queues) }, w.watch(ctx), nil
	}
	inside.Process = func(ctx context.Context, handler, newJob, as any) (*inside.Attempt, error) {
		return processAlone(ctx, handler.(Handler), newJob.(NewJob), as.([]func(*Job)))
	}
	inside.Advance = func(ctx context.Context, queue any, d time.Duration) error {
		return queue.(*SimpleQueue).db.Advance(ctx, claimLimit, d)
	}
	inside.RunAt = func(ctx context.Context, queue, job any) (time.Time, error) {
		return queue.(*SimpleQueue).runAt(ctx, job.(JobInfo))
	}
}

var errWithin = errors.New("simplequeue: a queue inside a transaction cannot Run: use simplequeuetest.Work")

// within returns a queue of the same options that does all it does inside tx.
// Nobody is woken: nobody else sees its jobs. What is inserted there never goes to
// a spool, which serves one queue only.
func (q *SimpleQueue) within(tx store.Beginner) *SimpleQueue {
	opts := q.opts
	opts.PollOnly, opts.Spool = true, nil
	in, err := newOn(q.pool, opts)
	if err != nil {
		panic(err) // these options have been accepted before
	}
	in.db.Within = store.NewWithin(tx)
	return in
}

// inliner runs jobs one at a time, with a runner and a completer that it calls
// itself.
type inliner struct {
	queue     *SimpleQueue
	runner    *runner
	completer *completer
	handover  *handover

	queues []string // that may have jobs
	opened bool     // a gate may be open

	decided, handed chan outcomeOf // size 1
	err             error          // of the handler or its permit
	written         bool
}

const (
	inlineLimit = 30 * time.Second // for an outcome to be written
	inlineLook  = 50 * time.Millisecond
)

func newInliner(ctx context.Context, q *SimpleQueue) (*inliner, error) {
	if q.routes.empty {
		return nil, errNoHandlers
	}
	w := newInlinerWithout(ctx, q)
	j, err := janitor.New(q.pool, janitor.Options{Schema: q.opts.Schema, Logger: q.log})
	if err != nil {
		return nil, err
	}
	w.completer.partitions = j
	return w, nil
}

// newInlinerWithout makes one that may have no database.
func newInlinerWithout(ctx context.Context, q *SimpleQueue) *inliner {
	o := &q.opts
	w := &inliner{queue: q, decided: make(chan outcomeOf, 1), handed: make(chan outcomeOf, 1)}
	b := newBeater(q.db, o.HeartbeatInterval, maxLease, q.log, &loopHealth{}, &q.stats)
	w.completer = &completer{
		db: q.db, in: w.decided, handed: w.handed, aside: o.finishAside, beater: b, log: q.log, stats: &q.stats,
		health: &loopHealth{}, written: func(batch []outcomeOf) { w.written = len(batch) > 0 },
	}
	w.handover = &handover{db: q.db, onward: w.decided, beater: b, log: q.log, stats: &q.stats, health: &loopHealth{}, written: func([]outcomeOf) {}}
	w.runner = &runner{
		queue: q, payloads: q.db, memory: newPayloadMemory(o.PayloadMemory, &q.stats.payloadBytes), ctx: ctx, flush: ctx,
		global: semaphore.NewWeighted(1), permitWait: o.PermitWait, stuckAfter: o.StuckAfter, maxReschedules: o.MaxReschedules,
		completer: w.completer, beater: b, freed: func(*claim) {}, room: func() {}, log: q.log, stats: &q.stats,
	}
	return w
}

// watch looks for cancels of the job that runs, until it is stopped. Inside a
// transaction, which may be in use by the handler, it does not.
func (w *inliner) watch(ctx context.Context) (stop func()) {
	if w.queue.db.Within != nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.runner.beater.watchCancels(ctx, w.queue.db, inlineLook, nil, &loopHealth{})
	}()
	return func() { cancel(); <-done }
}

// next runs the next job, nil if there is none.
func (w *inliner) next(ctx context.Context, queues []string) (*inside.Attempt, error) {
	if w.opened {
		if err := w.admit(ctx); err != nil {
			return nil, err
		}
	}
	c, err := w.claim(ctx)
	if err == nil && c == nil {
		if err = w.refresh(ctx, queues); err == nil {
			c, err = w.claim(ctx)
		}
	}
	if err != nil || c == nil {
		return nil, err
	}
	return w.finish(ctx, c)
}

// refresh makes runnable what is due or may pass its gates, takes away what was
// not committed in time, and looks which queues there are by now.
func (w *inliner) refresh(ctx context.Context, queues []string) (err error) {
	if _, err := janitor.ExpireHeld(ctx, w.queue.db); err != nil {
		return fmt.Errorf("delete jobs whose hold is over: %w", err)
	}
	for moved := promoteBatch; moved == promoteBatch; {
		p, err := w.queue.db.Promote(ctx, promoteLimit, nil, promoteBatch)
		if err != nil {
			return fmt.Errorf("promote due jobs: %w", err)
		}
		moved = p.Moved
	}
	if err := w.admit(ctx); err != nil {
		return err
	}
	w.queues, err = w.served(ctx, queues)
	return err
}

// admit lets in who waits at gates, until nobody moves. A job has two gates, and
// a turn does not tell that one has passed the first, so it takes two turns to
// know.
func (w *inliner) admit(ctx context.Context) error {
	for idle := 0; idle < 2; {
		done, err := w.queue.db.Admit(ctx, gateLimit, 0, admitBatch, fairWindow)
		if err != nil {
			return fmt.Errorf("admit jobs at gates: %w", err)
		}
		if idle++; done.Queued > 0 || done.Due != nil || done.Looks > done.Again {
			idle = 0
		}
		if done.Looks == 0 {
			break
		}
	}
	w.opened = false
	return nil
}

// served are those of the queues, nil for all, that have jobs in some state, a
// handler here, and no pause.
func (w *inliner) served(ctx context.Context, queues []string) (names []string, err error) {
	var paused []string
	_, err = w.queue.db.Lanes(ctx, claimLimit, 0, func(l store.Lane) {
		switch {
		case l.Priority == store.PausedLane:
			paused = append(paused, l.Queue)
		case w.queue.routes.find(l.Queue) != nil && (len(queues) == 0 || slices.Contains(queues, l.Queue)):
			names = append(names, l.Queue)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("read lanes: %w", err)
	}
	slices.Sort(names)
	return slices.DeleteFunc(slices.Compact(names), func(name string) bool { return slices.Contains(paused, name) }), nil
}

func (w *inliner) claim(ctx context.Context) (*claim, error) {
	if len(w.queues) == 0 {
		return nil, nil
	}
	q := w.queue
	r := q.claimAll(w.queues, 1, maxLease)
	asked := time.Now()
	rows, err := q.db.Claim(ctx, claimLimit, r)
	if err == nil && len(rows) == 0 {
		rows, err = w.claimParked(ctx, r)
	}
	if err != nil || len(rows) == 0 {
		return nil, err
	}
	c := newClaim(&rows[0], r.Nonce, asked)
	c.route = q.routes.find(c.job.Queue)
	return c, nil
}

// claimParked claims a job that was parked by a program that did not know its
// kind.
func (w *inliner) claimParked(ctx context.Context, r store.ClaimRequest) ([]store.Claimed, error) {
	parked := store.ClaimRequest{Worker: r.Worker, Nonce: r.Nonce, LeaseMS: r.LeaseMS, Limit: r.Limit}
	var kinds []string
	add := func(queue, kind string, anyKind bool) {
		parked.Queue, kinds, parked.AnyKind = append(parked.Queue, queue), append(kinds, kind), append(parked.AnyKind, anyKind)
		parked.Budget, parked.Suspect = append(parked.Budget, 1), append(parked.Suspect, true)
	}
	for _, name := range w.queues {
		route := w.queue.routes.find(name)
		if route.kinds == nil && !route.parks.Load() {
			add(name, "", true)
		}
		for kind := range route.kinds {
			add(name, kind, false)
		}
	}
	if len(kinds) == 0 {
		return nil, nil
	}
	return w.queue.db.ClaimParked(ctx, claimLimit, parked, kinds)
}

// finish runs a claim, writes its outcome and reads what has become of the job.
func (w *inliner) finish(ctx context.Context, c *claim) (*inside.Attempt, error) {
	o, handed, err := w.run(c)
	if err != nil {
		return nil, err
	}
	settled, stop := context.WithTimeout(ctx, inlineLimit)
	defer stop()
	if !handed {
		w.completer.flush(settled, []outcomeOf{o}, false)
	} else if err := w.settleHanded(settled, o); err != nil {
		return nil, err
	}
	if err := w.writeLines(ctx); err != nil {
		return nil, err
	}
	w.opened = len(c.job.gates) > 0
	a := w.attempt(o)
	if !w.written {
		a.Err = errors.Join(ErrLeaseLost, a.Err)
	}
	info, err := w.queue.Get(ctx, c.job.ID)
	switch {
	case err == nil:
		a.JobInfo = info
	case !errors.Is(err, ErrNotFound): // nothing of it is kept
		return nil, err
	}
	return a, nil
}

// run runs a claim in a goroutine, as the engine does: its handler may end it.
// handed means that a transaction of the handler's decides.
func (w *inliner) run(c *claim) (o outcomeOf, handed bool, err error) {
	of := c.route
	c.route, w.err, w.written = w.observed(of), nil, false
	c.route.inFlight.Add(1)
	c.route.window.enter(1)
	w.runner.global.TryAcquire(1)
	w.runner.beater.add([]*claim{c})
	w.runner.jobs.Add(1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.runner.run(c)
	}()
	<-done
	if c.route.parks.Load() {
		of.parks.Store(true)
	}
	select {
	case o = <-w.decided:
	case o = <-w.handed:
		handed = true
	default:
		return o, false, fmt.Errorf("job %v: %w", c.job.ID, ErrLeaseLost)
	}
	return o, handed, nil
}

// observed is a route whose handler and permit tell what they return.
func (w *inliner) observed(r *queueRoute) *queueRoute {
	o := &queueRoute{
		name: r.name, kinds: r.kinds, permits: r.permits, window: r.window, backoff: r.backoff, timeout: r.timeout, retention: r.retention, single: true,
	}
	o.handler = HandlerFunc(r.name, func(ctx context.Context, job *Job) error {
		w.err = r.handler.Process(ctx, job)
		return w.err
	})
	if r.permitter != nil {
		o.permitter = permitterFunc(func(ctx context.Context, job *Job) (release func(), err error) {
			release, w.err = r.permitter.Acquire(ctx, job)
			return release, w.err
		})
	}
	return o
}

type permitterFunc func(ctx context.Context, job *Job) (release func(), err error)

func (f permitterFunc) Acquire(ctx context.Context, job *Job) (func(), error) { return f(ctx, job) }

// settleHanded does what the handover does: it waits for the transaction to end.
func (w *inliner) settleHanded(ctx context.Context, o outcomeOf) error {
	for wait := firstLook; ; wait = min(2*wait, lastLook) {
		if len(w.handover.look(ctx, []outcomeOf{o})) == 0 {
			break
		}
		if err := waitFor(ctx, wait); err != nil {
			return fmt.Errorf("job %v: the transaction in which its handler completes or changes it is still open: %w", o.claim.job.ID, err)
		}
	}
	select {
	case o = <-w.decided:
		w.completer.flush(ctx, []outcomeOf{o}, false)
	default:
		w.written = true // the handler's transaction has completed it
	}
	return nil
}

// writeLines writes what handlers have logged.
func (w *inliner) writeLines(ctx context.Context) error {
	b := w.queue.lines
	if b == nil {
		return nil
	}
	for batch := b.take(); len(batch) > 0; batch = b.take() {
		if err := b.tryWrite(ctx, batch); err != nil {
			return fmt.Errorf("write the lines of handlers: %w", err)
		}
	}
	return nil
}

// attempt is what an outcome says.
func (w *inliner) attempt(o outcomeOf) *inside.Attempt {
	a := &inside.Attempt{JobInfo: o.after(time.Now()), Err: w.err, Exited: o.verdict.text == exitText}
	switch {
	case a.Err != nil:
	case o.verdict.text != "":
		a.Err = errors.New(o.verdict.text) // of a panic, for example
	case o.verdict.action == actPark:
		a.Err = unknownKind(o.claim.job.Kind)
	}
	return a
}

// after is the job as the outcome leaves it.
func (o outcomeOf) after(now time.Time) JobInfo {
	v, info := o.verdict, JobInfo{Job: *o.claim.full(), StartedAt: o.claim.claimedAt}
	info.run, info.result = nil, ""
	info.State, info.Reason, info.Result = v.state, v.reason, json.RawMessage(v.result)
	if v.result == "" {
		info.Result = nil
	}
	if v.text != "" {
		e := AttemptError{Attempt: info.Attempt, At: now, Reason: cmp.Or(string(v.state), v.reason), Error: v.text, Stack: v.stack}
		info.Errors = appendError(info.Errors, e)
	}
	switch v.action {
	case actRetry:
		info.CrashCount = 0
	case actReschedule:
		info.CrashCount, info.ReprocessCount, info.Attempt = 0, info.ReprocessCount+1, info.Attempt-1
	case actBadJob:
		info.ReprocessCount++
	case actDefer, actPark, actGiveBack:
		info.Attempt--
	}
	switch {
	case v.state != "":
		info.FinishedAt = now
		return info
	case v.action == actGiveBack:
		info.State = StatePending
	case v.reason == reasonGated:
		info.State, info.Reason = StateWaiting, behind(info.gates)
	default:
		info.State = StateWaiting
		if info.RunAt = v.at; v.at.IsZero() && v.action != actPark {
			info.RunAt = now.Add(v.after)
		}
	}
	info.StartedAt = time.Time{}
	return info
}

// appendError is append_error of the schema.
func appendError(list []AttemptError, e AttemptError) []AttemptError {
	list = slices.Clone(list[max(0, len(list)-9):])
	for i := range list {
		list[i].Stack = ""
	}
	return append(list, e)
}

// runAt is when a job is to run that waits, also where it waits for something
// else first; the zero value for at once.
func (q *SimpleQueue) runAt(ctx context.Context, job JobInfo) (time.Time, error) {
	if job.State != StateWaiting || !job.RunAt.IsZero() {
		return job.RunAt, nil
	}
	s, err := q.db.SeeGate(ctx, inspectLimit, job.ID)
	if err != nil || s.RunAt == nil {
		return time.Time{}, err
	}
	return *s.RunAt, nil
}
