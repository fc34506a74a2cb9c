package simplequeue_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// While a queue is paused nothing of it starts and other queues go on; resumed,
// everything runs at once, without another wake-up: also what polling alone
// hears of.
func TestPauseHoldsAQueueAndLosesNothing(t *testing.T) {
	t.Parallel()
	for _, pollOnly := range []bool{false, true} {
		pool := pgtest.New(t)
		var ran atomic.Int64
		opts := handler("a", func(context.Context, *simplequeue.Job) error { ran.Add(1); return nil })
		opts.Handlers = append(opts.Handlers, simplequeue.HandlerFunc("b*", func(context.Context, *simplequeue.Job) error { return nil }))
		opts.PollOnly, opts.PollInterval = pollOnly, 24*time.Hour // no poll finds what a wake-up has missed
		if pollOnly {
			opts.PollInterval = 50 * time.Millisecond
		}
		q := newQueue(t, pool, opts)
		other := newQueue(t, pool, simplequeue.Options{PollOnly: pollOnly})
		start(t, q)
		awaitState(t, q, insert(t, q, simplequeue.NewJob{Queue: "a"}), simplequeue.StateCompleted)
		for round := range 3 {
			if err := other.Drain(t.Context(), "a", "maintenance"); err != nil {
				t.Fatal(err)
			}
			before := ran.Load()
			for range 10 {
				insert(t, []*simplequeue.SimpleQueue{q, other}[round%2], simplequeue.NewJob{Queue: "a"})
			}
			insert(t, q, simplequeue.NewJob{Queue: "a", Delay: time.Millisecond})
			awaitState(t, q, insert(t, q, simplequeue.NewJob{Queue: "b1"}), simplequeue.StateCompleted)
			eventually(t, "the delayed job is due", func() bool {
				return queryOne[int](t, pool, "SELECT count(*) FROM simplequeue.job_queue WHERE queue = 'a'") == 11
			})
			if ran.Load() != before {
				t.Errorf("%d jobs ran while the queue was paused", ran.Load()-before)
			}
			if err := other.Resume(t.Context(), "a"); err != nil {
				t.Fatal(err)
			}
			eventually(t, "all run when the queue is resumed", func() bool { return ran.Load() == before+11 })
		}
	}
}

// Drain waits for what runs, and says what it waits for when its context ends.
func TestDrainWaitsForRunningJobs(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	running, finish := make(chan struct{}), make(chan struct{})
	q := newQueue(t, pool, handler("a", func(context.Context, *simplequeue.Job) error {
		running <- struct{}{}
		<-finish
		return nil
	}))
	start(t, q)
	id := insert(t, q, simplequeue.NewJob{Queue: "a"})
	<-running
	// A drain that is given up says what it waited for.
	giveUp := func(want string) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		gaveUp := make(chan error, 1)
		go func() { gaveUp <- q.Drain(ctx, "a", "") }()
		select { // a second or more of looks; none may find it drained
		case err := <-gaveUp:
			t.Errorf("Drain returned: %v", err)
		case <-time.After(1500 * time.Millisecond):
		}
		cancel()
		if err := <-gaveUp; !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), want) {
			t.Errorf("Drain: %v, want %q in it", err, want)
		}
	}
	giveUp("1 jobs ran")
	done := make(chan error, 1)
	go func() { done <- q.Drain(context.Background(), "a", "") }()
	close(finish)
	if err := <-done; err != nil {
		t.Errorf("Drain: %v", err)
	}
	if got := state(t, q, id); got != simplequeue.StateCompleted {
		t.Errorf("when the queue is drained the job is %s", got)
	}

	// A worker that has not noted the pause keeps a drain from ending.
	if _, err := pool.Exec(t.Context(), `INSERT INTO simplequeue.job_worker (worker_id, name, queues)
		VALUES (gen_random_uuid(), 'deaf', '{a*}'), (gen_random_uuid(), 'elsewhere', '{b,ab*}')`); err != nil {
		t.Fatal(err)
	}
	giveUp("1 workers")
	if _, err := pool.Exec(t.Context(), "UPDATE simplequeue.job_worker SET seen_at = now() - interval '80 seconds' WHERE name = 'deaf'"); err != nil {
		t.Fatal(err)
	}
	if err := q.Drain(t.Context(), "a", ""); err != nil {
		t.Errorf("Drain when the deaf worker has gone: %v", err)
	}
	go func() { done <- q.Drain(context.Background(), "a", "") }()
	if err := <-done; err != nil {
		t.Errorf("Drain of a drained queue: %v", err)
	}
}

// Names that no queue can have are refused; a queue that is not paused can be
// resumed.
func TestPauseChecksNames(t *testing.T) {
	t.Parallel()
	q := newQueue(t, pgtest.New(t), simplequeue.Options{})
	for _, name := range []string{"", "a*", "a\x00", strings.Repeat("a", 129)} {
		var invalid *simplequeue.InvalidFilterError
		if err := q.Pause(t.Context(), name, ""); !errors.As(err, &invalid) {
			t.Errorf("Pause(%q): %v", name, err)
		}
		if err := q.Resume(t.Context(), name); !errors.As(err, &invalid) {
			t.Errorf("Resume(%q): %v", name, err)
		}
	}
	if err := q.Resume(t.Context(), "a"); err != nil {
		t.Error(err)
	}
	if err := q.Pause(t.Context(), "a", "\x00"+strings.Repeat("x", 1<<20)); err != nil {
		t.Error(err)
	}
}

// Jobs that Claim has taken while a Drain did not see them do not reach the
// caller.
func TestDrainStopsAClaimThatIsUnderWay(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{})
	id := insert(t, q, simplequeue.NewJob{Queue: "a"})
	tx, err := pool.Begin(t.Context())
	if err == nil {
		_, err = tx.Exec(t.Context(), "LOCK TABLE simplequeue.job_queue IN SHARE MODE") // Drain reads it
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	type answer struct {
		leases []*simplequeue.Lease
		err    error
	}
	claimed := make(chan answer, 1)
	go func() {
		leases, err := q.Claim(t.Context(), "a", 1, time.Minute)
		claimed <- answer{leases, err}
	}()
	eventually(t, "the claim waits", func() bool {
		return queryOne[int](t, pool, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'") == 1
	})
	if err := q.Drain(t.Context(), "a", "test"); err != nil {
		t.Fatal(err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if a := <-claimed; a.err != nil || len(a.leases) != 0 {
		t.Errorf("%d jobs claimed from a drained queue, %v", len(a.leases), a.err)
	}
	if s := state(t, q, id); s != simplequeue.StatePending {
		t.Errorf("state %s, want %s", s, simplequeue.StatePending)
	}
}
