//go:build unix

package simplequeue_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// grace is how long the job of a dead worker may take to run again: its lease of
// two seconds, a sweep, and what a busy machine adds.
const grace = 15 * time.Second

// A crasher dies at one point of the life of the first job that it runs.
type crasher struct {
	w     *workerProcess
	point string // claimed, running, returned, settling, or how many jobs it survives
	ended atomic.Int64
}

func (c *crasher) Queue() string { return "crash" }

func (c *crasher) at(point string, job *simplequeue.Job) {
	if c.point == point {
		c.w.say("dies %d", job.Attempt)
		die()
	}
}

// Acquire is asked when the job has been claimed and its handler has not begun.
func (c *crasher) Acquire(_ context.Context, job *simplequeue.Job) (func(), error) {
	c.at("claimed", job)
	// The permit is given back when the handler has returned.
	return func() { c.at("returned", job) }, nil
}

func (c *crasher) Process(_ context.Context, job *simplequeue.Job) error {
	h := history{c.w.pool}
	if err := h.note(job, "start"); err != nil {
		return err
	}
	c.at("running", job)
	if err := h.note(job, "end"); err != nil {
		return err
	}
	if n := c.ended.Add(1); strconv.FormatInt(n, 10) == c.point {
		c.w.say("dies")
		die()
	}
	if c.point == "settling" {
		c.w.say("running")
		c.w.hear()
	}
	return nil
}

func init() {
	scenarios["crash"] = func(w *workerProcess) {
		w.run(simplequeue.Options{Name: "same", Handlers: []simplequeue.Handler{&crasher{w: w, point: w.argument}}})
	}
}

// survivor runs the jobs of "crash" in the test's own process.
func survivor(t *testing.T, h *history, opts simplequeue.Options) *simplequeue.SimpleQueue {
	t.Helper()
	opts = briefLeases(opts)
	opts.Handlers = []simplequeue.Handler{simplequeue.HandlerFunc("crash", func(_ context.Context, job *simplequeue.Job) error {
		return errors.Join(h.note(job, "start"), h.note(job, "end"))
	})}
	q := newQueue(t, h.pool, opts)
	start(t, q)
	return q
}

// A worker killed at any point of a job's life leaves it runnable: it runs again
// within its lease and a sweep, and the crash has used an attempt.
func TestJobOfAKilledWorkerRunsAgain(t *testing.T) {
	t.Parallel()
	for _, point := range []string{"claimed", "running", "returned"} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			url := pgtest.Database(t)
			pool := pgtest.Pool(t, url, 6)
			h := newHistory(t, pool)
			id := insert(t, newQueue(t, pool, simplequeue.Options{}), simplequeue.NewJob{Queue: "crash", UniqueKey: "the one"})
			p := startProcess(t, "crash", url, point)
			p.await(t, "dies 1")
			p.awaitEnd(t)
			died := time.Now()

			q := survivor(t, h, simplequeue.Options{})
			if r, err := q.Insert(t.Context(), simplequeue.NewJob{Queue: "crash", UniqueKey: "the one"}); err != nil || !r.Duplicate || r.ID != id {
				t.Errorf("insert with the dead worker's key = %+v, %v, want a duplicate of %v", r, err, id)
			}
			got := awaitState(t, q, id, simplequeue.StateCompleted)
			if took := time.Since(died); took > grace {
				t.Errorf("completed %v after the crash, want at most %v", took, grace)
			}
			if got.Attempt != 2 || got.CrashCount != 1 || len(got.Errors) != 1 || got.Errors[0].Reason != "worker_lost" {
				t.Errorf("attempt %d, crash count %d, errors %+v, want the second attempt after one crash, recorded as worker_lost",
					got.Attempt, got.CrashCount, got.Errors)
			}
			want := 0
			if point == "returned" {
				want = 1 // nobody can tell that it had come to its end
			}
			if n := h.check(t, []uuid.UUID{id}); n != want {
				t.Errorf("%d ends for nothing, want %d", n, want)
			}
			insert(t, q, simplequeue.NewJob{Queue: "crash", UniqueKey: "the one"}) // the key is free again
		})
	}
}

// A worker killed on a job's last attempt leaves it failed, with its unique key
// free. No row stays running.
func TestJobKilledOnItsLastAttemptFails(t *testing.T) {
	t.Parallel()
	for _, point := range []string{"claimed", "running", "returned"} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			url := pgtest.Database(t)
			pool := pgtest.Pool(t, url, 6)
			h := newHistory(t, pool)
			job := simplequeue.NewJob{Queue: "crash", MaxAttempts: 1, UniqueKey: "last", Fingerprint: "print"}
			id := insert(t, newQueue(t, pool, simplequeue.Options{}), job)
			p := startProcess(t, "crash", url, point)
			p.await(t, "dies 1")
			p.awaitEnd(t)

			q := survivor(t, h, simplequeue.Options{})
			got := awaitState(t, q, id, simplequeue.StateFailed)
			if got.Reason != "worker lost" || got.Attempt != 1 || got.FinishedAt.IsZero() {
				t.Errorf("reason %q, attempt %d, finished at %v, want failed by %q on attempt 1", got.Reason, got.Attempt, got.FinishedAt, "worker lost")
			}
			awaitState(t, q, insert(t, q, job), simplequeue.StateCompleted)
		})
	}
}

// A worker killed between the commit of an outcome and its answer has settled
// the job: it does not run again.
func TestJobSettledByAKilledWorkerStaysSettled(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	pool := pgtest.Pool(t, url, 6)
	proxy := pgtest.NewProxy(t, url)
	h := newHistory(t, pool)
	inserter := newQueue(t, pool, simplequeue.Options{})
	id := insert(t, inserter, simplequeue.NewJob{Queue: "crash"})
	makeRoom(t, pool)
	// Statements go out in one message, so that a lost answer is the last one's.
	p := startProcess(t, "crash", proxy.URL()+"&default_query_exec_mode=exec", "settling")
	p.await(t, "running")
	unlock := lock(t, pool, "simplequeue.job_queue_archive IN EXCLUSIVE MODE")
	p.tell(t)
	eventually(t, "the outcome is being written", func() bool { return waiting(t, pool, "WITH moved AS") == 1 })
	proxy.DropReplies()
	unlock()
	awaitState(t, inserter, id, simplequeue.StateCompleted)
	p.signal(t, syscall.SIGKILL)
	p.awaitEnd(t)
	proxy.Heal()

	q := survivor(t, h, simplequeue.Options{})
	second := insert(t, q, simplequeue.NewJob{Queue: "crash"})
	awaitState(t, q, second, simplequeue.StateCompleted)
	time.Sleep(3 * time.Second) // a lease and a sweep: a wrong second run would have begun
	if got := get(t, q, id); got.Attempt != 1 || got.CrashCount != 0 {
		t.Errorf("attempt %d, crash count %d, want 1 and 0", got.Attempt, got.CrashCount)
	}
	if n := h.check(t, []uuid.UUID{id, second}); n != 0 {
		t.Errorf("%d ends for nothing, want 0", n)
	}
}

// A worker killed at a random moment of a stream of claims and outcomes loses
// nothing and completes nothing twice; who takes over finishes the rest. At
// most the jobs that it held run a second time.
func TestKillDuringAStreamOfOutcomesLosesNothing(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	pool := pgtest.Pool(t, url, 10)
	h := newHistory(t, pool)
	const many = 600
	jobs := make([]simplequeue.NewJob, many)
	for i := range jobs {
		jobs[i] = simplequeue.NewJob{Queue: "crash", MaxAttempts: 10}
	}
	inserter := newQueue(t, pool, simplequeue.Options{})
	results, err := inserter.InsertMany(t.Context(), jobs)
	if err != nil {
		t.Fatal(err)
	}
	ids := make([]uuid.UUID, many)
	for i, r := range results {
		ids[i] = r.ID
	}
	for range 2 {
		// The outcomes of the jobs before are in all stages of being written.
		p := startProcess(t, "crash", url, strconv.Itoa(100+rand.IntN(100)))
		p.await(t, "dies")
		p.awaitEnd(t)
	}
	q := survivor(t, h, simplequeue.Options{MaxCrashes: 10, HeartbeatInterval: time.Second})
	eventually(t, "all jobs are done", func() bool { return counts(t, q, "crash")[simplequeue.StateCompleted] == many })
	t.Logf("%d jobs had come to their end before a crash and ran again", h.check(t, ids))
	if s := q.Stats(); s.LeasesLost != 0 {
		t.Errorf("leases lost: %d, want 0", s.LeasesLost)
	}
}

// A process started again under the same name and configuration is another
// worker: what the dead one held is not kept alive by it.
func TestRestartUnderTheSameNameAdoptsNoLeases(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	pool := pgtest.Pool(t, url, 6)
	h := newHistory(t, pool)
	inserter := newQueue(t, pool, simplequeue.Options{})
	id := insert(t, inserter, simplequeue.NewJob{Queue: "crash"})
	first := startProcess(t, "crash", url, "running")
	first.await(t, "dies 1")
	first.awaitEnd(t)
	dead := get(t, inserter, id).WorkerID

	var second atomic.Int64
	opts := briefLeases(simplequeue.Options{Name: "same", Handlers: []simplequeue.Handler{
		simplequeue.HandlerFunc("crash", func(_ context.Context, job *simplequeue.Job) error { second.Add(1); return h.note(job, "end") }),
	}})
	q := newQueue(t, pool, opts)
	start(t, q)
	if got := awaitState(t, q, id, simplequeue.StateCompleted); got.WorkerID == dead || got.Attempt != 2 || second.Load() != 1 {
		t.Errorf("completed by worker %v on attempt %d, want another than %v on attempt 2", got.WorkerID, got.Attempt, dead)
	}
}
