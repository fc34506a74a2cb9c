package simplequeue_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/backoff"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// TestCore is a job's whole life, short: every way in, every way out.
func TestCore(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	var completed atomic.Int64
	q := newQueue(t, pool, simplequeue.Options{
		Backoff: backoff.Constant(10 * time.Millisecond),
		Handlers: []simplequeue.Handler{
			simplequeue.HandlerFunc("fine", func(context.Context, *simplequeue.Job) error { completed.Add(1); return nil }),
			simplequeue.HandlerFunc("hopeless", func(context.Context, *simplequeue.Job) error {
				return simplequeue.Critical(errors.New("hopeless"))
			}),
			simplequeue.HandlerFunc("panics", func(context.Context, *simplequeue.Job) error { panic("oh") }),
		},
	})
	start(t, q)

	const many = 2000
	jobs := make([]simplequeue.NewJob, many)
	for i := range jobs {
		jobs[i] = simplequeue.NewJob{Queue: "fine", Payload: i}
	}
	if _, err := q.InsertMany(t.Context(), jobs); err != nil {
		t.Fatal(err)
	}
	delayed := insert(t, q, simplequeue.NewJob{Queue: "fine", Delay: 50 * time.Millisecond, UniqueKey: "once"})
	hopeless := insert(t, q, simplequeue.NewJob{Queue: "hopeless"})
	panics := insert(t, q, simplequeue.NewJob{Queue: "panics"})

	awaitState(t, q, delayed, simplequeue.StateCompleted)
	awaitState(t, q, hopeless, simplequeue.StateCritical)
	if got := awaitState(t, q, panics, simplequeue.StateFailed); len(got.Errors) != 3 || got.LastError() != "panic: oh" {
		t.Errorf("errors of the panicking job: %+v, want 3 of them, last %q", got.Errors, "panic: oh")
	}
	eventually(t, "all jobs archived", func() bool { return counts(t, q, "fine")[simplequeue.StateCompleted] == many+1 })
	if n := completed.Load(); n != many+1 {
		t.Errorf("handler ran %d times, want %d", n, many+1)
	}
}
