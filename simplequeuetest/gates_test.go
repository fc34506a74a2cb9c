package simplequeuetest_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/backoff"
	"github.com/simplequeue/simplequeue/internal/pgtest"
	"github.com/simplequeue/simplequeue/simplequeuetest"
)

// beginner begins what a handler does in a transaction.
type beginner interface {
	Begin(context.Context) (pgx.Tx, error)
}

// both runs a test in a schema, and in a transaction.
func both(t *testing.T, handlers func(db beginner) []simplequeue.Handler, test func(t *testing.T, q *simplequeue.SimpleQueue)) {
	t.Helper()
	opts := simplequeue.Options{Backoff: backoff.Constant(time.Hour)}
	t.Run("in a schema", func(t *testing.T) {
		t.Parallel()
		pool := pgtest.New(t)
		opts := opts
		opts.Handlers = handlers(pool)
		test(t, newQueue(t, pool, opts))
	})
	t.Run("in a transaction", func(t *testing.T) {
		t.Parallel()
		pool := pgtest.New(t)
		tx := begin(t, pool)
		opts := opts
		opts.Handlers = handlers(tx)
		test(t, simplequeuetest.In(tx, newQueue(t, pool, opts)))
	})
}

// names are what the jobs of the outcomes have as their payloads.
func names(done []simplequeuetest.Outcome) string {
	var list []string
	for _, o := range done {
		list = append(list, strings.Trim(string(o.Payload), `"`))
	}
	return strings.Join(list, " ")
}

// Jobs of an order key run in its order, whatever becomes of the first of them,
// and before jobs of a lower priority.
func TestWorkKeepsOrder(t *testing.T) {
	t.Parallel()
	both(t, func(db beginner) []simplequeue.Handler {
		return []simplequeue.Handler{
			simplequeue.HandlerFunc("plain", func(_ context.Context, job *simplequeue.Job) error {
				if string(job.Payload) == `"a1"` && job.Attempt == 1 {
					return errBroken
				}
				return nil
			}),
			simplequeue.HandlerFunc("tail", func(_ context.Context, job *simplequeue.Job) error {
				if string(job.Payload) == `"a1"` && job.ReprocessCount == 0 {
					return simplequeue.RescheduleToTail(0)
				}
				return nil
			}),
			simplequeue.HandlerFunc("tx", func(ctx context.Context, job *simplequeue.Job) error {
				tx, err := db.Begin(ctx)
				if err != nil {
					return err
				}
				defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
				return errors.Join(job.CompleteTx(ctx, tx), tx.Commit(ctx))
			}),
		}
	}, func(t *testing.T, q *simplequeue.SimpleQueue) {
		for queue, want := range map[string][2]string{
			"plain": {"a1 b1 b2 last", "a1 a2"}, "tail": {"a1 b1 a2 b2 a1 last", ""}, "tx": {"a1 b1 a2 b2 last", ""},
		} {
			insert(t, q, simplequeue.NewJob{Queue: queue, Payload: "last", Priority: 9})
			for _, name := range []string{"a1", "a2", "b1", "b2"} {
				insert(t, q, simplequeue.NewJob{Queue: queue, Payload: name, OrderKey: name[:1]})
			}
			done := simplequeuetest.Work(t, q, queue)
			if got := names(done); got != want[0] {
				t.Errorf("%s: ran %s, want %s", queue, got, want[0])
			}
			if o := done[0]; queue == "tail" && (o.State != simplequeue.StateWaiting || o.ReprocessCount != 1 || !strings.Contains(o.Reason, "behind")) {
				t.Errorf("put off to the tail: %s, %q, %d", o.State, o.Reason, o.ReprocessCount)
			}
			simplequeuetest.Advance(t, q, time.Hour)
			if got := names(simplequeuetest.Work(t, q, queue)); got != want[1] {
				t.Errorf("%s: ran %s an hour later, want %s", queue, got, want[1])
			}
		}
		simplequeuetest.Inserted(t, q, 15, simplequeue.NewJob{})
		if c := counts(t, q); c[simplequeue.StateCompleted] != 15 {
			t.Errorf("%v", c)
		}
	})
}

// A backlog of a fairness key does not delay another, and a job with both keys
// passes both gates.
func TestWorkByTurns(t *testing.T) {
	t.Parallel()
	both(t, func(beginner) []simplequeue.Handler {
		return []simplequeue.Handler{simplequeue.HandlerFunc("a", returns(nil))}
	}, func(t *testing.T, q *simplequeue.SimpleQueue) {
		jobs := make([]simplequeue.NewJob, 203, 206)
		for i := range jobs {
			jobs[i] = simplequeue.NewJob{Queue: "a", FairnessKey: "big", Payload: "big"}
		}
		insert(t, q, append(jobs, simplequeue.NewJob{Queue: "a", FairnessKey: "small", Payload: "small"},
			simplequeue.NewJob{Queue: "a", FairnessKey: "small", OrderKey: "k", Payload: "small"},
			simplequeue.NewJob{Queue: "a", FairnessKey: "small", OrderKey: "k", Payload: "small"})...)
		done := strings.Fields(names(simplequeuetest.Work(t, q)))
		if len(done) != 206 {
			t.Fatalf("%d attempts, want 206", len(done))
		}
		if n := slices.Index(done, "small"); n < 0 || n >= 200 {
			t.Errorf("the small key's first job ran as number %d", n+1)
		}
		insert(t, q, simplequeue.NewJob{Queue: "a", FairnessKey: "small", OrderKey: "k"})
		if n := len(simplequeuetest.Work(t, q)); n != 1 {
			t.Errorf("%d attempts of a job that passes both gates alone, want 1", n)
		}
	})
}

// Held jobs run when they are committed, and are gone when that is too late.
func TestHeldInWork(t *testing.T) {
	t.Parallel()
	both(t, func(beginner) []simplequeue.Handler {
		return []simplequeue.Handler{simplequeue.HandlerFunc("a", returns(nil))}
	}, func(t *testing.T, q *simplequeue.SimpleQueue) {
		hold := func(name, key string, delay time.Duration) uuid.UUID {
			r, err := q.Insert(t.Context(), simplequeue.NewJob{Queue: "a", OrderKey: key, Payload: name, Hold: 10 * time.Minute, Delay: delay})
			if err != nil {
				t.Fatal(err)
			}
			return r.ID
		}
		commit := func(id uuid.UUID, want int) {
			if done, err := q.CommitHeld(t.Context(), id); err != nil || len(done) != want {
				t.Errorf("CommitHeld: %d, %v, want %d", len(done), err, want)
			}
		}
		work := func(want string) {
			t.Helper()
			if got := names(simplequeuetest.Work(t, q)); got != want {
				t.Errorf("ran %q, want %q", got, want)
			}
		}
		first := hold("held", "k", 0)
		insert(t, q, simplequeue.NewJob{Queue: "a", OrderKey: "k", Payload: "next"})
		work("")
		simplequeuetest.Advance(t, q, 9*time.Minute)
		work("")
		commit(first, 1)
		work("held next")

		late := hold("late", "k", 0)
		insert(t, q, simplequeue.NewJob{Queue: "a", OrderKey: "k", Payload: "next"})
		simplequeuetest.Advance(t, q, 10*time.Minute)
		work("next")
		commit(late, 0)
		simplequeuetest.Inserted(t, q, 0, simplequeue.NewJob{ID: late})

		for _, key := range []string{"", "k"} {
			delayed := hold("delayed", key, 5*time.Minute)
			simplequeuetest.Advance(t, q, 3*time.Minute)
			commit(delayed, 1)
			work("")
			simplequeuetest.Advance(t, q, 2*time.Minute)
			work("delayed")
		}
	})
}

// Time goes by for what waits at a gate, too, and comes back.
func TestAdvanceAtGates(t *testing.T) {
	t.Parallel()
	both(t, func(beginner) []simplequeue.Handler {
		return []simplequeue.Handler{simplequeue.HandlerFunc("a", returns(nil))}
	}, func(t *testing.T, q *simplequeue.SimpleQueue) {
		insert(t, q,
			simplequeue.NewJob{Queue: "a", OrderKey: "k", Delay: time.Hour}, simplequeue.NewJob{Queue: "a", OrderKey: "k", Delay: 2 * time.Hour},
			simplequeue.NewJob{Queue: "a", OrderKey: "k"})
		for i, want := range []struct {
			by       time.Duration
			attempts int
		}{{0, 0}, {59 * time.Minute, 0}, {time.Minute, 1}, {59 * time.Minute, 0}, {time.Minute, 2}} {
			simplequeuetest.Advance(t, q, want.by)
			if n := len(simplequeuetest.Work(t, q)); n != want.attempts {
				t.Errorf("step %d: %d attempts, want %d", i, n, want.attempts)
			}
		}
		insert(t, q, simplequeue.NewJob{Queue: "a", OrderKey: "k", Delay: time.Hour}, simplequeue.NewJob{Queue: "a", OrderKey: "k", Delay: time.Hour})
		simplequeuetest.Advance(t, q, time.Hour)
		if n := len(simplequeuetest.Work(t, q)); n != 2 {
			t.Errorf("%d attempts of jobs that are both due, want 2", n)
		}
	})
}

// Transactions beside each other let their jobs in without waiting.
func TestGatesInTransactionsBesideEachOther(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, handlers(simplequeue.HandlerFunc("a", returns(nil))))
	for _, key := range []string{"one", "another"} {
		tx := begin(t, pool)
		if _, err := tx.Exec(t.Context(), "SET LOCAL lock_timeout = '5s'"); err != nil {
			t.Fatal(err)
		}
		in := simplequeuetest.In(tx, q)
		insert(t, in, simplequeue.NewJob{Queue: "a", OrderKey: key}, simplequeue.NewJob{Queue: "a", OrderKey: key})
		if n := len(simplequeuetest.Work(t, in)); n != 2 {
			t.Errorf("key %s: %d attempts, want 2", key, n)
		}
	}
}

// Jobs are found by their keys, and by their time, wherever they wait.
func TestInsertedAtGates(t *testing.T) {
	t.Parallel()
	at := time.Date(2200, 1, 2, 3, 4, 5, 6789, time.UTC)
	both(t, func(beginner) []simplequeue.Handler { return nil }, func(t *testing.T, q *simplequeue.SimpleQueue) {
		insert(t, q,
			simplequeue.NewJob{Queue: "a", OrderKey: "k"}, simplequeue.NewJob{Queue: "a", OrderKey: "k", Delay: time.Hour},
			simplequeue.NewJob{Queue: "a", FairnessKey: "f", RunAt: at}, simplequeue.NewJob{Queue: "a", Hold: time.Hour, RunAt: at},
			simplequeue.NewJob{Queue: "a"})
		for _, c := range []struct {
			n    int
			like simplequeue.NewJob
		}{
			{2, simplequeue.NewJob{OrderKey: "k"}},
			{0, simplequeue.NewJob{OrderKey: "other"}},
			{1, simplequeue.NewJob{OrderKey: "k", Delay: time.Hour}},
			{0, simplequeue.NewJob{OrderKey: "k", Delay: 2 * time.Hour}},
			{1, simplequeue.NewJob{FairnessKey: "f"}},
			{2, simplequeue.NewJob{RunAt: at}},
			{1, simplequeue.NewJob{RunAt: at, FairnessKey: "f"}},
			{0, simplequeue.NewJob{RunAt: at.Add(time.Hour)}},
		} {
			simplequeuetest.Inserted(t, q, c.n, c.like)
		}
		text := fails(t, func(t testing.TB) { simplequeuetest.Inserted(t, q, 1, simplequeue.NewJob{Hold: time.Hour}) })
		if !strings.Contains(text, "NewJob.Hold cannot be compared") {
			t.Errorf("by their hold: %s", text)
		}
		text = fails(t, func(t testing.TB) { simplequeuetest.Inserted(t, q, 3, simplequeue.NewJob{OrderKey: "k"}) })
		for _, want := range []string{`OrderKey: k`, `order key "k"`, `fairness key "f"`, "held"} {
			if !strings.Contains(text, want) {
				t.Errorf("%q is not in: %s", want, text)
			}
		}
	})
}

// Process has the keys, and nothing before the job at them.
func TestProcessWithKeys(t *testing.T) {
	t.Parallel()
	h := simplequeue.HandlerFunc("a", func(_ context.Context, job *simplequeue.Job) error {
		if job.OrderKey != "k" || job.FairnessKey != "f" {
			t.Errorf("the handler has seen %q, %q", job.OrderKey, job.FairnessKey)
		}
		return simplequeue.RescheduleToTail(time.Hour)
	})
	job := simplequeue.NewJob{OrderKey: "k", FairnessKey: "f", Hold: time.Hour, Delay: time.Hour}
	o := simplequeuetest.Process(t, h, job)
	if o.State != simplequeue.StateWaiting || !strings.Contains(o.Reason, `behind others of the order key "k"`) || !o.RunAt.IsZero() || o.ReprocessCount != 1 {
		t.Errorf("put off to the tail: %s, %q, due %v, %d", o.State, o.Reason, o.RunAt, o.ReprocessCount)
	}
	complete := simplequeue.HandlerFunc("a", func(ctx context.Context, job *simplequeue.Job) error { return job.CompleteTx(ctx, nil) })
	if o := simplequeuetest.Process(t, complete, job); o.State != simplequeue.StateCompleted || o.Err != nil {
		t.Errorf("completed in a transaction: %s, %v", o.State, o.Err)
	}
	for field, job := range map[string]simplequeue.NewJob{
		"OrderKey": {OrderKey: strings.Repeat("k", 513)}, "Hold": {Hold: -1}, "Metadata": {Metadata: map[string]string{"k": "\x00"}},
	} {
		if text := fails(t, func(t testing.TB) { simplequeuetest.Process(t, h, job) }); !strings.Contains(text, field) {
			t.Errorf("%s: %s", field, text)
		}
	}
}
