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
	"github.com/simplequeue/simplequeue/backoff"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// record notes the order in which jobs start, by what tells them apart.
type record struct {
	mu    sync.Mutex
	order []string
}

func (r *record) add(s string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.order = append(r.order, s)
}

func (r *record) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.order)
}

// TestOrderIsPriorityThenEntry: with one permit, jobs start by priority, and
// inside a priority in the order in which they were inserted, however they were.
func TestOrderIsPriorityThenEntry(t *testing.T) {
	t.Parallel()
	var ran record
	opts := handler("o", func(_ context.Context, job *simplequeue.Job) error {
		ran.add(job.Kind)
		return nil
	})
	opts.QueuePermits = 1
	pool := pgtest.New(t)
	q := newQueue(t, pool, opts)
	var want [10][]string
	n := 0
	next := func() simplequeue.NewJob {
		n++
		job := simplequeue.NewJob{Queue: "o", Kind: strconv.Itoa(n), Priority: n * 7 % 10}
		if n%5 == 0 {
			job.UniqueKey = job.Kind
		}
		want[job.Priority] = append(want[job.Priority], job.Kind)
		return job
	}
	for range 10 {
		var many []simplequeue.NewJob
		for range 20 {
			many = append(many, next())
		}
		if _, err := q.InsertMany(t.Context(), many); err != nil {
			t.Fatal(err)
		}
		insert(t, q, next())
		if err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
			_, err := q.InsertTx(t.Context(), tx, next())
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	start(t, q)
	eventually(t, "all jobs have run", func() bool { return len(ran.all()) == n })
	if got := ran.all(); !slices.Equal(got, slices.Concat(want[:]...)) {
		t.Errorf("ran in the order\n%v, want\n%v", got, slices.Concat(want[:]...))
	}
}

// TestJobsInsertedOneByOneRunOneByOne: a job whose insert began after another's
// commit does not start before it, while the queue is running.
func TestJobsInsertedOneByOneRunOneByOne(t *testing.T) {
	t.Parallel()
	for _, pollOnly := range []bool{false, true} {
		t.Run(fmt.Sprintf("pollOnly=%t", pollOnly), func(t *testing.T) {
			t.Parallel()
			var ran record
			opts := handler("o", func(_ context.Context, job *simplequeue.Job) error {
				ran.add(job.Kind)
				return nil
			})
			opts.QueuePermits, opts.PollOnly, opts.PollInterval = 1, pollOnly, 20*time.Millisecond
			pool := pgtest.New(t)
			q, inserter := newQueue(t, pool, opts), newQueue(t, pool, simplequeue.Options{PollOnly: pollOnly})
			start(t, q)
			var want []string
			for i := range 200 {
				want = append(want, strconv.Itoa(i))
				insert(t, []*simplequeue.SimpleQueue{q, inserter}[i%2], simplequeue.NewJob{Queue: "o", Kind: want[i]})
			}
			eventually(t, "all jobs have run", func() bool { return len(ran.all()) == len(want) })
			if got := ran.all(); !slices.Equal(got, want) {
				t.Errorf("ran in the order %v", got)
			}
		})
	}
}

// TestRetriedJobGoesToTheEnd: a retry enters its lane anew, behind what was there.
func TestRetriedJobGoesToTheEnd(t *testing.T) {
	t.Parallel()
	var ran record
	opts := handler("o", func(_ context.Context, job *simplequeue.Job) error {
		ran.add(fmt.Sprintf("%s/%d", job.Kind, job.Attempt))
		if job.Kind == "0" && job.Attempt == 1 {
			return errors.New("again")
		}
		return nil
	})
	opts.QueuePermits, opts.Backoff = 1, backoff.Constant(0)
	q := newQueue(t, pgtest.New(t), opts)
	var jobs []simplequeue.NewJob
	for i := range 50 {
		jobs = append(jobs, simplequeue.NewJob{Queue: "o", Kind: strconv.Itoa(i)})
	}
	if _, err := q.InsertMany(t.Context(), jobs); err != nil {
		t.Fatal(err)
	}
	start(t, q)
	eventually(t, "all jobs have run", func() bool { return len(ran.all()) == 51 })
	if got := ran.all(); got[0] != "0/1" || got[50] != "0/2" {
		t.Errorf("ran in the order %v, want 0/1 first and 0/2 last", got)
	}
}

// TestInterruptedJobComesBackFirst: a job that a stop interrupts has used no
// attempt, and starts before all others in the next process.
func TestInterruptedJobComesBackFirst(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	begun := make(chan struct{})
	opts := handler("o", func(ctx context.Context, _ *simplequeue.Job) error {
		close(begun)
		<-ctx.Done()
		return ctx.Err()
	})
	opts.QueuePermits, opts.Stop.Drain = 1, -1
	first := newQueue(t, pool, opts)
	var jobs []simplequeue.NewJob
	for i := range 20 {
		jobs = append(jobs, simplequeue.NewJob{Queue: "o", Kind: strconv.Itoa(i), Priority: i % 2})
	}
	if _, err := first.InsertMany(t.Context(), jobs); err != nil {
		t.Fatal(err)
	}
	stop := start(t, first)
	<-begun
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if s := first.Stats(); s.GivenBack != 1 || s.Retried != 0 {
		t.Errorf("stats of the first process: %+v, want one job given back", s)
	}

	var ran record
	opts = handler("o", func(_ context.Context, job *simplequeue.Job) error {
		ran.add(fmt.Sprintf("%s/%d", job.Kind, job.Attempt))
		return nil
	})
	opts.QueuePermits = 1
	start(t, newQueue(t, pool, opts))
	eventually(t, "all jobs have run", func() bool { return len(ran.all()) == len(jobs) })
	if got := ran.all(); got[0] != "0/1" || got[1] != "2/1" {
		t.Errorf("ran in the order %v, want 0/1, 2/1 first", got)
	}
}

// TestLateCommitIsFound: the jobs of a transaction that commits after a
// thousand later ones have been claimed are found all the same: in a lane that
// has run empty, and in one that never does.
func TestLateCommitIsFound(t *testing.T) {
	t.Parallel()
	for _, busy := range []bool{false, true} {
		for _, pollOnly := range []bool{false, true} {
			t.Run(fmt.Sprintf("busy=%t pollOnly=%t", busy, pollOnly), func(t *testing.T) {
				t.Parallel()
				testLateCommit(t, busy, pollOnly)
			})
		}
	}
}

func testLateCommit(t *testing.T, busy, pollOnly bool) {
	pool := pgtest.New(t)
	var done atomic.Int64
	opts := handler("o", func(context.Context, *simplequeue.Job) error {
		done.Add(1)
		return nil
	})
	opts.PollOnly = pollOnly
	q := newQueue(t, pool, opts)

	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }() // after the commit it does nothing
	late, err := q.InsertManyTx(t.Context(), tx, slices.Repeat([]simplequeue.NewJob{{Queue: "o"}}, 3))
	if err != nil {
		t.Fatal(err)
	}
	start(t, q)
	batch := slices.Repeat([]simplequeue.NewJob{{Queue: "o"}}, 1000)
	put := func() {
		if _, err := q.InsertMany(t.Context(), batch); err != nil {
			t.Error(err)
		}
	}
	put()
	eventually(t, "the later jobs have run", func() bool { return done.Load() == 1000 })
	if busy {
		stop := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			for inserted := int64(1000); ; {
				if inserted-done.Load() < 2000 {
					put()
					inserted += 1000
				}
				select {
				case <-stop:
					return
				case <-time.After(time.Millisecond):
				}
			}
		})
		defer wg.Wait()
		defer close(stop)
		eventually(t, "the watermark has moved on", func() bool { return done.Load() > 4000 })
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	ids := []uuid.UUID{late[0].ID, late[1].ID, late[2].ID}
	eventually(t, "the late jobs have run", func() bool {
		n, err := q.Count(t.Context(), simplequeue.Filter{IDs: ids, States: []simplequeue.State{simplequeue.StateCompleted}})
		return err == nil && n[simplequeue.StateCompleted] == 3
	})
}
