//go:build unix

package simplequeue_test

import (
	"context"
	"syscall"
	"testing"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

func init() {
	scenarios["paused worker"] = func(w *workerProcess) {
		w.run(simplequeue.Options{Handlers: []simplequeue.Handler{
			simplequeue.HandlerFunc("a", func(_ context.Context, job *simplequeue.Job) error {
				w.say("ran %s", job.ID)
				return nil
			}),
			simplequeue.HandlerFunc("b", func(_ context.Context, job *simplequeue.Job) error {
				w.say("other %s", job.ID)
				return nil
			}),
		}})
	}
}

// A pause holds for every process, for one that starts later and across a
// restart of all of them (FAILURES 149).
func TestPauseAcrossProcesses(t *testing.T) {
	t.Parallel()
	database := pgtest.Database(t)
	pool := pgtest.Pool(t, database, 4)
	q := newQueue(t, pool, simplequeue.Options{})
	one := startProcess(t, "paused worker", database, "")
	two := startProcess(t, "paused worker", database, "")
	awaitWorkers := func(n int) {
		eventually(t, "the workers are there", func() bool {
			return queryOne[int](t, pool, "SELECT count(*) FROM simplequeue.job_worker") == n
		})
	}
	awaitWorkers(2)
	if err := q.Drain(t.Context(), "a", "test"); err != nil {
		t.Fatal(err)
	}
	if n := queryOne[int](t, pool, "SELECT count(*) FROM simplequeue.job_worker WHERE 'a' = ANY (paused)"); n != 2 {
		t.Errorf("%d workers have noted the pause, want both", n)
	}
	id := insert(t, q, simplequeue.NewJob{Queue: "a"})
	other := func() {
		t.Helper()
		awaitState(t, q, insert(t, q, simplequeue.NewJob{Queue: "b"}), simplequeue.StateCompleted)
		if got := state(t, q, id); got != simplequeue.StatePending {
			t.Fatalf("the job of the paused queue is %s", got)
		}
	}
	other()
	for _, p := range []*process{one, two} {
		p.signal(t, syscall.SIGKILL)
		p.awaitEnd(t)
	}
	if _, err := pool.Exec(t.Context(), "DELETE FROM simplequeue.job_worker"); err != nil {
		t.Fatal(err)
	}
	three := startProcess(t, "paused worker", database, "")
	awaitWorkers(1)
	other()
	if err := q.Resume(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if got := three.await(t, "ran"); got != id.String() {
		t.Errorf("ran %s, want %v", got, id)
	}
}
