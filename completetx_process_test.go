//go:build unix

package simplequeue_test

import (
	"context"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

func init() {
	// A worker that completes jobs in transactions of its handler and dies before
	// or after the commit of a first attempt, as its argument says.
	scenarios["completes"] = func(w *workerProcess) {
		h := history{w.pool}
		w.run(simplequeue.Options{Handlers: []simplequeue.Handler{
			simplequeue.HandlerFunc("next", nothing),
			simplequeue.HandlerFunc("completes", func(ctx context.Context, job *simplequeue.Job) error {
				err := h.note(job, "start")
				if err == nil {
					err = h.note(job, "end")
				}
				if err != nil {
					return err
				}
				err = pgx.BeginFunc(ctx, w.pool, func(tx pgx.Tx) error {
					if err := completeWith(ctx, tx, job); err != nil {
						return err
					}
					if w.argument == "before" {
						die()
					}
					return nil
				})
				if err == nil && w.argument == "after" {
					die()
				}
				return err
			}),
		}})
	}
}

// A process that is killed with its transaction open has done nothing, and
// another one does the job; one that is killed after the commit has done it, and
// nobody does it again.
func TestCompletionSurvivesItsWorker(t *testing.T) {
	t.Parallel()
	for moment, attempts := range map[string]int{"before": 2, "after": 1} {
		url := pgtest.Database(t)
		pool := pgtest.Pool(t, url, 4)
		makeEffects(t, pool)
		h := newHistory(t, pool)
		q := newQueue(t, pool, simplequeue.Options{})
		id := insert(t, q, simplequeue.NewJob{Queue: "completes", UniqueKey: "key", Raw: make([]byte, 3000)})
		startProcess(t, "completes", url, moment).awaitEnd(t)
		startProcess(t, "completes", url, "")
		// One follow-up job: the transaction that inserted it has committed once.
		eventually(t, "the next job has run", func() bool { return countRows(t, pool, "job_queue_archive WHERE queue = 'next'") == 1 })
		info := awaitState(t, q, id, simplequeue.StateCompleted)
		eventually(t, "the janitor has moved the job", func() bool { return countRows(t, pool, "job_finished") == 0 })
		if info.Attempt != attempts || effects(t, pool, id) != 1 || info.CrashCount != attempts-1 {
			t.Errorf("killed %s the commit: attempt %d, %d effects, %d crashes", moment, info.Attempt, effects(t, pool, id), info.CrashCount)
		}
		if repeated := h.check(t, []uuid.UUID{id}); repeated != attempts-1 {
			t.Errorf("killed %s the commit: %d handlers' ends for nothing", moment, repeated)
		}
		if n := countRows(t, pool, "job WHERE queue = 'next'"); n != 1 {
			t.Errorf("killed %s the commit: %d next jobs, want 1", moment, n)
		}
		for _, from := range []string{"job_unique", "job_payload", "job_running"} {
			if n := countRows(t, pool, from); n != 0 {
				t.Errorf("killed %s the commit: %d rows in %s", moment, n, from)
			}
		}
	}
}
