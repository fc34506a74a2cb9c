package simplequeue_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// briefStop bounds the phases of a stop to 300 ms each.
var briefStop = simplequeue.StopTimeouts{Drain: 300 * time.Millisecond, Cancel: 300 * time.Millisecond, Flush: 300 * time.Millisecond}

// stopLimit is the promise: the three phases, and three seconds.
const stopLimit = 900*time.Millisecond + 3*time.Second

// stopTimed stops a queue and checks how long that took.
func stopTimed(t *testing.T, stop func() error) error {
	t.Helper()
	began := time.Now()
	err := stop()
	if took := time.Since(began); took > stopLimit {
		t.Errorf("Run returned %v after its context ended, want at most %v", took, stopLimit)
	}
	return err
}

// A clean stop lets what runs finish, writes all of it, and gives back what has
// not begun without using an attempt.
func TestCleanStopWritesAllAndUsesNoAttempt(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	var began, ended atomic.Int64
	o := handler("clean", func(context.Context, *simplequeue.Job) error {
		began.Add(1)
		time.Sleep(30 * time.Millisecond)
		ended.Add(1)
		return nil
	})
	o.QueuePermits = 20
	q := newQueue(t, pool, o)
	const many = 400
	if _, err := q.InsertMany(t.Context(), repeat(many, simplequeue.NewJob{Queue: "clean"})); err != nil {
		t.Fatal(err)
	}
	stop := start(t, q)
	eventually(t, "some jobs run", func() bool { return ended.Load() > 50 })
	if err := stop(); err != nil {
		t.Errorf("Run: %v, want nil after a clean stop", err)
	}
	if began.Load() != ended.Load() {
		t.Errorf("%d handlers began, %d ended", began.Load(), ended.Load())
	}
	c := counts(t, q, "clean")
	if c[simplequeue.StateCompleted] != ended.Load() || c[simplequeue.StatePending] != many-ended.Load() || len(c) != 2 {
		t.Errorf("after %d handlers: %v, want as many completed and the others pending", ended.Load(), c)
	}
	if n := used(t, pool); n != 0 {
		t.Errorf("%d pending jobs have used an attempt", n)
	}
	if s := q.Stats(); s.Running != 0 || s.Completed != ended.Load() {
		t.Errorf("running %d, completed %d, want 0 and %d", s.Running, s.Completed, ended.Load())
	}
}

func repeat(n int, job simplequeue.NewJob) []simplequeue.NewJob {
	jobs := make([]simplequeue.NewJob, n)
	for i := range jobs {
		jobs[i] = job
	}
	return jobs
}

// used counts the pending jobs that have used an attempt or count a crash.
func used(t *testing.T, pool *pgxpool.Pool) (n int) {
	t.Helper()
	err := pool.QueryRow(context.Background(), "SELECT count(*) FROM simplequeue.job WHERE state IN ('pending', 'running') AND (attempt > 0 OR crash_count > 0)").Scan(&n)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// A handler that returns when its context ends is told ErrShutdown, after the
// time to drain, and its job is given back as if it had not been claimed.
func TestHandlerThatObeysTheStopUsesNoAttempt(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	cause := make(chan error, 1)
	o := handler("obeys", func(ctx context.Context, _ *simplequeue.Job) error {
		<-ctx.Done()
		cause <- context.Cause(ctx)
		return fmt.Errorf("interrupted: %w", ctx.Err())
	})
	o.Stop.Drain = briefStop.Drain
	q := newQueue(t, pool, o)
	stop := start(t, q)
	id := insert(t, q, simplequeue.NewJob{Queue: "obeys", MaxAttempts: 1})
	eventually(t, "the handler runs", func() bool { return q.Stats().Queues["obeys"].Running == 1 })
	if err := stopTimed(t, stop); err != nil {
		t.Errorf("Run: %v, want nil", err)
	}
	if err := <-cause; !errors.Is(err, simplequeue.ErrShutdown) {
		t.Errorf("cause %v, want %v", err, simplequeue.ErrShutdown)
	}
	if got := get(t, q, id); got.State != simplequeue.StatePending || got.Attempt != 0 || len(got.Errors) != 0 {
		t.Errorf("%s, attempt %d, errors %+v, want pending with no attempt used", got.State, got.Attempt, got.Errors)
	}
}

// A handler that ignores its context does not hold up the stop: Run returns on
// time and says so, the job is given back and can run elsewhere, and what the
// handler returns in the end changes nothing.
func TestHungHandlerIsAbandoned(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	release, returned := make(chan struct{}), make(chan struct{})
	o := handler("hangs", func(context.Context, *simplequeue.Job) error {
		defer close(returned)
		<-release
		return simplequeue.Critical(errors.New("far too late"))
	})
	o.Stop = briefStop
	o.Stop.Flush = 3 * time.Second // at most: it ends when the job is given back
	q := newQueue(t, pool, o)
	stop := start(t, q)
	id := insert(t, q, simplequeue.NewJob{Queue: "hangs", MaxAttempts: 1})
	eventually(t, "the handler runs", func() bool { return q.Stats().Queues["hangs"].Running == 1 })
	var left *simplequeue.StopError
	if err := stopTimed(t, stop); !errors.As(err, &left) || *left != (simplequeue.StopError{GivenBack: 1}) {
		t.Errorf("Run: %v, want 1 job given back whose handler still runs", err)
	}
	if s := q.Stats(); s.Stuck != 1 {
		t.Errorf("stuck: %d, want 1", s.Stuck)
	}
	if got := get(t, q, id); got.State != simplequeue.StatePending || got.Attempt != 0 {
		t.Errorf("%s, attempt %d, want pending with no attempt used", got.State, got.Attempt)
	}
	next := newQueue(t, pool, handler("hangs", func(context.Context, *simplequeue.Job) error { return nil }))
	start(t, next)
	awaitState(t, next, id, simplequeue.StateCompleted)
	close(release)
	<-returned
	eventually(t, "the handler is no longer stuck", func() bool { s := q.Stats(); return s.Stuck == 0 && s.Running == 0 })
	if got := get(t, q, id); got.State != simplequeue.StateCompleted || got.Attempt != 1 {
		t.Errorf("after the late return: %s, attempt %d, want completed on attempt 1", got.State, got.Attempt)
	}
}

// A handler that does not return is reported by Run also where its job was settled
// without it: given up as stuck, or lost with its lease.
func TestStopReportsHandlersWhoseJobsTheyNoLongerHold(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"stuck", "lost"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.New(t)
			release := make(chan struct{})
			o := briefLeases(handler("hangs", func(context.Context, *simplequeue.Job) error { <-release; return nil }))
			o.Stop, o.StuckAfter = briefStop, -1
			o.Stop.Flush = 3 * time.Second
			if how == "stuck" {
				o.StuckAfter = 10 * time.Millisecond
			}
			q := newQueue(t, pool, o)
			stop := start(t, q)
			defer close(release)
			id := insert(t, q, simplequeue.NewJob{Queue: "hangs", MaxAttempts: 1})
			eventually(t, "the handler runs", func() bool { return q.Stats().Running == 1 })
			if how == "stuck" {
				if _, err := q.Cancel(t.Context(), id, ""); err != nil {
					t.Fatal(err)
				}
				awaitState(t, q, id, simplequeue.StateCancelled)
			} else {
				if _, err := pool.Exec(t.Context(), "DELETE FROM simplequeue.job_running"); err != nil {
					t.Fatal(err)
				}
				eventually(t, "the lease is lost", func() bool { return q.Stats().LeasesLost == 1 })
			}
			var left *simplequeue.StopError
			if err := stopTimed(t, stop); !errors.As(err, &left) || *left != (simplequeue.StopError{GivenUp: 1}) {
				t.Errorf("Run: %v, want 1 handler that was given up and still runs", err)
			}
		})
	}
}

// Run returns on time whatever has become of the database, with jobs running,
// outcomes unwritten and a handler that hangs. What could not be written runs
// again, once the leases are over.
func TestStopReturnsOnTimeWhateverTheDatabaseDoes(t *testing.T) {
	t.Parallel()
	for name, breakIt := range map[string]func(t *testing.T, proxy *pgtest.Proxy, direct *pgxpool.Pool) (heal func()){
		"hung": func(_ *testing.T, proxy *pgtest.Proxy, _ *pgxpool.Pool) func() { proxy.Blackhole(); return proxy.Heal },
		"dead": func(_ *testing.T, proxy *pgtest.Proxy, _ *pgxpool.Pool) func() { proxy.Cut(); return proxy.Heal },
		"deaf": func(_ *testing.T, proxy *pgtest.Proxy, _ *pgxpool.Pool) func() {
			proxy.DropReplies()
			return proxy.Heal
		},
		"locked": func(t *testing.T, _ *pgtest.Proxy, direct *pgxpool.Pool) func() {
			return lock(t, direct, "simplequeue.job_running, simplequeue.job_queue, simplequeue.job_worker IN ACCESS EXCLUSIVE MODE")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := pgtest.Database(t)
			direct := pgtest.Pool(t, url, 4)
			proxy := pgtest.NewProxy(t, url)
			release := make(chan struct{})
			var panics atomic.Bool
			o := briefLeases(handler("stop", func(ctx context.Context, job *simplequeue.Job) error {
				if job.Kind == "hangs" {
					<-release
					return nil
				}
				<-ctx.Done()
				if panics.CompareAndSwap(false, true) {
					panic("in the dark")
				}
				return nil
			}))
			o.Stop = briefStop
			q := newQueue(t, pgtest.Pool(t, proxy.URL(), 4), o)
			stop := start(t, q)
			ins := newQueue(t, direct, simplequeue.Options{})
			jobs := append(repeat(10, simplequeue.NewJob{Queue: "stop", MaxAttempts: 5}), simplequeue.NewJob{Queue: "stop", Kind: "hangs", MaxAttempts: 5})
			if _, err := ins.InsertMany(t.Context(), jobs); err != nil {
				t.Fatal(err)
			}
			eventually(t, "all run", func() bool { return q.Stats().Queues["stop"].Running == len(jobs) })
			heal := breakIt(t, proxy, direct)
			var left *simplequeue.StopError
			if err := stopTimed(t, stop); !errors.As(err, &left) || left.Unsettled == 0 {
				t.Errorf("Run: %v, want jobs that are not settled", err)
			}
			if s := q.Stats(); s.Running != 1 {
				t.Errorf("%d slots in use after the stop, want that of the hung handler", s.Running)
			}
			heal()
			close(release)
			after := newQueue(t, direct, briefLeases(handler("stop", func(context.Context, *simplequeue.Job) error { return nil })))
			start(t, after)
			eventually(t, "all jobs are done", func() bool {
				return counts(t, after, "stop")[simplequeue.StateCompleted] == int64(len(jobs))
			})
		})
	}
}

// briefLeases makes a job's lease two seconds, so that tests need not wait for
// long, unless the test has chosen another. A machine that is busy with other
// tests keeps no shorter one.
func briefLeases(o simplequeue.Options) simplequeue.Options {
	if o.HeartbeatInterval == 0 {
		o.HeartbeatInterval, o.ReaperInterval = 800*time.Millisecond, cmp.Or(o.ReaperInterval, 200*time.Millisecond)
	}
	return o
}

// lock locks tables until unlock is called, or the test ends. It takes them one
// after the other, so it may be the victim of a deadlock with the engine's
// statements: then it starts again.
func lock(t *testing.T, pool *pgxpool.Pool, tables string) (unlock func()) {
	t.Helper()
	var tx pgx.Tx
	eventually(t, "locked "+tables, func() bool {
		var err error
		if tx, err = pool.Begin(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err = tx.Exec(t.Context(), "LOCK TABLE "+tables); err == nil {
			return true
		}
		_ = tx.Rollback(t.Context())
		if sqlState(err) != "40P01" {
			t.Fatal(err)
		}
		return false
	})
	unlock = sync.OnceFunc(func() { _ = tx.Rollback(context.Background()) })
	t.Cleanup(unlock)
	return unlock
}

// A stop is on time even when the buffer for outcomes is full, because none can
// be written, and a handler hangs whose job is to be given back.
func TestStopReturnsOnTimeWithAFullBuffer(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	makeRoom(t, pool)
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	o := handler("full", func(_ context.Context, job *simplequeue.Job) error {
		if job.Kind == "hangs" {
			<-release
		}
		return nil
	})
	o.GlobalPermits, o.Stop = 3, briefStop
	q := newQueue(t, pool, o)
	stop := start(t, q)
	insert(t, q, simplequeue.NewJob{Queue: "full", Kind: "hangs"})
	eventually(t, "the handler runs", func() bool { return q.Stats().Running == 1 })
	unlock := lock(t, pool, "simplequeue.job_queue_archive IN ACCESS EXCLUSIVE MODE")
	defer unlock()
	if _, err := q.InsertMany(t.Context(), repeat(50, simplequeue.NewJob{Queue: "full"})); err != nil {
		t.Fatal(err)
	}
	// One batch on its way, three outcomes in the buffer, two jobs before it.
	eventually(t, "the buffer is full", func() bool { s := q.Stats(); return s.Claimed >= 7 && s.Running == 3 })
	var left *simplequeue.StopError
	if err := stopTimed(t, stop); !errors.As(err, &left) || left.Unsettled == 0 {
		t.Errorf("Run: %v, want jobs that are not settled", err)
	}
}

// Run is called once, and wants a schema.
func TestRunRefusesToBeRunTwiceOrWithoutASchema(t *testing.T) {
	t.Parallel()
	nothing := handler("q", func(context.Context, *simplequeue.Job) error { return nil })
	q := newQueue(t, pgtest.New(t), nothing)
	stop := start(t, q)
	eventually(t, "Run is going", func() bool { return q.Health().OK })
	if err := q.Run(t.Context()); !errors.Is(err, simplequeue.ErrRunning) {
		t.Errorf("a second Run: %v, want %v", err, simplequeue.ErrRunning)
	}
	if err := stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	if err := q.Run(t.Context()); !errors.Is(err, simplequeue.ErrRunning) {
		t.Errorf("Run after Run: %v, want %v", err, simplequeue.ErrRunning)
	}
	if h := q.Health(); h.OK {
		t.Error("Health is green after Run has returned")
	}
	bare := newQueue(t, pgtest.Pool(t, pgtest.EmptyDatabase(t), 2), nothing)
	if err := bare.Run(t.Context()); !errors.Is(err, simplequeue.ErrSchema) {
		t.Errorf("Run without a schema: %v, want %v", err, simplequeue.ErrSchema)
	}
}

// A stop before the database has ever answered ends the waiting for it.
func TestStopWhileWaitingForTheDatabase(t *testing.T) {
	t.Parallel()
	proxy := pgtest.NewProxy(t, pgtest.Database(t))
	proxy.Cut()
	q := newQueue(t, pgtest.Pool(t, proxy.URL(), 2), handler("q", func(context.Context, *simplequeue.Job) error { return nil }))
	stop := start(t, q)
	time.Sleep(100 * time.Millisecond)
	if err := stopTimed(t, stop); !errors.Is(err, context.Canceled) && err == nil {
		t.Errorf("Run: %v, want an error that says that it was stopped first", err)
	}
}

// After Run has returned the engine has no connection, so it asks nothing more,
// and no goroutine of it is left.
func TestNothingIsLeftAfterRun(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	observer := pgtest.Pool(t, url, 2)
	pool, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	q := newQueue(t, pool, handler("q", func(context.Context, *simplequeue.Job) error { return nil }))
	stop := start(t, q)
	if _, err := q.InsertMany(t.Context(), repeat(100, simplequeue.NewJob{Queue: "q"})); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all are done", func() bool { return q.Stats().Completed == 100 })
	if err := stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	pool.Close()
	eventually(t, "no connection is left", func() bool {
		var n int
		err := observer.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity
			WHERE datname = current_database() AND pid <> pg_backend_pid()
			AND pid NOT IN (SELECT unnest($1::integer[]))`, pids(t, observer)).Scan(&n)
		if err != nil {
			t.Fatal(err)
		}
		return n == 0
	})
	var workers int
	if err := observer.QueryRow(t.Context(), "SELECT count(*) FROM simplequeue.job_worker").Scan(&workers); err != nil || workers != 0 {
		t.Errorf("%d workers registered, %v, want none", workers, err)
	}
	stacks := make([]byte, 4<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	for g := range strings.SplitSeq(string(stacks), "\n\n") {
		if strings.Contains(g, fmt.Sprintf("%p", q)) {
			t.Errorf("a goroutine is left:\n%s", g)
		}
	}
}

// pids are the backends of a pool's idle connections.
func pids(t *testing.T, pool *pgxpool.Pool) (list []int32) {
	t.Helper()
	for _, c := range pool.AcquireAllIdle(t.Context()) {
		list = append(list, int32(c.Conn().PgConn().PID()))
		c.Release()
	}
	return list
}
