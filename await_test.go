package simplequeue_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// A cancel that waits returns when the job has ended, with the state it ended
// in; from another process too, and without a connection per waiter.
func TestCancelAndWait(t *testing.T) {
	t.Parallel()
	database := pgtest.Database(t)
	running := make(chan uuid.UUID, 100)
	finish := make(chan struct{})
	q := newQueue(t, pgtest.Pool(t, database, 4), handler("a", func(ctx context.Context, job *simplequeue.Job) error {
		running <- job.ID
		<-ctx.Done()
		if job.Kind == "finishes" {
			<-finish
			return nil
		}
		return ctx.Err()
	}))
	start(t, q)
	other := newQueue(t, pgtest.Pool(t, database, 1), simplequeue.Options{})

	var all sync.WaitGroup
	ids := make([]uuid.UUID, 40)
	for i := range ids {
		ids[i] = insert(t, q, simplequeue.NewJob{Queue: "a"})
	}
	for range ids {
		<-running
	}
	for i := range 2 * len(ids) { // two wait for each
		all.Go(func() {
			s, err := other.CancelAndWait(context.Background(), ids[i/2], "test")
			if err != nil && !errors.Is(err, simplequeue.ErrFinished) || s != simplequeue.StateCancelled {
				t.Errorf("CancelAndWait: %s, %v", s, err)
			}
			if got := state(t, q, ids[i/2]); got != simplequeue.StateCancelled {
				t.Errorf("then the job is %s", got)
			}
		})
	}
	all.Wait()

	id := insert(t, q, simplequeue.NewJob{Queue: "a", Kind: "finishes"})
	<-running
	ctx, cancel := context.WithCancel(t.Context())
	gaveUp := make(chan struct{})
	go func() {
		defer close(gaveUp)
		if s, err := other.CancelAndWait(ctx, id, ""); !errors.Is(err, context.Canceled) || s != simplequeue.StateCancelling {
			t.Errorf("CancelAndWait of a job that goes on: %s, %v", s, err)
		}
	}()
	eventually(t, "the request stands, and somebody waits", func() bool { return other.Waiters() == 1 })
	cancel()
	<-gaveUp
	if n := other.Waiters(); n != 0 {
		t.Errorf("%d wait when nobody does", n)
	}
	close(finish)
	if s, err := other.CancelAndWait(t.Context(), id, ""); s != simplequeue.StateCompleted || err != nil && !errors.Is(err, simplequeue.ErrFinished) {
		t.Errorf("CancelAndWait of a job that finishes first: %s, %v", s, err)
	}

	waiting := insert(t, q, simplequeue.NewJob{Queue: "a", Delay: time.Hour})
	if s, err := other.CancelAndWait(t.Context(), waiting, ""); s != simplequeue.StateCancelled || err != nil {
		t.Errorf("CancelAndWait of a waiting job: %s, %v", s, err)
	}
	if _, err := other.CancelAndWait(t.Context(), uuid.New(), ""); !errors.Is(err, simplequeue.ErrNotFound) {
		t.Errorf("CancelAndWait of an unknown job: %v", err)
	}
	none := simplequeue.Retention{Archive: simplequeue.KeepNothing, DeadLetter: simplequeue.KeepNothing}
	gone := insert(t, q, simplequeue.NewJob{Queue: "a", Retention: none})
	<-running
	if _, err := other.CancelAndWait(t.Context(), gone, ""); !errors.Is(err, simplequeue.ErrNotFound) {
		t.Errorf("CancelAndWait of a job that leaves nothing: %v", err)
	}
}
