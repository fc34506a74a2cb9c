package simplequeue_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// sentAtOnce is a pool on which each transaction is one message, so that an
// answer which is lost is that of the whole.
func sentAtOnce(t *testing.T, url string) *pgxpool.Pool {
	t.Helper()
	config, err := pgxpool.ParseConfig(url + "&default_query_exec_mode=exec")
	if err != nil {
		t.Fatal(err)
	}
	config.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { return false }
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// waiting counts the statements that wait for a lock, of those with a text.
func waiting(t *testing.T, pool *pgxpool.Pool, text string) (n int) {
	t.Helper()
	err := pool.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
		AND pid <> pg_backend_pid() AND wait_event_type = 'Lock' AND query LIKE '%' || $1 || '%'`, text).Scan(&n)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// awaitWoken inserts a job that a worker, once it listens, runs at once.
func awaitWoken(t *testing.T, ins *simplequeue.SimpleQueue, queue string) {
	t.Helper()
	awaitState(t, ins, insert(t, ins, simplequeue.NewJob{Queue: queue}), simplequeue.StateCompleted)
}

// The answer to a settle is lost, though it has committed: the outcome is
// written again, which changes nothing, and counts once.
func TestLostAnswerToASettleIsMadeGood(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	direct := pgtest.Pool(t, url, 4)
	makeRoom(t, direct)
	proxy := pgtest.NewProxy(t, url)
	var runs atomic.Int64
	q := newQueue(t, sentAtOnce(t, proxy.URL()), handler("lost", func(context.Context, *simplequeue.Job) error { runs.Add(1); return nil }))
	start(t, q)
	ins := newQueue(t, direct, simplequeue.Options{})
	unlock := lock(t, direct, "simplequeue.job_queue_archive IN EXCLUSIVE MODE")
	id := insert(t, ins, simplequeue.NewJob{Queue: "lost", MaxAttempts: 1})
	eventually(t, "the outcome is being written", func() bool { return waiting(t, direct, "WITH moved AS") == 1 })
	proxy.DropReplies()
	unlock()
	awaitState(t, ins, id, simplequeue.StateCompleted)
	proxy.Heal()
	eventually(t, "the outcome is confirmed", func() bool { s := q.Stats(); return s.Completed+s.LeasesLost == 1 })
	if s := q.Stats(); s.Completed != 1 || s.LeasesLost != 0 || runs.Load() != 1 {
		t.Errorf("completed %d, leases lost %d, %d runs, want 1, 0, 1", s.Completed, s.LeasesLost, runs.Load())
	}
}

// The answer to a claim is lost, though it has committed: the worker finds the
// jobs and starts them, without using another attempt.
func TestLostAnswerToAClaimIsMadeGood(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	direct := pgtest.Pool(t, url, 4)
	makeRoom(t, direct)
	proxy := pgtest.NewProxy(t, url)
	var runs atomic.Int64
	o := handler("lost", func(context.Context, *simplequeue.Job) error { runs.Add(1); return nil })
	o.PollInterval = time.Minute // only wake-ups make claims
	q := newQueue(t, sentAtOnce(t, proxy.URL()), o)
	start(t, q)
	ins := newQueue(t, direct, simplequeue.Options{})
	awaitWoken(t, ins, "lost")
	unlock := lock(t, direct, "simplequeue.job_running IN EXCLUSIVE MODE")
	id := insert(t, ins, simplequeue.NewJob{Queue: "lost", MaxAttempts: 1})
	eventually(t, "the claim waits", func() bool { return waiting(t, direct, "FROM unnest($5::integer[]") == 1 })
	proxy.DropReplies()
	unlock()
	awaitState(t, ins, id, simplequeue.StateRunning)
	if n := runs.Load(); n != 1 {
		t.Errorf("the handler has run %d times, want 1: the second claim's answer was lost", n)
	}
	proxy.Heal()
	if got := awaitState(t, ins, id, simplequeue.StateCompleted); got.Attempt != 1 || got.CrashCount != 0 || runs.Load() != 2 {
		t.Errorf("attempt %d, crash count %d, %d runs, want 1, 0, 2", got.Attempt, got.CrashCount, runs.Load())
	}
}

// A claim whose connection has broken may commit later than its owner looks for
// it: the server goes on with what it was sent. The owner looks again.
func TestClaimThatCommitsAfterItsConnectionBrokeIsAdopted(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	direct := pgtest.Pool(t, url, 4)
	makeRoom(t, direct)
	proxy := pgtest.NewProxy(t, url)
	o := handler("late", func(context.Context, *simplequeue.Job) error { return nil })
	o.PollInterval = time.Minute // only wake-ups make claims
	q := newQueue(t, sentAtOnce(t, proxy.URL()), o)
	start(t, q)
	ins := newQueue(t, direct, simplequeue.Options{})
	awaitWoken(t, ins, "late")
	unlock := lock(t, direct, "simplequeue.job_running IN EXCLUSIVE MODE")
	id := insert(t, ins, simplequeue.NewJob{Queue: "late", MaxAttempts: 1})
	eventually(t, "the claim waits", func() bool { return waiting(t, direct, "FROM unnest($5::integer[]") == 1 })
	proxy.Cut()
	time.Sleep(1500 * time.Millisecond) // the driver asks in vain to cancel the statement
	proxy.Heal()
	// Before it claims again the poller has looked for its claim, in vain.
	eventually(t, "another claim waits", func() bool { return waiting(t, direct, "FROM unnest($5::integer[]") == 2 })
	unlock()
	got := awaitState(t, ins, id, simplequeue.StateCompleted)
	if got.Attempt != 1 || got.CrashCount != 0 {
		t.Errorf("attempt %d, crash count %d, want 1 and 0: no worker was lost", got.Attempt, got.CrashCount)
	}
}
