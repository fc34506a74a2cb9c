package simplequeue_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// batches are options with a batch handler.
func batches(queue string, size int, wait time.Duration, process func(ctx context.Context, jobs []*simplequeue.Job) error) simplequeue.Options {
	return simplequeue.Options{Handlers: []simplequeue.Handler{simplequeue.Batch(queue, size, wait, process)}}
}

// A thousand jobs run in batches of the size that was asked for, each once and
// each with the outcome that is its own.
func TestBatchSettlesEachJob(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	const many, size = 1000, 50
	var mu sync.Mutex
	var sizes []int
	ran := map[uuid.UUID]int{}
	q := newQueue(t, pool, batches("a", size, 5*time.Second, func(ctx context.Context, jobs []*simplequeue.Job) error {
		mu.Lock()
		sizes = append(sizes, len(jobs))
		mu.Unlock()
		errs := make(simplequeue.BatchErrors, len(jobs))
		for i, job := range jobs {
			mu.Lock()
			ran[job.ID]++
			mu.Unlock()
			switch n, _ := strconv.Atoi(job.Kind); {
			case job.Attempt > 1:
				errs[i] = job.SetResult("second")
			case n%10 == 1:
				errs[i] = simplequeue.Critical(errors.New("critical"))
			case n%10 == 2:
				errs[i] = simplequeue.RetryAfter(0, errors.New("retry"))
			case n%10 == 3:
				errs[i] = simplequeue.RescheduleAfter(time.Hour)
			case n%10 == 4:
				errs[i] = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return job.CompleteTx(ctx, tx) })
			default:
				errs[i] = job.SetResult(n)
			}
		}
		return errs
	}))
	jobs := make([]simplequeue.NewJob, many)
	for i := range jobs {
		jobs[i] = simplequeue.NewJob{Queue: "a", Kind: strconv.Itoa(i)}
	}
	results, err := q.InsertMany(t.Context(), jobs)
	if err != nil {
		t.Fatal(err)
	}
	start(t, q)
	eventually(t, "all are settled", func() bool {
		c := counts(t, q, "a")
		return c[simplequeue.StateCompleted] == many*8/10 && c[simplequeue.StateCritical] == many/10 && c[simplequeue.StateWaiting] == many/10
	})
	mu.Lock()
	defer mu.Unlock()
	if slices.Max(sizes) != size || len(sizes) > many/size*2 {
		t.Errorf("batches of %v", sizes)
	}
	for i, r := range results {
		want := 1
		if i%10 == 2 {
			want = 2
		}
		if ran[r.ID] != want {
			t.Fatalf("job %d ran %d times", i, ran[r.ID])
		}
	}
	for i := range 10 {
		info := get(t, q, results[i].ID)
		want := map[int]string{1: "", 2: `"second"`, 3: "", 4: ""}
		if text, ok := want[i]; string(info.Result) != text && ok || !ok && string(info.Result) != strconv.Itoa(i) {
			t.Errorf("job %d: result %s", i, info.Result)
		}
	}
}

// A batch as large as can be does not wait for jobs that no permit is left for,
// nor, at a stop, for jobs that do not come.
func TestBatchDoesNotWaitInVain(t *testing.T) {
	t.Parallel()
	sizes := make(chan int, 100)
	o := batches("a", 100, time.Hour, func(_ context.Context, jobs []*simplequeue.Job) error {
		sizes <- len(jobs)
		return nil
	})
	o.QueuePermits = 4
	q := newQueue(t, pgtest.New(t), o)
	stop := start(t, q)
	if _, err := q.InsertMany(t.Context(), repeat(8, simplequeue.NewJob{Queue: "a"})); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if n := <-sizes; n != 4 {
			t.Errorf("a batch of %d where there are 4 permits", n)
		}
	}
	id := insert(t, q, simplequeue.NewJob{Queue: "a"})
	eventually(t, "it waits for others", func() bool { return q.Stats().Queues["a"].Running == 1 })
	if err := stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	if s := state(t, q, id); s != simplequeue.StateCompleted {
		t.Errorf("the job that waited for others is %s after the stop", s)
	}
}

// What happens to one job of a batch while it runs happens to that job: it is
// cancelled, or has lost its lease, and the others complete.
func TestOneJobOfABatch(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	var calls atomic.Int64
	running := make(chan struct{})
	o := batches("a", 3, 10*time.Second, func(ctx context.Context, jobs []*simplequeue.Job) error {
		if calls.Add(1) > 1 {
			return nil
		}
		close(running)
		errs := make(simplequeue.BatchErrors, len(jobs))
		for i, job := range jobs {
			if job.Kind == "others" {
				if simplequeue.JobFromContext(ctx) != nil || simplequeue.FromContext(ctx) == nil {
					errs[i] = errors.New("the context of a batch is of one of its jobs")
				}
				simplequeue.Logger(ctx).Info("a batch")
				continue
			}
			<-job.Context().Done()
			if simplequeue.JobFromContext(job.Context()) != job {
				errs[i] = simplequeue.Critical(errors.New("the context of a job is another one's"))
				continue
			}
			errs[i] = context.Cause(job.Context())
		}
		if ctx.Err() != nil {
			return fmt.Errorf("the context of the batch has ended: %w", context.Cause(ctx))
		}
		return errs
	})
	q := newQueue(t, pool, briefLeases(o))
	ids := map[string]uuid.UUID{}
	for _, kind := range []string{"cancelled", "lost", "others"} {
		ids[kind] = insert(t, q, simplequeue.NewJob{Queue: "a", Kind: kind, MaxAttempts: 2})
	}
	start(t, q)
	<-running
	if _, err := q.Cancel(t.Context(), ids["cancelled"], "enough"); err != nil {
		t.Fatal(err)
	}
	execute(t, pool, fmt.Sprintf("DELETE FROM simplequeue.job_running WHERE id = '%v'", ids["lost"]))
	awaitState(t, q, ids["others"], simplequeue.StateCompleted)
	awaitState(t, q, ids["cancelled"], simplequeue.StateCancelled)
	if got := state(t, q, ids["lost"]); got != "" {
		t.Errorf("the job whose lease was lost is %s", got)
	}
	if n := q.Stats().LeasesLost; n != 1 {
		t.Errorf("%d leases lost, want 1", n)
	}
}

// A batch that panics is a failed attempt of each of its jobs, which come alone
// then: only the one whose fault it is fails for good.
func TestBatchThatPanics(t *testing.T) {
	t.Parallel()
	q := newQueue(t, pgtest.New(t), batches("a", 10, 10*time.Second, func(_ context.Context, jobs []*simplequeue.Job) error {
		for _, job := range jobs {
			if job.Kind == "bad" {
				panic("oh")
			}
			if job.Attempt > 1 && len(jobs) > 1 {
				return simplequeue.Critical(errors.New("the second attempt is not alone"))
			}
		}
		return nil
	}))
	var ids []uuid.UUID
	for i := range 10 {
		job := simplequeue.NewJob{Queue: "a", MaxAttempts: 2}
		if i == 5 {
			job.Kind = "bad"
		}
		ids = append(ids, insert(t, q, job))
	}
	start(t, q)
	for i, id := range ids {
		want := simplequeue.StateCompleted
		if i == 5 {
			want = simplequeue.StateFailed
		}
		info := awaitState(t, q, id, want)
		if info.Attempt != 2 || len(info.Errors) == 0 || info.Errors[0].Error != "panic: oh" {
			t.Errorf("job %d: attempt %d, errors %+v", i, info.Attempt, info.Errors)
		}
	}
	eventually(t, "all permits are free", func() bool { return q.Stats().Running == 0 })
}

// A stop cancels a batch as it cancels a job: its jobs are given back without an
// attempt. One that times out is a failed attempt of each.
func TestBatchStopsAndTimesOut(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	running := make(chan struct{}, 10)
	o := batches("a", 3, 10*time.Second, func(ctx context.Context, jobs []*simplequeue.Job) error {
		running <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	})
	o.Stop.Drain = -1
	q := newQueue(t, pool, o)
	if _, err := q.InsertMany(t.Context(), repeat(3, simplequeue.NewJob{Queue: "a", Timeout: 3 * time.Second, MaxAttempts: 1})); err != nil {
		t.Fatal(err)
	}
	stop := start(t, q)
	eventually(t, "three have timed out", func() bool { return counts(t, q, "a")[simplequeue.StateFailed] == 3 })
	list, err := q.List(t.Context(), simplequeue.Filter{Queue: "a"})
	if err != nil {
		t.Fatal(err)
	}
	for _, info := range list {
		if want := simplequeue.ErrTimeout.Error() + ": " + context.DeadlineExceeded.Error(); info.LastError() != want {
			t.Errorf("error %q, want %q", info.LastError(), want)
		}
	}
	<-running
	if _, err := q.InsertMany(t.Context(), repeat(3, simplequeue.NewJob{Queue: "a"})); err != nil {
		t.Fatal(err)
	}
	<-running
	if err := stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	if c := counts(t, q, "a"); c[simplequeue.StatePending] != 3 {
		t.Errorf("after the stop: %v, want 3 given back", c)
	}
	if n := used(t, pool); n != 0 {
		t.Errorf("%d have used an attempt", n)
	}
}

// A batch whose function ignores its context holds the permits of all its jobs
// until it returns, and what it returns then changes nothing: the jobs have
// failed, and run elsewhere meanwhile.
func TestBatchThatIsStuck(t *testing.T) {
	t.Parallel()
	var calls atomic.Int64
	release := make(chan struct{})
	o := batches("a", 3, 10*time.Second, func(context.Context, []*simplequeue.Job) error {
		if calls.Add(1) == 1 {
			<-release
			return simplequeue.Critical(errors.New("too late"))
		}
		return nil
	})
	o.Timeout, o.StuckAfter = time.Second, 50*time.Millisecond // all three have come by then
	q := newQueue(t, pgtest.New(t), o)
	results, err := q.InsertMany(t.Context(), repeat(3, simplequeue.NewJob{Queue: "a", MaxAttempts: 1}))
	if err != nil {
		t.Fatal(err)
	}
	start(t, q)
	for _, r := range results {
		awaitState(t, q, r.ID, simplequeue.StateFailed)
	}
	eventually(t, "three are stuck", func() bool { return q.Stats().Stuck == 3 })
	if s := q.Stats(); s.Running != 3 || s.Queues["a"].Running != 3 {
		t.Errorf("running %d, permits taken %d, want 3 each", s.Running, s.Queues["a"].Running)
	}
	close(release)
	eventually(t, "its permits are free", func() bool { s := q.Stats(); return s.Running == 0 && s.Stuck == 0 })
	for _, r := range results {
		if s := state(t, q, r.ID); s != simplequeue.StateFailed {
			t.Errorf("then a job is %s", s)
		}
	}
}
