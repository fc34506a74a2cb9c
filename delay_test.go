package simplequeue_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// TestDelayedJobsRunWhenDueNotBefore: by the database's clock, whatever the
// order of insert, and soon after.
func TestDelayedJobsRunWhenDueNotBefore(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	var mu sync.Mutex
	started := map[uuid.UUID]time.Time{}
	opts := handler("d", func(ctx context.Context, job *simplequeue.Job) error {
		var now time.Time
		err := pool.QueryRow(ctx, "SELECT clock_timestamp()").Scan(&now)
		mu.Lock()
		defer mu.Unlock()
		started[job.ID] = now
		return err
	})
	opts.PollInterval = time.Hour // the promoter knows of each job by itself
	q := newQueue(t, pool, opts)
	start(t, q)
	due := map[uuid.UUID]time.Time{}
	for i := range 20 {
		delay := time.Duration(i*7%20) * 40 * time.Millisecond
		job := simplequeue.NewJob{Queue: "d", Delay: delay + time.Millisecond}
		now := scalar[time.Time](t, pool, "SELECT clock_timestamp()")
		if i%2 == 0 {
			job.Delay, job.RunAt = 0, now.Add(delay)
		}
		due[insert(t, q, job)] = now.Add(delay)
	}
	past := insert(t, q, simplequeue.NewJob{Queue: "d", RunAt: time.Date(1, 1, 1, 0, 0, 0, 1, time.UTC)})
	due[past] = time.Time{}
	eventually(t, "all jobs have run", func() bool { mu.Lock(); defer mu.Unlock(); return len(started) == len(due) })
	for id, at := range due {
		if late := started[id].Sub(at); late < 0 {
			t.Errorf("job due at %v started %v early", at, -late)
		}
	}
}

// TestDelayedJobsOfOthersAreFoundByPolling: a job whose transaction said nothing
// about its delay, or whose program knows no worker, runs once it is due.
func TestDelayedJobsOfOthersAreFoundByPolling(t *testing.T) {
	t.Parallel()
	for _, pollOnly := range []bool{false, true} {
		t.Run(fmt.Sprintf("pollOnly=%t", pollOnly), func(t *testing.T) {
			t.Parallel()
			pool := pgtest.New(t)
			opts := quick(simplequeue.HandlerFunc("d", nothing))
			opts.PollOnly = pollOnly
			q := newQueue(t, pool, opts)
			start(t, q)
			inserter := newQueue(t, pool, simplequeue.Options{PollOnly: pollOnly})
			var r simplequeue.Inserted
			if err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) (err error) {
				r, err = inserter.InsertTx(t.Context(), tx, simplequeue.NewJob{Queue: "d", Delay: 100 * time.Millisecond})
				return err
			}); err != nil {
				t.Fatal(err)
			}
			info := awaitState(t, q, r.ID, simplequeue.StateCompleted)
			if waited := info.StartedAt.Sub(info.CreatedAt); waited < 100*time.Millisecond {
				t.Errorf("the job ran %v after its insert, want 100ms or more", waited)
			}
		})
	}
}

// TestDueJobsEnterInDueOrder: jobs that have become due while nobody was there
// run by priority and then in the order in which they were due.
func TestDueJobsEnterInDueOrder(t *testing.T) {
	t.Parallel()
	var ran record
	opts := handler("d", func(_ context.Context, job *simplequeue.Job) error { ran.add(job.Kind); return nil })
	opts.QueuePermits = 1
	pool := pgtest.New(t)
	q := newQueue(t, pool, opts)
	base := scalar[time.Time](t, pool, "SELECT clock_timestamp()").Add(3 * time.Second) // the insert is done by then
	var jobs []simplequeue.NewJob
	var want []string
	for n := range 50 {
		i := n * 7 % 50
		want = append(want, fmt.Sprint(n))
		jobs = append(jobs, simplequeue.NewJob{Queue: "d", Kind: fmt.Sprint(i), RunAt: base.Add(time.Duration(i) * time.Microsecond)})
	}
	jobs = append(jobs, simplequeue.NewJob{Queue: "d", Kind: "low", Priority: 9, RunAt: base})
	want = append(want, "low")
	slices.Reverse(jobs[40:])
	if _, err := q.InsertMany(t.Context(), jobs); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all are due", func() bool {
		return scalar[bool](t, pool, "SELECT clock_timestamp() > $1::timestamptz + interval '10 ms'", base)
	})
	start(t, q)
	eventually(t, "all jobs have run", func() bool { return len(ran.all()) == len(jobs) })
	if got := ran.all(); !slices.Equal(got, want) {
		t.Errorf("ran in the order %v, want %v", got, want)
	}
}

// TestThousandsDueAtOnce: more jobs than one step of the promoter takes become
// due together, with two workers, and each runs once.
func TestThousandsDueAtOnce(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	var mu sync.Mutex
	runs := map[uuid.UUID]int{}
	opts := quick(simplequeue.HandlerFunc("d", func(_ context.Context, job *simplequeue.Job) error {
		mu.Lock()
		defer mu.Unlock()
		runs[job.ID]++
		return nil
	}))
	one, two := newQueue(t, pool, opts), newQueue(t, pool, opts)
	const n = 3500
	if _, err := one.InsertMany(t.Context(), slices.Repeat([]simplequeue.NewJob{{Queue: "d", Delay: 300 * time.Millisecond}}, n)); err != nil {
		t.Fatal(err)
	}
	start(t, one)
	start(t, two)
	eventually(t, "all jobs are done", func() bool { return one.Stats().Completed+two.Stats().Completed == n })
	for id, count := range runs {
		if count != 1 {
			t.Errorf("job %v ran %d times", id, count)
		}
	}
	if len(runs) != n {
		t.Errorf("%d jobs ran, want %d", len(runs), n)
	}
}
