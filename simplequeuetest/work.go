package simplequeuetest

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/inside"
)

// Outcome is what became of one attempt.
type Outcome struct {
	// JobInfo is the job as the attempt left it: its state, when it runs again
	// if it waits, its errors and its result.
	simplequeue.JobInfo
	// Err is what the handler returned, or its permit. For a panic it has the
	// text; the stack is in JobInfo.Errors.
	Err error
}

// maxAttempts is where Work gives up on jobs that have no end.
const maxAttempts = 10_000

// In returns a queue like q whose every call happens inside tx: it inserts, runs
// and shows jobs that nobody else sees, and that are gone when tx is rolled back.
// Its methods without a transaction are as if they had one of their own, a
// savepoint. It wakes nobody, has no spool, and cannot Run. Since nobody runs a job meanwhile,
// Wait and its like return at once: the outcome of a job that has ended, an error
// for any other. InsertAndWait has then inserted the job.
//
// A handler sees that queue by [simplequeue.FromContext]; one that has kept q,
// or the pool, works outside of tx. [simplequeue.Job.CompleteTx] and its like take
// tx, or what tx.Begin has returned. Like tx, the queue is for one goroutine at a
// time: a handler that uses tx in another while it uses the queue in one is a
// mistake.
func In(tx pgx.Tx, q *simplequeue.SimpleQueue) *simplequeue.SimpleQueue {
	return inside.Within(q, tx).(*simplequeue.SimpleQueue)
}

// Work runs every job of the given queues, or of all that q has handlers for,
// until none is left that can run now, those included that handlers insert, and
// returns what became of each attempt, in order. A job that is retried or
// rescheduled waits, unless for no time at all: see [Advance].
//
// Jobs run one at a time, queue by queue in the order of their names, in a queue
// in its order; those of an order key in theirs, and fairness keys take turns as
// coarsely as in production, where 200 jobs are let in at once. Held jobs do not
// run, and are gone when their hold is over. To a [simplequeue.Batch] each job comes
// alone, at once.
//
// Jobs run as they would in production: by the handlers of q, in its middleware,
// with permits, timeouts, backoff and retention; their outcomes are
// written by the same statements. q must not Run meanwhile. What fails the test
// is an error of the database, an attempt that has lost its job, and jobs that have
// no end: more than 10,000 attempts. A handler that fails does not; its outcome
// tells.
//
// A handler may call t.Fatal: then the test ends when the job's outcome is written.
func Work(t testing.TB, q *simplequeue.SimpleQueue, queues ...string) []Outcome {
	t.Helper()
	return workAll(t, q, queues, maxAttempts)
}

// WorkOne runs the next job as [Work] would. No job that can run fails the test.
func WorkOne(t testing.TB, q *simplequeue.SimpleQueue, queues ...string) Outcome {
	t.Helper()
	done := work(t, q, queues, 1)
	if len(done) == 0 {
		t.Fatalf("simplequeuetest: no job can run now; there are:%s", list(t, q, simplequeue.Filter{}))
	}
	return done[0]
}

func workAll(t testing.TB, q *simplequeue.SimpleQueue, queues []string, most int) []Outcome {
	t.Helper()
	done := work(t, q, queues, most+1)
	if len(done) > most {
		t.Fatalf("simplequeuetest: %d attempts, and there is still work: does a job insert itself again? It was of queue %q, kind %q",
			len(done), done[most].Queue, done[most].Kind)
	}
	return done
}

// work runs most jobs, or as many as there are.
func work(t testing.TB, q *simplequeue.SimpleQueue, queues []string, most int) (done []Outcome) {
	t.Helper()
	next, stop, err := inside.Worker(t.Context(), q, queues)
	if err != nil {
		t.Fatalf("simplequeuetest: %v", err)
	}
	defer stop()
	for len(done) < most {
		a, err := next()
		if err != nil {
			t.Fatalf("simplequeuetest: work: %v", err)
		}
		if a == nil {
			break
		}
		done = append(done, outcome(t, a))
	}
	return done
}

// Process runs one attempt of a job by a handler and returns what would become of
// the job. There is no database: the job is what job says, as an insert would
// store it, changed by the functions: to be in its third attempt, for example, or
// to have crashed its worker. An empty Queue is the handler's.
//
// The handler runs as in production, as far as Options without anything set go.
// Its steps and checkpoints last as long as the attempt. What would keep the job
// from running is over: its Delay, RunAt and Hold, and jobs before it at its keys. A
// completion in a transaction counts as committed when it returns nil. [simplequeue.FromContext] has a queue whose every
// call fails. A job that cannot be inserted, or that h does not serve, fails the
// test.
func Process(t testing.TB, h simplequeue.Handler, job simplequeue.NewJob, change ...func(*simplequeue.Job)) Outcome {
	t.Helper()
	a, err := inside.Process(t.Context(), h, job, change)
	if err != nil {
		t.Fatalf("simplequeuetest: process: %v", err)
	}
	return outcome(t, a)
}

// outcome ends the test if its handler has asked for that.
func outcome(t testing.TB, a *inside.Attempt) Outcome {
	t.Helper()
	if a.Exited && t.Failed() {
		t.FailNow()
	}
	return Outcome{JobInfo: a.JobInfo.(simplequeue.JobInfo), Err: a.Err}
}

// Advance lets time go by for the jobs that wait for it: retries, reschedules,
// delayed and scheduled jobs are due earlier by d, also where they wait for others
// of their keys too; those that are due now can run. Holds end earlier by d: the
// next Work takes jobs away whose hold is over. It is how a test waits. A d below zero puts them off. The time that the database
// tells, and what is made of it, stays as it is: times of creation, windows of
// unique keys, leases.
func Advance(t testing.TB, q *simplequeue.SimpleQueue, d time.Duration) {
	t.Helper()
	if err := inside.Advance(t.Context(), q, d); err != nil {
		t.Fatalf("simplequeuetest: advance: %v", err)
	}
}
