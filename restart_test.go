package simplequeue_test

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// A deploy costs no attempt: workers are stopped and replaced all the time
// under a stream of jobs, while other goroutines insert through them. Each job
// completes on its first attempt, once.
func TestRollingRestartUsesNoAttempt(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	makeRoom(t, pool)
	const many = 2000
	var runs sync.Map
	var ended atomic.Int64
	o := handler("rolling", func(ctx context.Context, job *simplequeue.Job) error {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
		ended.Add(1)
		if _, twice := runs.LoadOrStore(job.ID, true); twice {
			t.Errorf("job %v came to its end twice", job.ID)
		}
		return nil
	})
	o.QueuePermits = 50
	ins := newQueue(t, pool, simplequeue.Options{})
	if _, err := ins.InsertMany(t.Context(), repeat(many/2, simplequeue.NewJob{Queue: "rolling"})); err != nil {
		t.Fatal(err)
	}
	var inserted atomic.Int64
	inserted.Store(many / 2)
	for i := 0; ended.Load() < many; i++ {
		// Half of the stops drain, the others cut in.
		if o.Stop = (simplequeue.StopTimeouts{}); i%2 == 1 {
			o.Stop.Drain = -1
		}
		q := newQueue(t, pool, o)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			eventually(t, "the worker runs", func() bool { return q.Health().OK })
			time.AfterFunc(150*time.Millisecond, cancel)
		})
		wg.Go(func() {
			for ctx.Err() == nil && inserted.Load() < many {
				if _, err := q.Insert(t.Context(), simplequeue.NewJob{Queue: "rolling"}); err != nil {
					t.Errorf("Insert: %v", err)
					return
				}
				inserted.Add(1)
			}
		})
		if err := q.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
		cancel()
		wg.Wait()
		if t.Failed() || i > 300 {
			t.Fatalf("after %d restarts: %v", i, counts(t, ins, "rolling"))
		}
	}
	var first int64
	err := pool.QueryRow(t.Context(), "SELECT count(*) FROM simplequeue.job_queue_archive WHERE attempt = 1 AND crash_count = 0").Scan(&first)
	if c := counts(t, ins, "rolling"); err != nil || c[simplequeue.StateCompleted] != many || first != many || len(c) != 1 {
		t.Errorf("%v, %d on the first attempt, %v, want all %d completed on it", c, first, err, many)
	}
}

// However a handler ends, its slots are free again, and the end is recorded.
func TestSlotsAreConservedHoweverHandlersEnd(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	o := handler("slots", func(_ context.Context, job *simplequeue.Job) error {
		switch job.Kind {
		case "error":
			return errors.New("no")
		case "panic":
			panic("oh")
		case "panic nil":
			panic(any(nil))
		case "exit":
			runtime.Goexit()
		}
		return nil
	})
	o.GlobalPermits, o.QueuePermits = 3, 2
	q := newQueue(t, pool, o)
	start(t, q)
	want := map[simplequeue.State]int64{simplequeue.StateCompleted: 20, simplequeue.StateFailed: 80}
	for _, kind := range []string{"fine", "error", "panic", "panic nil", "exit"} {
		if _, err := q.InsertMany(t.Context(), repeat(20, simplequeue.NewJob{Queue: "slots", Kind: kind, MaxAttempts: 1})); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all have ended", func() bool {
		c := counts(t, q, "slots")
		return c[simplequeue.StateCompleted] == want[simplequeue.StateCompleted] && c[simplequeue.StateFailed] == want[simplequeue.StateFailed]
	})
	eventually(t, "all slots are free", func() bool {
		s := q.Stats()
		return s.Running == 0 && s.FreePermits == 3 && s.Stuck == 0 && s.Queues["slots"].Running == 0 && s.Queues["slots"].InFlight == 0
	})
	list, err := q.List(t.Context(), simplequeue.Filter{States: []simplequeue.State{simplequeue.StateFailed}})
	if err != nil {
		t.Fatal(err)
	}
	for _, j := range list {
		if j.LastError() == "" || j.ID == uuid.Nil {
			t.Errorf("the failure of kind %s is recorded without a reason", j.Kind)
		}
	}
}
