package simplequeue_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/backoff"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// untouched fails the test unless all n jobs of a queue are runnable or running
// and none has lost an attempt.
func untouched(t *testing.T, pool *pgxpool.Pool, queue string, n int) {
	t.Helper()
	good := scalar[int](t, pool, `
		SELECT count(*) FROM simplequeue.job
		WHERE queue = $1 AND reprocess_count = 0 AND crash_count = 0
		  AND (state = 'pending' AND attempt = 0 OR state = 'running' AND attempt = 1)`, queue)
	if good != n {
		t.Errorf("%d of %d jobs of %s are as they were inserted", good, n, queue)
	}
}

// TestSaturatedQueueLosesNoAttempt: a queue with one permit, taken by a long
// job, costs none of the 999 jobs behind it an attempt, and its neighbour
// nothing.
func TestSaturatedQueueLosesNoAttempt(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	var began atomic.Int64
	finish := make(chan struct{})
	opts := simplequeue.Options{
		Handlers: []simplequeue.Handler{
			simplequeue.HandlerFunc("full", func(context.Context, *simplequeue.Job) error { began.Add(1); <-finish; return nil }),
			simplequeue.HandlerFunc("free", nothing),
		},
		Queues:     map[string]simplequeue.QueueOptions{"full": {Permits: 1}},
		PermitWait: 20 * time.Millisecond, PollInterval: 20 * time.Millisecond,
	}
	q := newQueue(t, pool, opts)
	if _, err := q.InsertMany(t.Context(), slices.Repeat([]simplequeue.NewJob{{Queue: "full", MaxAttempts: 1}}, 1000)); err != nil {
		t.Fatal(err)
	}
	start(t, q)
	eventually(t, "the long job runs", func() bool { return began.Load() == 1 })
	for range 10 {
		if _, err := q.InsertMany(t.Context(), slices.Repeat([]simplequeue.NewJob{{Queue: "free"}}, 100)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Millisecond) // longer than a poll and a permit's wait
	}
	eventually(t, "the neighbour's jobs are done", func() bool { return q.Stats().Completed == 1000 })
	untouched(t, pool, "full", 1000)
	if s := q.Stats(); s.Claimed != 1001 || s.GivenBack != 0 || s.DeadLettered != 0 {
		t.Errorf("claimed %d, given back %d, dead-lettered %d, want 1001, 0, 0", s.Claimed, s.GivenBack, s.DeadLettered)
	}
	close(finish)
	eventually(t, "the queue drains", func() bool { return counts(t, q, "full")[simplequeue.StateCompleted] == 1000 })
}

// TestParkedQueuesLeaveAFreeQueueItsSpeed: five queues whose handlers' permits
// grant nothing do not slow a sixth, and none of their jobs loses anything.
func TestParkedQueuesLeaveAFreeQueueItsSpeed(t *testing.T) {
	t.Parallel()
	const free, each = 2000, 500
	parked := []string{"p1", "p2", "p3", "p4", "p5"}
	var waits atomic.Int64
	never := permitted{simplequeue.HandlerFunc("", nothing), func(ctx context.Context, _ *simplequeue.Job) (func(), error) {
		waits.Add(1)
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	run := func(pool *pgxpool.Pool) *simplequeue.SimpleQueue {
		q := newQueue(t, pool, simplequeue.Options{Handlers: []simplequeue.Handler{
			simplequeue.HandlerFunc("free", nothing), simplequeue.ServeQueues(never, parked...),
		}})
		start(t, q)
		return q
	}
	// Both at once, so that a busy machine slows both.
	besidePool := pgtest.New(t)
	beside, alone := run(besidePool), run(pgtest.New(t))
	for _, queue := range parked {
		if _, err := beside.InsertMany(t.Context(), slices.Repeat([]simplequeue.NewJob{{Queue: queue, MaxAttempts: 1}}, each)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the parked queues wait", func() bool { return waits.Load() >= int64(len(parked)) })
	began := time.Now()
	for range free / 100 {
		for _, q := range []*simplequeue.SimpleQueue{beside, alone} {
			if _, err := q.InsertMany(t.Context(), slices.Repeat([]simplequeue.NewJob{{Queue: "free"}}, 100)); err != nil {
				t.Fatal(err)
			}
		}
	}
	var slow, fast time.Duration
	eventually(t, "the free queues are done", func() bool {
		if slow == 0 && beside.Stats().Completed == free {
			slow = time.Since(began)
		}
		if fast == 0 && alone.Stats().Completed == free {
			fast = time.Since(began)
		}
		return slow > 0 && fast > 0
	})
	if slow > 3*fast {
		t.Errorf("beside parked queues %v, alone %v: more than three times as long", slow, fast)
	}
	for _, queue := range parked {
		untouched(t, besidePool, queue, each)
	}
}

// TestFailingQueueLeavesItsNeighbourAlone: a queue whose jobs fail, panic and
// come back all the time does not keep another from its work.
func TestFailingQueueLeavesItsNeighbourAlone(t *testing.T) {
	t.Parallel()
	var failures atomic.Int64
	opts := simplequeue.Options{
		Handlers: []simplequeue.Handler{
			simplequeue.HandlerFunc("failing", func(context.Context, *simplequeue.Job) error {
				if failures.Add(1)%2 == 0 {
					panic("oh")
				}
				return errors.New("broke")
			}),
			simplequeue.HandlerFunc("free", nothing),
		},
		Backoff: backoff.Constant(time.Millisecond), QueuePermits: 20, GlobalPermits: 40,
	}
	q := newQueue(t, pgtest.New(t), opts)
	start(t, q)
	if _, err := q.InsertMany(t.Context(), slices.Repeat([]simplequeue.NewJob{{Queue: "failing", MaxAttempts: 1 << 20}}, 300)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "jobs fail", func() bool { return failures.Load() > 300 })
	for range 10 {
		if _, err := q.InsertMany(t.Context(), slices.Repeat([]simplequeue.NewJob{{Queue: "free"}}, 100)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the neighbour's jobs are done", func() bool { return q.Stats().Completed == 1000 })
	if s := q.Stats(); s.DeadLettered != 0 {
		t.Errorf("%d failing jobs dead-lettered, want none", s.DeadLettered)
	}
}

// TestJobsThatCannotRunDoNotHideThoseThatCan: a saturated queue, a queue that
// nobody serves and jobs of unknown kinds, all first in order and many, do not
// keep ten jobs from running.
func TestJobsThatCannotRunDoNotHideThoseThatCan(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	fill(t, pool, "aaa unserved", "", 0, 100_000)
	fill(t, pool, "bbb full", "", 0, 20_000)
	fill(t, pool, "ccc", "unknown", 0, 3_000)
	fill(t, pool, "ccc", "known", 1, 10)
	fill(t, pool, "ddd", "", 9, 10)
	finish := make(chan struct{})
	var full, ran gauge
	free := func(context.Context, *simplequeue.Job) error { ran.enter(); return nil }
	q := newQueue(t, pool, simplequeue.Options{
		Handlers: []simplequeue.Handler{
			simplequeue.HandlerFunc("bbb full", func(context.Context, *simplequeue.Job) error { full.enter(); <-finish; return nil }),
			simplequeue.NewMux("ccc").HandleFunc("known", free),
			simplequeue.HandlerFunc("ddd", free),
		},
		QueuePermits: 50,
	})
	start(t, q)
	defer close(finish)
	eventually(t, "all that can run has run", func() bool { return ran.now.Load() == 20 && full.now.Load() == 50 })
	// The outcomes are written after the handlers have returned.
	eventually(t, "the unknown ones are parked", func() bool { s := q.Stats(); return s.Parked == 3000 && s.Completed == 20 })
	if s := q.Stats(); s.Claimed != 3000+20+50 || s.GivenBack != 0 {
		t.Errorf("claimed %d, given back %d, want 3070 and 0", s.Claimed, s.GivenBack)
	}
	untouched(t, pool, "aaa unserved", 100_000)
	untouched(t, pool, "bbb full", 20_000)
}

// TestHandlersCannotStarveTheEngine: handlers that use up the caller's pool,
// however small it is, get their jobs done.
func TestHandlersCannotStarveTheEngine(t *testing.T) {
	t.Parallel()
	for size := range int32(4) {
		t.Run(fmt.Sprintf("pool of %d", size+1), func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t, pgtest.Database(t), size+1)
			opts := handler("q", func(ctx context.Context, _ *simplequeue.Job) error {
				conn, err := pool.Acquire(ctx)
				if err != nil {
					return err
				}
				_, err = conn.Exec(ctx, "SELECT pg_sleep(0.002)")
				conn.Release()
				if err != nil {
					return err
				}
				_, err = simplequeue.FromContext(ctx).Insert(ctx, simplequeue.NewJob{Queue: "follow-up"})
				return err
			})
			q := newQueue(t, pool, opts)
			start(t, q)
			const n = 100
			if _, err := q.InsertMany(t.Context(), slices.Repeat([]simplequeue.NewJob{{Queue: "q", MaxAttempts: 1}}, n)); err != nil {
				t.Fatal(err)
			}
			eventually(t, "all jobs are done", func() bool { return q.Stats().Completed == n })
			if got := counts(t, q, "follow-up")[simplequeue.StatePending]; got != n {
				t.Errorf("%d follow-ups, want %d", got, n)
			}
		})
	}
}
