//go:build unix

package simplequeue_test

import (
	"context"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

func init() {
	scenarios["poison"] = func(w *workerProcess) {
		w.run(simplequeue.Options{
			GlobalPermits: 100, PollInterval: 50 * time.Millisecond,
			Handlers: []simplequeue.Handler{simplequeue.HandlerFunc("poison", func(_ context.Context, job *simplequeue.Job) error {
				if job.Kind == "poison" {
					die()
				}
				return nil
			})},
		})
	}
}

// One job that kills its process whenever it runs, among 500: it ends as
// bad_job after three crashes. Jobs that have crashed once run alone, so no
// innocent goes down with it twice: all others complete, with one extra attempt
// at most. The job blocks nobody, and its unique key is free again.
func TestPoisonJobTakesNoInnocentWithIt(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	pool := pgtest.Pool(t, url, 4)
	q := newQueue(t, pool, simplequeue.Options{})
	const many, at = 500, 250
	jobs := make([]simplequeue.NewJob, many)
	for i := range jobs {
		jobs[i] = simplequeue.NewJob{Queue: "poison"}
	}
	jobs[at].Kind, jobs[at].UniqueKey = "poison", "poison"
	results, err := q.InsertMany(t.Context(), jobs)
	if err != nil {
		t.Fatal(err)
	}
	poison := results[at].ID

	// A supervisor that starts the worker again whenever it has died.
	finished := func() bool {
		c := counts(t, q, "poison")
		return c[simplequeue.StateCompleted] == many-1 && c[simplequeue.StateBadJob] == 1
	}
	starts := 0
	deadline := time.Now().Add(2 * time.Minute)
	for !finished() && time.Now().Before(deadline) {
		starts++
		p := startProcess(t, "poison", url, "")
		for running := true; running && !finished() && time.Now().Before(deadline); {
			select {
			case <-p.ended:
				running = false
			case <-time.After(20 * time.Millisecond):
			}
		}
		if finished() {
			break
		}
	}
	if !finished() {
		t.Fatalf("after two minutes and %d starts: %v, want %d completed and one bad_job", starts, counts(t, q, "poison"), many-1)
	}
	got := get(t, q, poison)
	if got.State != simplequeue.StateBadJob || got.CrashCount != 3 || got.Attempt != 3 || got.Reason != "crashed 3 times in a row" || len(got.Errors) != 3 {
		t.Errorf("the poison job: %s %q after %d attempts and %d crashes, errors %+v, want bad_job after three crashes",
			got.State, got.Reason, got.Attempt, got.CrashCount, got.Errors)
	}
	var innocent, most int
	err = pool.QueryRow(t.Context(), `SELECT count(*) FILTER (WHERE attempt > 1), max(attempt) FROM simplequeue.job_queue_archive`).Scan(&innocent, &most)
	if err != nil || most > 2 {
		t.Errorf("innocent jobs took up to %d attempts, %v, want at most 2", most, err)
	}
	if starts != 4 {
		t.Errorf("the worker was started %d times, want 4: one for each crash, and one that lives", starts)
	}
	t.Logf("%d innocent jobs took a second attempt", innocent)
	if r, err := q.Insert(t.Context(), simplequeue.NewJob{Queue: "other", UniqueKey: "poison"}); err != nil || r.Duplicate || r.ID == uuid.Nil {
		t.Errorf("insert with the poison job's key = %+v, %v, want a new job", r, err)
	}
}

// A crash that is not the job's fault is forgotten once its handler returns: a
// job that fails, after two crashes, starts counting crashes again.
func TestCrashesCountInARow(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, handler("rows", func(context.Context, *simplequeue.Job) error { return simplequeue.RetryAfter(time.Hour, nil) }))
	id := insert(t, q, simplequeue.NewJob{Queue: "rows", MaxAttempts: 10})
	if _, err := pool.Exec(t.Context(), "UPDATE simplequeue.job_queue SET crash_count = 2, attempt = 2, lane = -2"); err != nil {
		t.Fatal(err)
	}
	start(t, q)
	if got := awaitState(t, q, id, simplequeue.StateWaiting); got.CrashCount != 0 || got.Attempt != 3 {
		t.Errorf("crash count %d after attempt %d, want 0 after 3", got.CrashCount, got.Attempt)
	}
}

// Suspects run one at a time in a process, and the next one is claimed only
// when the outcome of the last is written: a worker that dies in between would
// count a crash against a job that had ended.
func TestNextSuspectWaitsUntilTheLastIsWritten(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	makeRoom(t, pool)
	ran := make(chan uuid.UUID, 10)
	q := newQueue(t, pool, handler("suspects", func(_ context.Context, job *simplequeue.Job) error {
		ran <- job.ID
		return nil
	}))
	for range 3 {
		insert(t, q, simplequeue.NewJob{Queue: "suspects"})
	}
	if _, err := pool.Exec(t.Context(), "UPDATE simplequeue.job_queue SET crash_count = 1, attempt = 1, lane = -2"); err != nil {
		t.Fatal(err)
	}
	// Outcomes cannot be written for a while.
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	if _, err := tx.Exec(t.Context(), "LOCK TABLE simplequeue.job_queue_archive"); err != nil {
		t.Fatal(err)
	}
	start(t, q)
	<-ran
	select {
	case <-ran:
		t.Error("a second suspect ran before the first was written")
	case <-time.After(1500 * time.Millisecond): // a poll interval
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all suspects are done", func() bool { return counts(t, q, "suspects")[simplequeue.StateCompleted] == 3 })
}
