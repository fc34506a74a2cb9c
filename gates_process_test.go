//go:build unix

package simplequeue_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

func init() {
	scenarios["ordered"] = func(w *workerProcess) {
		h := history{w.pool}
		w.run(simplequeue.Options{Handlers: []simplequeue.Handler{
			simplequeue.HandlerFunc("q", func(_ context.Context, job *simplequeue.Job) error {
				if err := h.note(job, "start"); err != nil {
					return err
				}
				time.Sleep(2 * time.Millisecond)
				what := string(job.Raw)
				if what == "die" && job.Attempt == 1 {
					w.say("dies")
					die()
				}
				if err := h.note(job, "end"); err != nil {
					return err
				}
				switch {
				case what == "retry" && job.Attempt == 1:
					return simplequeue.RetryAfter(20*time.Millisecond, errors.New("once more"))
				case what == "reschedule" && job.ReprocessCount == 0:
					return simplequeue.RescheduleAfter(20 * time.Millisecond)
				case what == "dead":
					return simplequeue.Critical(errors.New("no"))
				case what == "last": // dies on its last attempt too
					w.say("dies")
					die()
				}
				return nil
			}),
		}})
	}
}

// Strict order across two processes, with retries, reschedules, dead jobs, and
// workers that are killed, also on a job's last attempt: runs of a key never
// overlap, and each job has had its last run before the next one has its first.
func TestOrderAcrossProcesses(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	pool := pgtest.Pool(t, url, 8)
	newHistory(t, pool)
	q := newQueue(t, pool, simplequeue.Options{})
	order := map[string][]uuid.UUID{}
	total, deaths := 0, 0
	add := func(key, what string, attempts int) {
		order[key] = append(order[key], insert(t, q, simplequeue.NewJob{Queue: "q", OrderKey: key, Raw: []byte(what), MaxAttempts: attempts}))
		total++
	}
	kinds := []string{"", "retry", "reschedule", "", "dead"}
	for i := range 40 {
		key := fmt.Sprint("k", i%5)
		switch i {
		case 12:
			add(key, "die", 3)
			deaths++
		case 23:
			add(key, "last", 1)
			deaths++
		default:
			add(key, kinds[i*7%5], 3)
		}
	}
	procs := []*process{startProcess(t, "ordered", url, ""), startProcess(t, "ordered", url, "")}
	eventually(t, "all jobs have ended", func() bool {
		for i, p := range procs {
			select {
			case <-p.ended:
				procs[i] = startProcess(t, "ordered", url, "")
				deaths--
			default:
			}
		}
		ended := int64(0)
		for state, n := range counts(t, q, "q") {
			if state.Terminal() {
				ended += n
			}
		}
		return ended == int64(total)
	})
	if deaths > 0 {
		t.Errorf("%d workers fewer were killed than were to be", deaths)
	}
	for key, jobs := range order {
		checkOrder(t, pool, key, jobs)
	}
	awaitNoGates(t, pool)
}

type rowsQuerier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// checkOrder verifies by the history that the jobs of a key ran one after the
// other. The end of a run that was killed is not in it.
func checkOrder(t *testing.T, db rowsQuerier, key string, jobs []uuid.UUID) {
	t.Helper()
	at := map[uuid.UUID]int{}
	for i, id := range jobs {
		at[id] = i
	}
	rows, err := db.Query(t.Context(), "SELECT job, attempt, event FROM history WHERE job = ANY ($1) ORDER BY at", jobs)
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	last, inside, bad := -1, 0, false
	var id uuid.UUID
	var attempt int
	var event string
	seen := map[uuid.UUID]bool{}
	_, err = pgx.ForEachRow(rows, []any{&id, &attempt, &event}, func() error {
		fmt.Fprintf(&log, " %d/%d %s", at[id], attempt, event)
		seen[id] = true
		switch event {
		case "start":
			// The run before this one was killed, or has ended.
			bad = bad || at[id] != last && at[id] != last+1
			last, inside = at[id], attempt
		case "end":
			bad = bad || at[id] != last || attempt != inside
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if bad || len(seen) != len(jobs) {
		t.Errorf("%s: %d of %d jobs ran, out of order:%s", key, len(seen), len(jobs), &log)
	}
}
