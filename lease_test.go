package simplequeue_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// Hundreds of jobs that run for many leases are kept by one statement an
// interval, and none is reaped; jobs shorter than an interval leave no trace in
// job_lease.
func TestLongJobsKeepTheirLeasesAtOneStatementAnInterval(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	makeRoom(t, pool)
	if _, err := pool.Exec(t.Context(), `CREATE TABLE beats (tx xid8);
		CREATE FUNCTION note_beat() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.beats VALUES (pg_current_xact_id()); RETURN NULL; END $$;
		CREATE TRIGGER note_beat AFTER INSERT OR UPDATE ON simplequeue.job_lease FOR EACH ROW EXECUTE FUNCTION note_beat()`); err != nil {
		t.Fatal(err)
	}
	beats := func() (n int) { // that had something to renew
		if err := pool.QueryRow(t.Context(), "SELECT count(DISTINCT tx) FROM beats").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	release := make(chan struct{})
	o := handler("lease", func(ctx context.Context, job *simplequeue.Job) error {
		if job.Kind == "long" {
			select {
			case <-release:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return nil
	})
	o.HeartbeatInterval, o.QueuePermits = time.Second, 500
	q := newQueue(t, pool, o)
	start(t, q)
	for range 10 {
		if _, err := q.InsertMany(t.Context(), repeat(30, simplequeue.NewJob{Queue: "lease"})); err != nil {
			t.Fatal(err)
		}
		time.Sleep(60 * time.Millisecond)
	}
	eventually(t, "the short ones are done", func() bool { return q.Stats().Completed == 300 })
	if n := beats(); n != 0 {
		t.Errorf("%d statements for jobs shorter than an interval, want none", n)
	}
	const long = 500
	if _, err := q.InsertMany(t.Context(), repeat(long, simplequeue.NewJob{Queue: "lease", Kind: "long", MaxAttempts: 1})); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all run", func() bool { return q.Stats().Running == long })
	began := time.Now()
	time.Sleep(6 * time.Second) // two leases and more
	if n, most := beats(), int(time.Since(began)/o.HeartbeatInterval)+2; n < 3 || n > most {
		t.Errorf("%d statements in %v for %d jobs, want one each %v", n, time.Since(began), long, o.HeartbeatInterval)
	}
	close(release)
	eventually(t, "all are done", func() bool { return q.Stats().Completed == 300+long })
	if s := q.Stats(); s.Reaped != 0 || s.LeasesLost != 0 {
		t.Errorf("reaped %d, leases lost %d, want none", s.Reaped, s.LeasesLost)
	}
}

// Handlers that hold every connection of the caller's pool, in transactions, do
// not hold up the heartbeats.
func TestHandlersThatHoldEveryConnectionDoNotStopHeartbeats(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	pool := pgtest.Pool(t, url, 3)
	ins := newQueue(t, pgtest.Pool(t, url, 2), simplequeue.Options{})
	var held atomic.Int64
	o := handler("hog", func(ctx context.Context, _ *simplequeue.Job) error {
		tx, err := pool.Begin(ctx)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback(context.Background()) }()
		held.Add(1)
		select {
		case <-time.After(3 * time.Second):
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
	o.HeartbeatInterval = 800 * time.Millisecond
	start(t, newQueue(t, pool, o))
	if _, err := ins.InsertMany(t.Context(), repeat(3, simplequeue.NewJob{Queue: "hog", MaxAttempts: 1})); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all connections are held", func() bool { return held.Load() == 3 })
	eventually(t, "all are done", func() bool { return counts(t, ins, "hog")[simplequeue.StateCompleted] == 3 })
}

// Loops that wait for a lock on a table do not take the heartbeats' place in
// the engine's pool: jobs outlive a lock that lasts for several leases.
func TestLockedQueueDoesNotStopHeartbeats(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	makeRoom(t, pool)
	release := make(chan struct{})
	o := handler("locked", func(ctx context.Context, _ *simplequeue.Job) error {
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
	o.HeartbeatInterval, o.PollInterval = 800*time.Millisecond, 50*time.Millisecond
	q := newQueue(t, pool, o)
	start(t, q)
	id := insert(t, q, simplequeue.NewJob{Queue: "locked", MaxAttempts: 1})
	awaitState(t, q, id, simplequeue.StateRunning)
	time.Sleep(o.HeartbeatInterval)
	unlock := lock(t, pool, "simplequeue.job_queue, simplequeue.job_waiting, simplequeue.job_finished IN ACCESS EXCLUSIVE MODE")
	time.Sleep(5 * time.Second)
	unlock()
	time.Sleep(3 * time.Second) // a lease and a sweep
	close(release)
	if got := awaitState(t, q, id, simplequeue.StateCompleted); got.Attempt != 1 || got.CrashCount != 0 {
		t.Errorf("attempt %d, crash count %d, want 1 and 0", got.Attempt, got.CrashCount)
	}
}

// Nobody's lease ages while somebody has locked the tables that heartbeats need,
// for however many leases: no job is taken from its worker, neither meanwhile nor
// when the lock goes and a sweep may come before the beats. A lock on the requests
// to cancel holds up no heartbeat.
func TestLockedTablesAgeNoLease(t *testing.T) {
	t.Parallel()
	for _, locked := range []string{"job_lease IN EXCLUSIVE MODE", "job_lease IN ACCESS EXCLUSIVE MODE", "job_running IN ACCESS EXCLUSIVE MODE", "job_cancel IN ACCESS EXCLUSIVE MODE"} {
		t.Run(locked, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.New(t)
			makeRoom(t, pool)
			const jobs = 10
			var runs, cut atomic.Int64
			release := make(chan struct{})
			o := handler("locked", func(ctx context.Context, _ *simplequeue.Job) error {
				runs.Add(1)
				select {
				case <-release:
				case <-ctx.Done():
					cut.Add(1)
				}
				return context.Cause(ctx)
			})
			o.HeartbeatInterval = 800 * time.Millisecond
			q := newQueue(t, pool, o)
			start(t, q)
			if _, err := q.InsertMany(t.Context(), repeat(jobs, simplequeue.NewJob{Queue: "locked"})); err != nil {
				t.Fatal(err)
			}
			eventually(t, "all have a lease", func() bool {
				var n int
				return pool.QueryRow(t.Context(), "SELECT count(*) FROM simplequeue.job_lease").Scan(&n) == nil && n == jobs
			})
			unlock := lock(t, pool, "simplequeue."+locked)
			time.Sleep(3 * o.HeartbeatInterval * 5 / 2) // leases
			var unlocked time.Time
			if err := pool.QueryRow(t.Context(), "SELECT clock_timestamp()").Scan(&unlocked); err != nil {
				t.Fatal(err)
			}
			unlock()
			eventually(t, "sweeps go on for longer than a lease", func() bool {
				var after bool
				err := pool.QueryRow(t.Context(), "SELECT swept_at > $1::timestamptz + interval '3 seconds' FROM simplequeue.job_sweep WHERE name = 'reaper'", unlocked).Scan(&after)
				return err == nil && after
			})
			if n := cut.Load(); n != 0 {
				t.Errorf("the contexts of %d handlers ended, want none", n)
			}
			close(release)
			eventually(t, "all are done", func() bool { return counts(t, q, "locked")[simplequeue.StateCompleted] == jobs })
			var again int
			err := pool.QueryRow(t.Context(), "SELECT count(*) FROM simplequeue.job_queue_archive WHERE attempt <> 1 OR crash_count <> 0").Scan(&again)
			if err != nil || again != 0 || runs.Load() != jobs {
				t.Errorf("%d jobs took another attempt, %v, and handlers ran %d times, want none and %d", again, err, runs.Load(), jobs)
			}
			if s := q.Stats(); s.Reaped != 0 || s.LeasesLost != 0 {
				t.Errorf("reaped %d, leases lost %d, want none", s.Reaped, s.LeasesLost)
			}
		})
	}
}

// A server that refuses nothing but heartbeats is one that others can reach:
// after a lease the worker takes its leases for lost, and says so.
func TestRefusedHeartbeatsEndTheHandlers(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	cause := make(chan error, 10)
	over := make(chan struct{})
	q := newQueue(t, pool, briefLeases(handler("refused", func(ctx context.Context, _ *simplequeue.Job) error {
		select {
		case <-ctx.Done():
			cause <- context.Cause(ctx)
		case <-over: // it runs again
		}
		return ctx.Err()
	})))
	start(t, q)
	t.Cleanup(func() { close(over) })
	insert(t, q, simplequeue.NewJob{Queue: "refused"})
	eventually(t, "a heartbeat is written", func() bool {
		var n int
		return pool.QueryRow(t.Context(), "SELECT count(*) FROM simplequeue.job_lease").Scan(&n) == nil && n == 1
	})
	tx, err := pool.Begin(t.Context())
	if err == nil {
		_, err = tx.Exec(t.Context(), "SELECT FROM simplequeue.job_lease FOR UPDATE")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	select {
	case err := <-cause:
		if !errors.Is(err, simplequeue.ErrLeaseLost) {
			t.Errorf("the handler's context ended by %v, want %v", err, simplequeue.ErrLeaseLost)
		}
	case <-time.After(15 * time.Second):
		t.Error("the handler goes on without a lease")
	}
}

// Timeouts that the role or the database sets for its statements do not reach
// the engine's, and a job may run for longer than a transaction may idle.
func TestTimeoutsOfTheDatabaseDoNotReachTheEngine(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	free := pgtest.Pool(t, url, 4)
	makeRoom(t, free)
	for _, set := range []string{
		"statement_timeout = '150ms'", "lock_timeout = '100ms'", "idle_in_transaction_session_timeout = '150ms'",
		"default_transaction_isolation = 'serializable'",
	} {
		name := free.Config().ConnConfig.Database
		if _, err := free.Exec(t.Context(), "ALTER DATABASE "+name+" SET "+set); err != nil {
			t.Fatal(err)
		}
	}
	o := handler("tight", func(ctx context.Context, job *simplequeue.Job) error {
		if job.Kind == "long" {
			time.Sleep(3 * time.Second)
		}
		return nil
	})
	o.HeartbeatInterval = 800 * time.Millisecond
	q := newQueue(t, pgtest.Pool(t, url, 2), o)
	start(t, q)
	ins := newQueue(t, free, simplequeue.Options{PollOnly: true}) // all on the connection from before
	if _, err := ins.InsertMany(t.Context(), append(repeat(200, simplequeue.NewJob{Queue: "tight"}), repeat(5, simplequeue.NewJob{Queue: "tight", Kind: "long"})...)); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		unlock := lock(t, free, "simplequeue.job_running IN EXCLUSIVE MODE") // claims and outcomes wait
		time.Sleep(300 * time.Millisecond)
		unlock()
	}
	eventually(t, "all are done", func() bool { return counts(t, ins, "tight")[simplequeue.StateCompleted] == 205 })
	var again int
	if err := free.QueryRow(t.Context(), "SELECT count(*) FROM simplequeue.job_queue_archive WHERE attempt <> 1").Scan(&again); err != nil || again != 0 {
		t.Errorf("%d jobs took another attempt, %v, want none", again, err)
	}
	if s := q.Stats(); s.LeasesLost != 0 {
		t.Errorf("%d leases lost, want none", s.LeasesLost)
	}
}

// Contexts of callers that end at any moment leak no connection.
func TestCancelledCallsLeakNoConnection(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{})
	id := insert(t, q, simplequeue.NewJob{Queue: "leak"})
	for i := range 150 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*40*time.Microsecond)
		_, _ = q.Insert(ctx, simplequeue.NewJob{Queue: "leak"})
		_, _ = q.Insert(ctx, simplequeue.NewJob{Queue: "leak", UniqueKey: "k"})
		_, _ = q.Get(ctx, id)
		_, _ = q.Cancel(ctx, id, "")
		_, _ = q.Count(ctx, simplequeue.Filter{})
		cancel()
	}
	eventually(t, "the pool is idle", func() bool { s := pool.Stat(); return s.AcquiredConns() == 0 && s.ConstructingConns() == 0 })
	insert(t, q, simplequeue.NewJob{Queue: "leak"})
}

// Many jobs leave nothing in use: no slot, no permit, no lease.
func TestManyJobsLeaveNothingBehind(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	const batch, batches = 5000, 4
	o := handler("many", func(context.Context, *simplequeue.Job) error { return nil })
	o.Retention.Archive = simplequeue.KeepNothing
	q := newQueue(t, pool, o)
	start(t, q)
	for i := range batches {
		if _, err := q.InsertMany(t.Context(), repeat(batch, simplequeue.NewJob{Queue: "many"})); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the batch is done", func() bool { return q.Stats().Completed == int64((i+1)*batch) })
	}
	eventually(t, "all permits are free", func() bool { return idle(q, 500) })
	s := q.Stats()
	if s.Running != 0 || s.FreePermits != 500 || s.Queues["many"].InFlight != 0 || s.LeasesLost != 0 {
		t.Errorf("after %d jobs: %+v, want nothing in use", batch*batches, s)
	}
}

// An idle worker asks little, and writes its registration rarely.
func TestIdleWorkerIsQuiet(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	makeRoom(t, pool)
	q := newQueue(t, pool, handler("idle", func(context.Context, *simplequeue.Job) error { return nil }))
	start(t, q)
	eventually(t, "it is registered", func() bool {
		var n int
		return pool.QueryRow(t.Context(), "SELECT count(*) FROM simplequeue.job_worker").Scan(&n) == nil && n == 1
	})
	seen := func() (at time.Time) {
		if err := pool.QueryRow(t.Context(), "SELECT seen_at FROM simplequeue.job_worker").Scan(&at); err != nil {
			t.Fatal(err)
		}
		return at
	}
	before := seen()
	time.Sleep(1500 * time.Millisecond)
	if after := seen(); after != before {
		t.Errorf("registered again after %v, want every half minute", after.Sub(before))
	}
}
