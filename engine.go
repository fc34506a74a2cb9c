package simplequeue

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/semaphore"

	"github.com/simplequeue/simplequeue/internal/store"
	"github.com/simplequeue/simplequeue/janitor"
	"github.com/simplequeue/simplequeue/migrate"
	"github.com/simplequeue/simplequeue/reaper"
)

// engine is what Run starts: it wires the parts together and stops them in the
// order in which jobs flow.
type engine struct {
	queue     *SimpleQueue
	worker    uuid.UUID
	db        *store.DB // on the control pool
	beats     *store.DB // on connections that nothing else can hold up
	health    *health
	poller    *poller
	runner    *runner
	completer *completer
	handover  *handover
	beater    *beater
	promoter  *promoter
	admitter  *admitter
	janitor   *janitor.Janitor
	reaper    *reaper.Reaper
	global    *semaphore.Weighted

	cancelWake                  chan struct{} // size 1
	cancelHealth, workerHealth  *loopHealth
	flushing                    context.Context
	stopFlushing                context.CancelFunc
	leaseLength                 time.Duration
	stage1, handing, completing sync.WaitGroup
	beatingWait, logging        sync.WaitGroup
}

const (
	workerEvery = 30 * time.Second

	// beatConns: one beats. When it no longer answers, closing it takes 15
	// seconds, longer than a lease, and the other beats.
	beatConns = 2
)

// newEngine builds the parts and waits until the database can be asked whether
// its schema is there.
func newEngine(ctx context.Context, q *SimpleQueue) (*engine, error) {
	o := &q.opts
	pool, err := ownPool(ctx, q.pool, o.ControlConns)
	if err != nil {
		return nil, err
	}
	beats, err := ownPool(ctx, q.pool, beatConns)
	if err != nil {
		pool.Close()
		return nil, err
	}
	e := &engine{
		queue: q, worker: uuid.New(), db: &store.DB{Schema: q.db.Schema, Pool: pool}, beats: &store.DB{Schema: q.db.Schema, Pool: beats}, health: &health{},
		global: semaphore.NewWeighted(int64(o.GlobalPermits)), cancelWake: make(chan struct{}, 1),
		leaseLength: o.HeartbeatInterval * 5 / 2,
	}
	if err := e.checkSchema(ctx); err != nil {
		e.closePools()
		return nil, err
	}
	e.flushing, e.stopFlushing = context.WithCancel(context.WithoutCancel(ctx))
	if err := e.build(ctx); err != nil {
		e.closePools()
		return nil, err
	}
	return e, nil
}

// ownPool is a pool of the engine's own, to the same database as the caller's.
func ownPool(ctx context.Context, callers *pgxpool.Pool, conns int) (*pgxpool.Pool, error) {
	config := callers.Config()
	config.MaxConns, config.MinConns, config.MinIdleConns = int32(conns), 0, 0
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("simplequeue: pool of the engine: %w", err)
	}
	return pool, nil
}

func (e *engine) closePools() {
	e.db.Pool.Close()
	e.beats.Pool.Close()
}

func (e *engine) checkSchema(ctx context.Context) error {
	retry := newRetry()
	for {
		version, err := e.db.SchemaVersion(ctx, claimLimit)
		switch {
		case err == nil && version >= migrate.Latest():
			return nil
		case err == nil:
			return fmt.Errorf("%w: schema %q is at version %d, this program needs %d: run migrate.Up",
				ErrSchema, e.queue.opts.Schema, version, migrate.Latest())
		case store.SchemaMissing(err):
			return fmt.Errorf("%w: no schema %q in this database: run migrate.Up (%w)", ErrSchema, e.queue.opts.Schema, err)
		case ctx.Err() != nil:
			return fmt.Errorf("simplequeue: stopped before the database could be reached: %w", err)
		case !store.Transient(err) || store.Code(err) == "42501":
			return fmt.Errorf("simplequeue: look at the schema: %w", err)
		}
		if retry.count == 0 {
			e.queue.log.WarnContext(ctx, "database cannot be reached, waiting for it", "err", err)
		}
		if retry.wait(ctx) != nil {
			return fmt.Errorf("simplequeue: stopped before the database could be reached: %w", err)
		}
	}
}

func (e *engine) build(ctx context.Context) (err error) {
	q, o := e.queue, &e.queue.opts
	if e.janitor, err = janitor.New(e.db.Pool, e.janitorOptions()); err != nil {
		return err
	}
	reaped := e.health.loop("reaper", o.ReaperInterval)
	e.reaper, err = reaper.New(e.db.Pool, reaper.Options{
		Schema: o.Schema, Interval: o.ReaperInterval, MaxCrashes: o.MaxCrashes, Logger: q.log,
		OnSweep: func(r reaper.Result, err error) {
			reaped.report(err)
			q.stats.reaped.Add(int64(r.Reaped()))
			if r.Requeued > 0 {
				e.poller.hint(nil)
			}
			if r.Reaped() > r.Requeued {
				e.admitter.hint()
			}
		},
	})
	if err != nil {
		return err
	}
	e.beater = newBeater(e.beats, o.HeartbeatInterval, e.leaseLength, q.log, e.health.loop("heartbeat", o.HeartbeatInterval), &q.stats)
	e.cancelHealth = e.health.loop("cancel requests", o.PollInterval)
	e.workerHealth = e.health.loop("worker registration", workerEvery)
	e.promoter = &promoter{
		db: e.db, every: min(o.PollInterval, time.Second), soon: make(chan time.Duration, 1), wake: q.wakes.jobs,
		log: q.log, health: e.health.loop("promoter", o.PollInterval),
	}
	e.admitter = &admitter{
		db: e.db, every: min(o.PollInterval, time.Second), soon: make(chan struct{}, 1), wake: q.wakes.jobs, due: e.promoter.hint,
		log: q.log, health: e.health.loop("admitter", o.PollInterval),
	}
	e.completer = &completer{
		db: e.db, partitions: e.janitor, in: make(chan outcomeOf, o.GlobalPermits), finish: make(chan struct{}),
		aside: o.finishAside, beater: e.beater, log: q.log, stats: &q.stats,
		health: e.health.loop("completer", 0), written: e.written,
	}
	e.handover = &handover{
		db: e.db, in: make(chan outcomeOf, o.GlobalPermits), finish: make(chan struct{}), onward: e.completer.in,
		beater: e.beater, log: q.log, stats: &q.stats, health: e.health.loop("transactions of handlers", 0),
		written: e.written,
	}
	e.completer.handed = e.handover.in
	memory := newPayloadMemory(o.PayloadMemory, &q.stats.payloadBytes)
	e.poller = &poller{
		db: e.db, worker: e.worker, leaseMS: int(e.leaseLength.Milliseconds()), threshold: int64(o.ClaimThreshold),
		every: o.PollInterval, global: e.global, routes: q.routes, book: newLaneBook(q.routes, o.PollInterval), memory: memory,
		log: q.log, stats: &q.stats, health: e.health.loop("poller", o.PollInterval), poke: make(chan struct{}, 1),
	}
	e.runner = &runner{
		queue: q, payloads: e.db, memory: memory, ctx: context.WithoutCancel(ctx), flush: e.flushing, global: e.global, permitWait: o.PermitWait,
		stuckAfter: o.StuckAfter, maxReschedules: o.MaxReschedules, completer: e.completer, beater: e.beater,
		log: q.log, stats: &q.stats,
		freed: func(c *claim) {
			e.left(c)
			e.poller.freed()
		},
	}
	e.runner.room = e.poller.freed
	e.beater.gone = e.left
	e.poller.hold, e.poller.dispatch = e.beater.add, e.runner.start
	return nil
}

func (e *engine) janitorOptions() janitor.Options {
	o := &e.queue.opts
	swept := e.health.loop("janitor", o.JanitorInterval)
	keep := func(r Retention) janitor.Keep {
		return janitor.Keep{Archive: keepSeconds(r.Archive), DeadLetter: keepSeconds(r.DeadLetter)}
	}
	jo := janitor.Options{
		Schema: o.Schema, Interval: o.JanitorInterval, Logger: e.queue.log, OnSweep: swept.report,
		Keep: keep(o.Retention), Queues: map[string]janitor.Keep{},
	}
	for name, q := range o.Queues {
		if q.Retention != (Retention{}) {
			jo.Queues[name] = keep(q.Retention)
		}
	}
	return jo
}

// free is how many more jobs could start here now.
func (e *engine) free() int {
	return e.queue.opts.GlobalPermits - int(e.queue.stats.running.Load())
}

// written wakes what has to move the jobs of settled claims on, and tells whoever
// waits for them.
func (e *engine) written(batch []outcomeOf) {
	e.queue.wakes.ended(awaitedOf(batch))
	lanes, due, waits := wakesFor(batch)
	e.queue.wakes.jobs(lanes, len(batch))
	if waits {
		e.promoter.hint(due)
	}
	if slices.ContainsFunc(batch, func(o outcomeOf) bool { return len(o.claim.job.gates) > 0 }) {
		e.admitter.hint()
	}
}

// left is told twice of each claim: when its handler has returned, and when its
// outcome is written. Before both, another suspect could take it along.
func (e *engine) left(c *claim) {
	if c.suspect && c.leaving.Add(1) == 2 {
		e.poller.suspects.Add(-1)
		e.poller.freed()
	}
}

func (e *engine) lookForCancels() {
	select {
	case e.cancelWake <- struct{}{}:
	default:
	}
}

// received acts on a notification.
func (e *engine) received(n note) {
	if n.cancel {
		e.lookForCancels()
	}
	if n.pause {
		e.poller.lookForPauses()
	}
	if n.gate {
		e.admitter.hint()
	}
	switch {
	case n.any:
		e.poller.hint(nil)
	case len(n.lanes) > 0:
		e.poller.hint(n.lanes)
	}
}

// run starts everything, waits for ctx, and stops in the order of the flow:
// claims, jobs, outcomes, leases.
func (e *engine) run(ctx context.Context) error {
	o := &e.queue.opts
	claiming, stopClaiming := context.WithCancel(ctx)
	defer stopClaiming()
	hard, cutOff := context.WithCancel(context.WithoutCancel(ctx))
	defer cutOff()
	logging, stopLogging := context.WithCancel(context.WithoutCancel(ctx))
	defer stopLogging()
	beating, stopBeating := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBeating()

	e.beatingWait.Go(func() { e.beater.run(beating) })
	e.beatingWait.Go(func() { e.beater.watchCancels(beating, e.db, o.PollInterval, e.cancelWake, e.cancelHealth) })
	e.completing.Go(func() { e.completer.run(e.flushing) })
	e.handing.Go(func() { e.handover.run(e.flushing) })
	if e.queue.lines != nil {
		lines := e.health.loop("job log", lineEvery)
		e.logging.Go(func() { e.queue.lines.run(logging, lines) })
	}
	e.completing.Go(func() { e.reportIdle(e.flushing) })
	e.stage1.Go(func() { e.poller.run(claiming, hard) })
	e.stage1.Go(func() { e.promoter.run(claiming) })
	e.stage1.Go(func() { e.admitter.run(claiming) })
	e.stage1.Go(func() { _ = e.janitor.Run(claiming) })
	e.stage1.Go(func() { _ = e.reaper.Run(claiming) })
	e.stage1.Go(func() { e.register(claiming) })
	if !o.PollOnly {
		l := &listener{
			config: e.queue.pool.Config(), channel: e.queue.wakes.channel, receive: e.received,
			log: e.queue.log, health: e.health.loop("listener", probeEvery),
		}
		e.stage1.Go(func() { l.run(claiming) })
	}
	e.queue.log.InfoContext(ctx, "simplequeue runs", "worker_id", e.worker, "queues", e.queue.routes.names())

	<-ctx.Done()
	e.runner.refusing.Store(true)
	close(e.queue.stopping)
	stopClaiming()
	claimed, idle := make(chan struct{}), make(chan struct{})
	go func() {
		e.stage1.Wait()
		close(claimed)
		e.runner.jobs.Wait()
		close(idle)
	}()

	ended := within(idle, o.Stop.Drain)
	if !ended {
		e.beater.tellAll(ErrShutdown) // claims that come later are not run
		ended = within(idle, o.Stop.Cancel)
	}
	abandoned, flushBy := 0, time.Now().Add(o.Stop.Flush)
	if !ended {
		cutOff()
		within(claimed, time.Until(flushBy)/2) // a claim may be coming back
		// Where outcomes cannot be written their buffer may be full.
		accepting, stop := context.WithDeadline(e.flushing, flushBy)
		abandoned = e.runner.abandon(accepting)
		stop()
	}
	close(e.handover.finish)
	handed := make(chan struct{})
	go func() { defer close(handed); e.handing.Wait() }()
	decided := within(handed, time.Until(flushBy)*3/4) // the rest is for what is handed on
	close(e.completer.finish)
	unwritten := e.stopCompleter(time.Until(flushBy))
	if !decided {
		within(handed, time.Second)
		unwritten = e.beater.count()
	}
	e.stopLogging(time.Until(flushBy), stopLogging)
	stopBeating()
	e.sayGoodbye(o.Stop.Flush)
	stuck := 0
	if !within(idle, 0) {
		stuck = max(0, int(e.queue.stats.running.Load())-abandoned)
	}
	if left := (StopError{GivenBack: abandoned, GivenUp: stuck, Unsettled: unwritten}); left != (StopError{}) {
		return &left
	}
	return nil
}

// reportIdle tells that a completer with nothing to write is well.
func (e *engine) reportIdle(ctx context.Context) {
	t := time.NewTicker(silentFor / 5)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.completer.finish:
			return
		case <-t.C:
			if len(e.completer.in) == 0 {
				e.completer.health.alive()
			}
			e.handover.health.alive()
		}
	}
}

// stopCompleter waits for the completer to write what it has accepted, and cuts
// it off at the deadline. It returns how many outcomes were left.
func (e *engine) stopCompleter(limit time.Duration) int {
	done := make(chan struct{})
	go func() { defer close(done); e.completing.Wait() }()
	ok := within(done, limit)
	e.stopFlushing()
	if ok {
		return 0
	}
	within(done, time.Second)
	return max(1, e.beater.count())
}

// stopLogging waits for the lines of handlers to be written, and cuts that off
// at the deadline.
func (e *engine) stopLogging(limit time.Duration, cutOff func()) {
	if e.queue.lines == nil {
		return
	}
	done := make(chan struct{})
	go func() { defer close(done); e.logging.Wait() }()
	close(e.queue.lines.finish)
	if !within(done, max(limit, 100*time.Millisecond)) {
		cutOff()
		within(done, time.Second)
	}
}

// sayGoodbye ends what is left, without letting a dead database delay the
// return.
func (e *engine) sayGoodbye(limit time.Duration) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		e.beatingWait.Wait()
		_ = e.db.RemoveWorker(context.Background(), min(limit, time.Second), e.worker)
		e.closePools()
	}()
	within(done, 2*time.Second)
}

// register shows operators that this worker is there.
func (e *engine) register(ctx context.Context) {
	for {
		err := e.signIn(ctx)
		if ctx.Err() != nil {
			return
		}
		e.workerHealth.report(err)
		every := workerEvery
		if err != nil {
			every = time.Second
		}
		if waitFor(ctx, jittered(every)) != nil {
			return
		}
	}
}

// signIn registers the worker, for the first time or again.
func (e *engine) signIn(ctx context.Context) error {
	added, err := e.db.RegisterWorker(ctx, claimLimit, e.worker, e.queue.opts.Name, e.queue.routes.names(), e.queue.routes.knownKinds())
	if added {
		e.poller.noteAgain()
	}
	return err
}

// within waits for done, at most d; a negative d does not wait.
func within(done <-chan struct{}, d time.Duration) bool {
	t := time.NewTimer(max(d, 0))
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
		return false
	}
}
