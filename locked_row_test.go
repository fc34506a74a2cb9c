package simplequeue_test

import (
	"context"
	"testing"
	"time"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// A transaction of anybody that keeps the row of one running job locked holds up
// no other outcome for long; that job's own is written when it has ended.
func TestOutcomesPassALockedRow(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	end := make(chan struct{})
	const many = 100
	opts := handler("q", func(context.Context, *simplequeue.Job) error { <-end; return nil })
	opts.QueuePermits, opts.GlobalPermits = many+1, many+1
	q := newQueue(t, pool, opts)
	locked := insert(t, q, simplequeue.NewJob{Queue: "q"})
	for range many {
		insert(t, q, simplequeue.NewJob{Queue: "q"})
	}
	start(t, q)
	eventually(t, "all run", func() bool { return counts(t, q, "q")[simplequeue.StateRunning] == many+1 })
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	if _, err := tx.Exec(t.Context(), "SELECT FROM simplequeue.job_running WHERE id = $1 FOR UPDATE", locked); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	close(end)
	eventually(t, "the others are completed", func() bool { return counts(t, q, "q")[simplequeue.StateCompleted] == many })
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("it took %v, want little more than the ten seconds that one settle waits", took)
	}
	if got := state(t, q, locked); got != simplequeue.StateRunning {
		t.Errorf("the locked job is %s", got)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	awaitState(t, q, locked, simplequeue.StateCompleted)
}
