package simplequeue

import (
	"context"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// A worker whose row was forgotten, in a long silence or by a failover, notes the
// pauses that it heeds again once it is back, so that a drain ends.
func TestForgottenWorkerNotesItsPausesAgain(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q, err := New(pool, Options{Handlers: []Handler{HandlerFunc("q", func(context.Context, *Job) error { return nil })}})
	if err != nil {
		t.Fatal(err)
	}
	e := &engine{queue: q, worker: uuid.New(), db: q.db}
	e.poller = &poller{
		db: q.db, worker: e.worker, routes: q.routes, book: newLaneBook(q.routes, time.Second), poke: make(chan struct{}, 1),
	}
	signIn := func() {
		t.Helper()
		if err := e.signIn(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	unaware := func() int {
		t.Helper()
		if err := e.poller.heed(t.Context(), []string{"q"}); err != nil {
			t.Fatal(err)
		}
		d, err := q.db.Draining(t.Context(), claimLimit, "q", workerGone)
		if err != nil {
			t.Fatal(err)
		}
		return d.Unaware
	}
	if signIn(); unaware() != 0 {
		t.Fatal("the pause is not noted")
	}
	if signIn(); e.poller.pauses.lost.Load() {
		t.Error("a worker that is known notes its pauses again")
	}
	if _, err := pool.Exec(t.Context(), "DELETE FROM simplequeue.job_worker"); err != nil {
		t.Fatal(err)
	}
	if signIn(); unaware() != 0 {
		t.Error("a worker that was forgotten does not note the pause again")
	}
}
