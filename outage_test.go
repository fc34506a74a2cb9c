//go:build unix

package simplequeue_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// outage is how long the database is away under load: several leases. With
// SIMPLEQUEUE_TEST_LONG=1 in the environment it is a minute.
const (
	outage       = 8 * time.Second
	longOutage   = 60 * time.Second
	longVariable = "SIMPLEQUEUE_TEST_LONG"
)

func init() {
	// A worker that tells, whenever asked, what it has done and what that cost.
	scenarios["outage"] = func(w *workerProcess) {
		var ended atomic.Int64
		release := make(chan struct{})
		q := w.queue(simplequeue.Options{
			HeartbeatInterval: 2 * time.Second,
			Handlers: []simplequeue.Handler{simplequeue.HandlerFunc("outage", func(ctx context.Context, job *simplequeue.Job) error {
				if job.Kind == "long" {
					select {
					case <-release:
					case <-ctx.Done():
						return context.Cause(ctx)
					}
				} else {
					time.Sleep(10 * time.Millisecond)
				}
				ended.Add(1)
				return nil
			})},
		})
		go func() { w.say("error: Run: %v", q.Run(context.Background())) }()
		for w.in.Scan() {
			if w.in.Text() == "release" {
				close(release)
			}
			var use syscall.Rusage
			_ = syscall.Getrusage(syscall.RUSAGE_SELF, &use)
			s, h := q.Stats(), q.Health()
			cpu := time.Duration(use.Utime.Nano() + use.Stime.Nano())
			w.say("state %v %d %d %d %d %s", h.OK, cpu.Milliseconds(), ended.Load(), s.Reaped, s.LeasesLost, strings.Join(h.Problems, "; "))
		}
		os.Exit(0)
	}
}

// workerState is what a worker of the scenario says about itself.
type workerState struct {
	healthy             bool
	cpu                 time.Duration
	ended, reaped, lost int
}

func ask(t *testing.T, p *process, word string) (s workerState) {
	t.Helper()
	if _, err := p.in.Write([]byte(word + "\n")); err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(p.await(t, "state"))
	number := func(i int) int { n, _ := strconv.Atoi(f[i]); return n }
	return workerState{f[0] == "true", time.Duration(number(1)) * time.Millisecond, number(2), number(3), number(4)}
}

// The database is away for many leases, under load: no lease ages, no attempt
// is used, no outcome is lost or written twice, the worker waits without a busy
// loop, says that it is not well, and serves again within five seconds.
func TestOutageUnderLoadCostsNothing(t *testing.T) {
	t.Parallel()
	away := outage
	if os.Getenv(longVariable) != "" {
		away = longOutage
	}
	server := pgtest.OwnServer(t, nil)
	pgtest.Migrated(t, server.URL())
	pool := pgtest.Pool(t, server.URL(), 4)
	q := newQueue(t, pool, simplequeue.Options{})
	const long, quick = 20, 3000
	if _, err := q.InsertMany(t.Context(), repeat(long, simplequeue.NewJob{Queue: "outage", Kind: "long"})); err != nil {
		t.Fatal(err)
	}
	if _, err := q.InsertMany(t.Context(), repeat(quick, simplequeue.NewJob{Queue: "outage"})); err != nil {
		t.Fatal(err)
	}
	p := startProcess(t, "outage", server.URL(), "")
	eventually(t, "jobs end", func() bool { return ask(t, p, "state").ended > 200 })
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second) // handlers come to their end meanwhile
	before, began := ask(t, p, "state"), time.Now()
	eventually(t, "health turns red", func() bool { return !ask(t, p, "state").healthy })
	if red := time.Since(began); red > 6*time.Second {
		t.Errorf("health turned red after %v", red)
	}
	time.Sleep(away - time.Second - time.Since(began))
	after, spent := ask(t, p, "state"), time.Since(began)
	if share := float64(after.cpu-before.cpu) / float64(spent); share > 0.25 {
		t.Errorf("the worker used %.0f %% of a core while the database was away, want at most 25 %%", 100*share)
	}
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	back := time.Now()
	eventually(t, "jobs end again", func() bool { return ask(t, p, "state").ended > after.ended })
	if took := time.Since(back); took > 5*time.Second {
		t.Errorf("serving again %v after the return of the database, want at most 5 s", took)
	}
	time.Sleep(6 * time.Second) // a lease: what was to be reaped would be by now
	ask(t, p, "release")
	eventually(t, "all jobs are done", func() bool { return counts(t, q, "outage")[simplequeue.StateCompleted] == long+quick })
	var again int
	err := pool.QueryRow(t.Context(), "SELECT count(*) FROM simplequeue.job_queue_archive WHERE attempt <> 1 OR crash_count <> 0 OR errors IS NOT NULL").Scan(&again)
	if err != nil || again != 0 {
		t.Errorf("%d jobs took more than one attempt, %v, want none", again, err)
	}
	end := ask(t, p, "state")
	if end.ended != long+quick || end.reaped != 0 || end.lost != 0 {
		t.Errorf("handlers ended %d times, %d leases reaped, %d lost, want %d, 0, 0", end.ended, end.reaped, end.lost, long+quick)
	}
	eventually(t, "health turns green", func() bool { return ask(t, p, "state").healthy })
}

// Backends killed again and again under load: everything completes on its first
// attempt, once.
func TestKilledConnectionsCostNoAttempt(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	pool := pgtest.Pool(t, url, 4)
	var runs sync.Map
	q := newQueue(t, pgtest.Pool(t, url, 4), handler("term", func(_ context.Context, job *simplequeue.Job) error {
		n, _ := runs.LoadOrStore(job.ID, new(atomic.Int64))
		n.(*atomic.Int64).Add(1)
		time.Sleep(20 * time.Millisecond)
		return nil
	}))
	start(t, q)
	ins := newQueue(t, pool, simplequeue.Options{})
	const many = 3000
	if _, err := ins.InsertMany(t.Context(), repeat(many, simplequeue.NewJob{Queue: "term"})); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		time.Sleep(100 * time.Millisecond)
		if _, err := pool.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
			WHERE datname = current_database() AND pid <> pg_backend_pid()`); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all are done", func() bool { return counts(t, ins, "term")[simplequeue.StateCompleted] == many })
	var again int
	if err := pool.QueryRow(t.Context(), "SELECT count(*) FROM simplequeue.job_queue_archive WHERE attempt <> 1 OR crash_count <> 0").Scan(&again); err != nil || again != 0 {
		t.Errorf("%d jobs took more than one attempt, %v", again, err)
	}
	runs.Range(func(id, n any) bool {
		if n.(*atomic.Int64).Load() != 1 {
			t.Errorf("job %v ran %d times", id, n.(*atomic.Int64).Load())
		}
		return true
	})
	eventually(t, "the last outcomes are confirmed", func() bool { s := q.Stats(); return s.Completed+s.LeasesLost >= many })
	if s := q.Stats(); s.Completed != many || s.LeasesLost != 0 {
		t.Errorf("completed %d, leases lost %d, want %d and 0", s.Completed, s.LeasesLost, many)
	}
}

// After a failover the old address may be a standby. Its connections are not
// kept, nothing is counted against any job, outcomes wait, and work goes on as
// soon as a server there takes writes again.
func TestReadOnlyServerCostsNothingAndKeepsNoConnection(t *testing.T) {
	t.Parallel()
	server := pgtest.OwnServer(t, map[string]string{"wal_level": "replica"})
	pgtest.Migrated(t, server.URL())
	var dials atomic.Int64
	config, err := pgxpool.ParseConfig(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	config.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		dials.Add(1)
		return new(net.Dialer).DialContext(ctx, network, addr)
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	makeRoom(t, pool)
	release := make(chan struct{})
	o := handler("failover", func(ctx context.Context, _ *simplequeue.Job) error {
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
	o.HeartbeatInterval, o.QueuePermits, o.PollOnly = 2*time.Second, 5, true // a listener connects all the time
	q := newQueue(t, pool, o)
	stop := start(t, q)
	if _, err := q.InsertMany(t.Context(), repeat(20, simplequeue.NewJob{Queue: "failover", MaxAttempts: 1})); err != nil {
		t.Fatal(err)
	}
	eventually(t, "jobs run", func() bool { return q.Stats().Queues["failover"].Running == 5 })
	var dir string
	if err := pool.QueryRow(t.Context(), "SHOW data_directory").Scan(&dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "standby.signal"), nil, 0o644); err != nil {
		t.Skipf("no way into the server's folder: %v", err)
	}
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "health turns red", func() bool { return !q.Health().OK })
	before := dials.Load() // every loop has its connection by now
	eventually(t, "connections to the standby are given up", func() bool { return dials.Load() >= before+10 })
	time.Sleep(6 * time.Second) // a lease: nobody's is lost
	close(release)
	if c := counts(t, q, "failover"); c[simplequeue.StateRunning] != 5 || c[simplequeue.StatePending] != 15 {
		t.Errorf("on the standby: %v, want 5 running and 15 pending", c)
	}
	if _, err := pool.Exec(t.Context(), "SELECT pg_promote()"); err != nil {
		t.Fatal(err)
	}
	promoted := time.Now()
	eventually(t, "all are done", func() bool { return counts(t, q, "failover")[simplequeue.StateCompleted] == 20 })
	if took := time.Since(promoted); took > 10*time.Second {
		t.Errorf("done %v after the promotion, want at most 10 s", took)
	}
	eventually(t, "the last outcomes are confirmed", func() bool { s := q.Stats(); return s.Completed+s.LeasesLost >= 20 })
	if s := q.Stats(); s.Completed != 20 || s.Reaped != 0 || s.LeasesLost != 0 {
		t.Errorf("completed %d, reaped %d, leases lost %d, want 20, 0, 0", s.Completed, s.Reaped, s.LeasesLost)
	}
	if err := stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
}

// A worker cut off from the database for several leases, while others are not:
// its job runs elsewhere, there is one terminal write, the handler that goes on
// is told that the lease is lost, and its slot is freed once.
func TestCutOffWorkerLosesItsLease(t *testing.T) {
	t.Parallel()
	for _, returns := range []bool{false, true} {
		t.Run("handler returns meanwhile "+strconv.FormatBool(returns), func(t *testing.T) {
			t.Parallel()
			url := pgtest.Database(t)
			direct := pgtest.Pool(t, url, 4)
			makeRoom(t, direct)
			proxy := pgtest.NewProxy(t, url)
			running, release, cause := make(chan struct{}, 9), make(chan struct{}), make(chan error, 9)
			o := briefLeases(handler("cut", func(ctx context.Context, _ *simplequeue.Job) error {
				running <- struct{}{}
				select {
				case <-release:
					return errors.New("the stale one")
				case <-ctx.Done():
					cause <- context.Cause(ctx)
					return ctx.Err()
				}
			}))
			o.QueuePermits = 1
			q := newQueue(t, pgtest.Pool(t, proxy.URL(), 2), o)
			stop := start(t, q)
			ins := newQueue(t, direct, simplequeue.Options{})
			id := insert(t, ins, simplequeue.NewJob{Queue: "cut"})
			<-running
			proxy.Blackhole()
			next := newQueue(t, direct, briefLeases(handler("cut", func(context.Context, *simplequeue.Job) error { return nil })))
			start(t, next)
			if returns {
				close(release)
			}
			before := awaitState(t, ins, id, simplequeue.StateCompleted)
			proxy.Heal()
			if !returns {
				if err := <-cause; !errors.Is(err, simplequeue.ErrLeaseLost) {
					t.Errorf("the handler's context ended by %v, want %v", err, simplequeue.ErrLeaseLost)
				}
			}
			eventually(t, "the slot is free", func() bool { s := q.Stats(); return s.Running == 0 && s.Queues["cut"].InFlight == 0 })
			if err := stop(); err != nil {
				t.Errorf("Run: %v", err)
			}
			after := get(t, ins, id)
			if after.Attempt != 2 || after.WorkerID != before.WorkerID || after.FinishedAt != before.FinishedAt || len(after.Errors) != 1 {
				t.Errorf("after the return: attempt %d, finished %v, errors %+v, before: finished %v, want nothing changed",
					after.Attempt, after.FinishedAt, after.Errors, before.FinishedAt)
			}
			var rows int
			if err := direct.QueryRow(t.Context(), "SELECT count(*) FROM simplequeue.job WHERE id = $1", id).Scan(&rows); err != nil || rows != 1 {
				t.Errorf("%d rows of the job, %v, want 1", rows, err)
			}
		})
	}
}

// silentConns are a pool's connections, of which the one that beats falls silent
// when the test says so: the network has forgotten it, and the others are well.
type silentConns struct {
	mu    sync.Mutex
	conns []*silentConn
}

type silentConn struct {
	net.Conn
	beats, sweeps, silent atomic.Bool
}

// Sweeps beat too, for no claim.
func (c *silentConn) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte("INSERT INTO \"simplequeue\".job_lease")) {
		c.beats.Store(true)
	}
	if bytes.Contains(p, []byte("job_sweep")) {
		c.sweeps.Store(true)
	}
	if c.silent.Load() {
		return len(p), nil // lost on its way: there is nothing to read either
	}
	return c.Conn.Write(p)
}

func (s *silentConns) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	c := &silentConn{Conn: conn}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns = append(s.conns, c)
	return c, nil
}

// silence makes the connection that beats swallow what is sent, and reports
// whether there is one.
func (s *silentConns) silence() (found bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conns {
		if c.beats.Load() && !c.sweeps.Load() {
			c.silent.Store(true)
			found = true
		}
	}
	return found
}

// The connection that beats dies without a word, while others can be made: the
// next beats go by another one, and no lease is lost.
func TestSilentDeathOfTheHeartbeatsConnectionCostsNoLease(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	direct := pgtest.Pool(t, url, 4)
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	var conns silentConns
	config.ConnConfig.DialFunc = conns.dial
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	release := make(chan struct{})
	o := handler("silent", func(ctx context.Context, _ *simplequeue.Job) error {
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
	o.HeartbeatInterval = 2 * time.Second
	q := newQueue(t, pool, o)
	stop := start(t, q)
	id := insert(t, q, simplequeue.NewJob{Queue: "silent"})
	beaten := func(since time.Time) bool {
		var at time.Time
		err := direct.QueryRow(t.Context(), "SELECT beat_at FROM simplequeue.job_lease").Scan(&at)
		return err == nil && at.After(since)
	}
	eventually(t, "the job has a lease", func() bool { return beaten(time.Time{}) })
	if !conns.silence() {
		t.Error("no connection has beaten")
	}
	// Two leases from now, or the job has another worker.
	now := queryOne[time.Time](t, direct, "SELECT clock_timestamp()")
	eventually(t, "the lease is renewed for two leases", func() bool {
		return beaten(now.Add(10*time.Second)) || q.Stats().LeasesLost > 0
	})
	close(release)
	if got := awaitState(t, q, id, simplequeue.StateCompleted); got.Attempt != 1 || got.CrashCount != 0 {
		t.Errorf("attempt %d, %d crashes, want the first and none", got.Attempt, got.CrashCount)
	}
	if err := stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
}

// A panic while the database swallows everything is written when it is back; the
// queue's permit is free at once.
func TestPanicWhileTheDatabaseIsAwayFreesItsSlot(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	direct := pgtest.Pool(t, url, 2)
	makeRoom(t, direct)
	proxy := pgtest.NewProxy(t, url)
	running, release := make(chan struct{}, 1), make(chan struct{})
	o := handler("away", func(context.Context, *simplequeue.Job) error {
		running <- struct{}{}
		<-release
		panic("while nobody can be told")
	})
	o.QueuePermits = 1
	q := newQueue(t, pgtest.Pool(t, proxy.URL(), 2), o)
	start(t, q)
	ins := newQueue(t, direct, simplequeue.Options{})
	id := insert(t, ins, simplequeue.NewJob{Queue: "away", MaxAttempts: 1})
	<-running
	proxy.Blackhole()
	close(release)
	eventually(t, "the slot is free", func() bool { s := q.Stats(); return s.Running == 0 && s.Queues["away"].Running == 0 })
	if got := state(t, ins, id); got != simplequeue.StateRunning {
		t.Errorf("the job is %v while nothing can be written, want %v", got, simplequeue.StateRunning)
	}
	proxy.Heal()
	got := awaitState(t, ins, id, simplequeue.StateFailed)
	if got.Attempt != 1 || got.CrashCount != 0 || !slices.ContainsFunc(got.Errors, func(e simplequeue.AttemptError) bool {
		return strings.Contains(e.Error, "while nobody can be told")
	}) {
		t.Errorf("attempt %d, crash count %d, errors %+v, want the panic of the first attempt", got.Attempt, got.CrashCount, got.Errors)
	}
}

// A restored copy of a database in which jobs were running under workers that
// do not exist there: all of it runs.
func TestRestoredCopyRecovers(t *testing.T) {
	t.Parallel()
	f := newFenced(t, 10)
	name := "copy_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	f.pool.Close()
	admin := pgtest.Pool(t, pgtest.EmptyDatabase(t), 1)
	template := f.pool.Config().ConnConfig.Database
	var failed error
	eventually(t, "the database is copied", func() bool {
		_, err := admin.Exec(t.Context(), "CREATE DATABASE "+name+" TEMPLATE "+template)
		if err != nil && (failed == nil || err.Error() != failed.Error()) {
			t.Logf("copy: %v", err)
		}
		failed = err
		return err == nil
	})
	t.Cleanup(func() { _, _ = admin.Exec(context.Background(), "DROP DATABASE "+name+" WITH (FORCE)") })
	config := f.pool.Config()
	config.ConnConfig.Database = name
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	if _, err := pool.Exec(t.Context(), "UPDATE simplequeue.job_running SET lease_ms = 500"); err != nil { // the test's patience
		t.Fatal(err)
	}
	q := newQueue(t, pool, briefLeases(handler("fence", func(context.Context, *simplequeue.Job) error { return nil })))
	start(t, q)
	eventually(t, "all are done", func() bool { return counts(t, q, "fence")[simplequeue.StateCompleted] == 10 })
}
