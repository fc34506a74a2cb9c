//go:build unix

package simplequeue_test

import (
	"context"
	"os"
	"syscall"
	"testing"

	"github.com/google/uuid"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

func init() {
	// A worker that doubles numbers. It says which it has begun, and where its
	// argument says so it holds on to them.
	scenarios["doubles"] = func(w *workerProcess) {
		w.run(simplequeue.Options{
			Retention: simplequeue.Retention{Archive: simplequeue.KeepNothing},
			Handlers: []simplequeue.Handler{simplequeue.TypedResult("doubles", func(ctx context.Context, _ *simplequeue.Job, n int) (int, error) {
				w.say("began %d", n)
				if w.argument == "hold" {
					<-ctx.Done()
					return 0, ctx.Err()
				}
				return 2 * n, nil
			})},
		})
	}
	// A process that asks for a number to be doubled and says what it gets.
	scenarios["asks"] = func(w *workerProcess) {
		q := w.queue(simplequeue.Options{})
		info, err := q.InsertAndWait(context.Background(), simplequeue.NewJob{Queue: "doubles", Payload: 21})
		if err != nil {
			w.say("error: %v", err)
		}
		n, err := simplequeue.ResultOf[int](info)
		w.say("got %d %v", n, err)
		w.say("job %v", info.ID)
		w.hear()
		os.Exit(0)
	}
}

// A process that waits gets the result from another process, although the worker
// that began the job was killed; and when it has died itself, others can still
// ask for the outcome, of which nothing else is kept.
func TestWaitAcrossProcesses(t *testing.T) {
	t.Parallel()
	database := pgtest.Database(t)
	holds := startProcess(t, "doubles", database, "hold")
	asks := startProcess(t, "asks", database, "")
	holds.await(t, "began 21")
	holds.signal(t, syscall.SIGKILL)
	holds.awaitEnd(t)
	startProcess(t, "doubles", database, "")
	if got := asks.await(t, "got"); got != "42 <nil>" {
		t.Errorf("got %s, want 42", got)
	}
	id, err := uuid.Parse(asks.await(t, "job"))
	if err != nil {
		t.Fatal(err)
	}
	asks.signal(t, syscall.SIGKILL)
	asks.awaitEnd(t)
	q := newQueue(t, pgtest.Pool(t, database, 2), simplequeue.Options{})
	info, err := q.Wait(t.Context(), id)
	if n, e := simplequeue.ResultOf[int](info); err != nil || e != nil || n != 42 || info.Attempt != 2 {
		t.Errorf("waited for again: %d after %d attempts, %v, %v", n, info.Attempt, err, e)
	}
}
