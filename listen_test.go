package simplequeue_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/backoff"
	"github.com/simplequeue/simplequeue/internal/pgtest"
	"github.com/simplequeue/simplequeue/migrate"
)

// deaf are options under which nothing but a wake-up makes a job start soon.
func deaf(handlers ...simplequeue.Handler) simplequeue.Options {
	return simplequeue.Options{Handlers: handlers, PollInterval: time.Hour}
}

// soon waits for a condition for a small part of the poll interval of [deaf].
func soon(t *testing.T, what string, cond func() bool) {
	t.Helper()
	eventually(t, what, cond) // two minutes of an hour
}

// listeners counts the connections that listen in a pool's database.
func listeners(t *testing.T, pool *pgxpool.Pool) int {
	t.Helper()
	return scalar[int](t, pool, `SELECT count(*) FROM pg_stat_activity
		WHERE datname = current_database() AND pid <> pg_backend_pid() AND (query LIKE 'LISTEN%' OR query LIKE '%pg_listening_channels%' OR query LIKE 'SELECT pg_notify%')
		  AND wait_event = 'ClientRead'`)
}

// TestWakeUpBetweenProcesses: an insert in a process that runs nothing, alone or
// in a transaction, starts the job in another one, long before its poll.
func TestWakeUpBetweenProcesses(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	worker := newQueue(t, pool, deaf(simplequeue.HandlerFunc("*", nothing)))
	start(t, worker)
	soon(t, "the worker listens", func() bool { return listeners(t, pool) == 1 })
	inserter := newQueue(t, pool, simplequeue.Options{})
	awaitState(t, worker, insert(t, inserter, simplequeue.NewJob{Queue: "new lane"}), simplequeue.StateCompleted)
	awaitState(t, worker, insert(t, inserter, simplequeue.NewJob{Queue: "new lane", Priority: 3, UniqueKey: "k"}), simplequeue.StateCompleted)
	var r simplequeue.Inserted
	if err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) (err error) {
		r, err = inserter.InsertTx(t.Context(), tx, simplequeue.NewJob{Queue: "tx", UniqueKey: "k"})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	awaitState(t, worker, r.ID, simplequeue.StateCompleted)

	// Too many lanes for one notification.
	var jobs []simplequeue.NewJob
	for i := range 200 {
		jobs = append(jobs, simplequeue.NewJob{Queue: strings.Repeat("long", 25) + fmt.Sprint(i)})
	}
	if _, err := inserter.InsertMany(t.Context(), jobs); err != nil {
		t.Fatal(err)
	}
	soon(t, "the jobs of 200 lanes are done", func() bool { return worker.Stats().Completed == 203 })
}

// TestListenerIsIdle: the listening connection holds no transaction, which would
// keep PostgreSQL's notification queue from being emptied.
func TestListenerIsIdle(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, deaf(simplequeue.HandlerFunc("q", nothing)))
	start(t, q)
	soon(t, "the worker listens", func() bool { return listeners(t, pool) == 1 })
	for range 20 {
		insert(t, newQueue(t, pool, simplequeue.Options{}), simplequeue.NewJob{Queue: "q"})
	}
	soon(t, "all jobs are done", func() bool { return q.Stats().Completed == 20 })
	eventually(t, "no listening connection is in a transaction", func() bool { // the last notification may still be on its way
		return scalar[int](t, pool, `SELECT count(*) FROM pg_stat_activity
			WHERE datname = current_database() AND query LIKE 'SELECT pg_notify(%' AND xact_start IS NOT NULL AND pid <> pg_backend_pid()`) == 0
	})
	if usage := scalar[float64](t, pool, "SELECT pg_notification_queue_usage()"); usage > 0.1 {
		t.Errorf("notification queue usage %v", usage)
	}
}

// TestMoreThanOneProcessCanRunWakesOthers: a process that inserts more than it
// can run itself, or is being stopped, leaves the rest to others at once.
func TestMoreThanOneProcessCanRunWakesOthers(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	begun, finish := make(chan struct{}), make(chan struct{})
	opts := deaf(simplequeue.HandlerFunc("q", func(ctx context.Context, job *simplequeue.Job) error {
		if job.Kind == "waits" {
			close(begun)
			select {
			case <-finish:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	}))
	opts.QueuePermits, opts.Stop.Drain = 1, -1
	busy := newQueue(t, pool, opts)
	stop := start(t, busy)
	id := insert(t, busy, simplequeue.NewJob{Queue: "q", Kind: "waits"})
	<-begun
	other := newQueue(t, pool, deaf(simplequeue.HandlerFunc("q", nothing)))
	start(t, other)
	soon(t, "the other listens", func() bool { return listeners(t, pool) == 2 })
	if _, err := busy.InsertMany(t.Context(), slices.Repeat([]simplequeue.NewJob{{Queue: "q"}}, 10)); err != nil {
		t.Fatal(err)
	}
	soon(t, "the other runs them", func() bool { return other.Stats().Completed == 10 })
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if info := awaitState(t, other, id, simplequeue.StateCompleted); info.Attempt != 1 {
		t.Errorf("attempt %d of the job that was given back, want 1", info.Attempt)
	}
}

// TestInsertOfManyWakesOthers: with one free permit and many jobs to insert, a
// process does not keep them to itself.
func TestInsertOfManyWakesOthers(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	finish := make(chan struct{})
	opts := deaf(simplequeue.HandlerFunc("q", func(context.Context, *simplequeue.Job) error { <-finish; return nil }))
	opts.QueuePermits = 1
	second := newQueue(t, pool, deaf(simplequeue.HandlerFunc("q", nothing)))
	start(t, second)
	awaitState(t, second, insert(t, newQueue(t, pool, simplequeue.Options{}), simplequeue.NewJob{Queue: "q"}), simplequeue.StateCompleted)
	first := newQueue(t, pool, opts)
	start(t, first)
	defer close(finish)
	soon(t, "both listen", func() bool { return listeners(t, pool) == 2 })
	time.Sleep(300 * time.Millisecond) // until the second has seen that its lane is empty
	if _, err := first.InsertMany(t.Context(), slices.Repeat([]simplequeue.NewJob{{Queue: "q"}}, 50)); err != nil {
		t.Fatal(err)
	}
	soon(t, "the second runs all but what the first holds", func() bool { return second.Stats().Completed >= 1+49 })
}

// TestKilledListenerComesBack: however often the listening connection is
// terminated, jobs inserted meanwhile are found and wake-ups arrive again.
func TestKilledListenerComesBack(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, deaf(simplequeue.HandlerFunc("q", nothing)))
	start(t, q)
	inserter := newQueue(t, pool, simplequeue.Options{PollOnly: true})
	loud := newQueue(t, pool, simplequeue.Options{})
	for range 5 {
		soon(t, "the worker listens", func() bool { return listeners(t, pool) == 1 })
		// Without a wake-up: what the listener does on its return finds it.
		id := insert(t, inserter, simplequeue.NewJob{Queue: "q"})
		if _, err := pool.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
			WHERE datname = current_database() AND pid <> pg_backend_pid() AND query LIKE 'SELECT pg_notify(%'`); err != nil {
			t.Fatal(err)
		}
		awaitState(t, q, id, simplequeue.StateCompleted)
		awaitState(t, q, insert(t, loud, simplequeue.NewJob{Queue: "q"}), simplequeue.StateCompleted)
	}
}

// TestUnreachableListenerDoesNotSpin: while no connection can be made, they are
// tried at growing intervals, and it comes back by itself.
func TestUnreachableListenerDoesNotSpin(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	proxy := pgtest.NewProxy(t, url)
	config, err := pgxpool.ParseConfig(proxy.URL())
	if err != nil {
		t.Fatal(err)
	}
	var dials atomic.Int64
	config.BeforeConnect = func(context.Context, *pgx.ConnConfig) error { dials.Add(1); return nil }
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	opts := deaf(simplequeue.HandlerFunc("q", nothing))
	opts.HeartbeatInterval, opts.JanitorInterval = time.Minute, time.Minute // quiet loops
	q := newQueue(t, pool, opts)
	start(t, q)
	direct := pgtest.Pool(t, url, 2)
	soon(t, "the worker listens", func() bool { return listeners(t, direct) == 1 })
	proxy.Cut()
	before := dials.Load()
	time.Sleep(1500 * time.Millisecond) // of outage
	if n := dials.Load() - before; n > 60 {
		t.Errorf("%d connections tried in 1.5 s", n)
	}
	proxy.Heal()
	awaitState(t, newQueue(t, direct, simplequeue.Options{}),
		insert(t, newQueue(t, direct, simplequeue.Options{}), simplequeue.NewJob{Queue: "q"}), simplequeue.StateCompleted)
}

// TestSilentListenerIsFound: a listening connection that has died without a sign
// is found by the question asked on it, and replaced.
func TestSilentListenerIsFound(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("takes ten seconds")
	}
	url := pgtest.Database(t)
	direct := pgtest.Pool(t, url, 4)
	proxy := pgtest.NewProxy(t, url)
	q := newQueue(t, pgtest.Pool(t, proxy.URL(), 4), deaf(simplequeue.HandlerFunc("q", nothing)))
	start(t, q)
	soon(t, "the worker listens", func() bool { return listeners(t, direct) == 1 })
	proxy.Blackhole()
	eventually(t, "the silence is noticed", func() bool {
		return slices.ContainsFunc(q.Health().Problems, func(p string) bool { return strings.HasPrefix(p, "listener") })
	})
	proxy.Heal()
	id := insert(t, newQueue(t, direct, simplequeue.Options{PollOnly: true}), simplequeue.NewJob{Queue: "q"})
	awaitState(t, newQueue(t, direct, simplequeue.Options{}), id, simplequeue.StateCompleted)
}

// TestPollOnlyWorksWithoutListen: nothing listens and nothing notifies, and the
// whole life of a job works, as it must behind PgBouncer in transaction mode.
func TestPollOnlyWorksWithoutListen(t *testing.T) {
	t.Parallel()
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol} {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			url := pgtest.Database(t)
			config, err := pgxpool.ParseConfig(url)
			if err != nil {
				t.Fatal(err)
			}
			config.ConnConfig.DefaultQueryExecMode = mode
			pool, err := pgxpool.NewWithConfig(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(pool.Close)
			opts := quick(simplequeue.NewMux("q").HandleFunc("k", func(_ context.Context, job *simplequeue.Job) error {
				if job.Attempt == 1 {
					return errors.New("first")
				}
				return nil
			}))
			opts.PollOnly, opts.Backoff = true, backoff.Constant(0)
			q, inserter := newQueue(t, pool, opts), newQueue(t, pool, simplequeue.Options{PollOnly: true})
			start(t, q)
			for _, job := range []simplequeue.NewJob{
				{Queue: "q", Kind: "k", Payload: map[string]string{"a": "b"}},
				{Queue: "q", Kind: "k", Raw: make([]byte, 5000), Priority: 7, UniqueKey: "u"},
				{Queue: "q", Kind: "k", Delay: time.Millisecond, Fingerprint: "f", Metadata: map[string]string{"m": "n"}},
			} {
				if info := awaitState(t, q, insert(t, inserter, job), simplequeue.StateCompleted); info.Attempt != 2 {
					t.Errorf("attempt %d, want 2", info.Attempt)
				}
			}
			awaitState(t, q, insert(t, inserter, simplequeue.NewJob{Queue: "q", Kind: "unknown"}), simplequeue.StateWaiting)
			if n := listeners(t, pool); n != 0 {
				t.Errorf("%d connections have listened or notified", n)
			}
		})
	}
}

// TestTwoSchemasInOneDatabase: queues of two schemas do not see each other, and
// a schema's name may be any identifier.
func TestTwoSchemasInOneDatabase(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	const odd = `Odd "schema" ü`
	if err := migrate.UpPool(t.Context(), pool, odd); err != nil {
		t.Fatal(err)
	}
	var ran record
	run := func(schema string) *simplequeue.SimpleQueue {
		opts := quick(simplequeue.HandlerFunc("q", func(_ context.Context, job *simplequeue.Job) error {
			ran.add(schema + " ran " + job.Kind)
			return nil
		}))
		opts.Schema = schema
		q := newQueue(t, pool, opts)
		start(t, q)
		return q
	}
	one, two := run(pgtest.Schema), run(odd)
	first := insert(t, one, simplequeue.NewJob{Queue: "q", Kind: "first", UniqueKey: "k", UniqueGlobal: true})
	second := insert(t, two, simplequeue.NewJob{Queue: "q", Kind: "second", UniqueKey: "k", UniqueGlobal: true})
	awaitState(t, one, first, simplequeue.StateCompleted)
	awaitState(t, two, second, simplequeue.StateCompleted)
	if got := state(t, one, second) + state(t, two, first); got != "" {
		t.Errorf("a job of the other schema is %s", got)
	}
	got := ran.all()
	slices.Sort(got)
	want := []string{odd + " ran second", pgtest.Schema + " ran first"}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
