//go:build unix

package simplequeue_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

func init() {
	// A zombie holds jobs until their contexts end, tells why they ended, and
	// then returns what the job's kind says.
	scenarios["zombie"] = func(w *workerProcess) {
		hold := func(ctx context.Context, job *simplequeue.Job) error {
			if job.Attempt > 1 {
				return nil // awake, it may take part again
			}
			w.say("holds %s", job.Kind)
			<-ctx.Done()
			w.say("cause %s: %v", job.Kind, context.Cause(ctx))
			return zombieOutcomes[job.Kind]
		}
		again := func(context.Context, *simplequeue.Job) error { return nil }
		w.run(simplequeue.Options{Handlers: []simplequeue.Handler{
			simplequeue.HandlerFunc("zombie", hold), simplequeue.HandlerFunc("again", again),
		}})
	}
}

// zombieOutcomes are what a stale owner may still want to write.
var zombieOutcomes = map[string]error{
	"complete":   nil,
	"retry":      errors.New("stale failure"),
	"reschedule": simplequeue.RescheduleAfter(time.Hour),
	"cancel":     simplequeue.Cancel(errors.New("stale")),
	"critical":   simplequeue.Critical(errors.New("stale")),
}

// A process that was suspended for longer than its leases finds them lost when
// it wakes: every handler's context ends with ErrLeaseLost, nothing that it
// writes counts, the jobs stay with their new owner, and it serves on.
func TestSuspendedWorkerLosesItsJobs(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	pool := pgtest.Pool(t, url, 6)
	inserter := newQueue(t, pool, simplequeue.Options{})
	ids := map[string]uuid.UUID{}
	for kind := range zombieOutcomes {
		ids[kind] = insert(t, inserter, simplequeue.NewJob{Queue: "zombie", Kind: kind})
	}
	p := startProcess(t, "zombie", url, "")
	for range ids {
		p.await(t, "holds")
	}
	p.signal(t, syscall.SIGSTOP)

	// The new owner finishes one job while the old one sleeps, and holds one
	// after the other through the zombie's awakening.
	release := make(chan struct{})
	var held atomic.Int64
	opts := simplequeue.Options{HeartbeatInterval: 4 * time.Second, ReaperInterval: 200 * time.Millisecond, Handlers: []simplequeue.Handler{
		simplequeue.HandlerFunc("zombie", func(ctx context.Context, job *simplequeue.Job) error {
			if held.Add(1) == 1 {
				return nil
			}
			select {
			case <-release:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}),
	}}
	q := newQueue(t, pool, opts)
	start(t, q)
	eventually(t, "the new owner has finished one job and holds another", func() bool { return held.Load() == 2 })
	p.signal(t, syscall.SIGCONT)
	for range ids {
		cause := p.await(t, "cause")
		if kind, why := cutKind(cause); why != simplequeue.ErrLeaseLost.Error() {
			t.Errorf("context of the stale %s job ended by %q, want %q", kind, why, simplequeue.ErrLeaseLost)
		}
	}
	again := insert(t, q, simplequeue.NewJob{Queue: "again"})
	awaitState(t, q, again, simplequeue.StateCompleted) // by the woken process
	close(release)
	for kind, id := range ids {
		got := awaitState(t, q, id, simplequeue.StateCompleted)
		if got.Attempt != 2 || got.CrashCount != 1 || len(got.Errors) != 1 || got.Errors[0].Reason != "worker_lost" {
			t.Errorf("%s: attempt %d, crash count %d, errors %+v, want attempt 2 after one lost worker", kind, got.Attempt, got.CrashCount, got.Errors)
		}
	}
	eventually(t, "the reaped jobs are counted", func() bool { return q.Stats().Reaped >= int64(len(ids)) })
	if s := q.Stats(); s.Reaped != int64(len(ids)) || s.LeasesLost != 0 {
		t.Errorf("new owner: reaped %d, leases lost %d, want %d and 0", s.Reaped, s.LeasesLost, len(ids))
	}
}

func cutKind(s string) (kind, rest string) {
	for i := range s {
		if s[i] == ':' {
			return s[:i], s[i+2:]
		}
	}
	return s, ""
}

// expire makes a running job's lease look long unrenewed, once the first sweep of
// a worker is over, which would find it otherwise.
func expire(t *testing.T, pool *pgxpool.Pool, id uuid.UUID) {
	t.Helper()
	eventually(t, "the first sweep is over", func() bool {
		return queryOne[int](t, pool, "SELECT count(*) FROM simplequeue.job_sweep WHERE name = 'reaper' AND swept_at > continuous_since") == 1
	})
	tag, err := pool.Exec(t.Context(), `WITH beat AS (DELETE FROM simplequeue.job_lease)
		UPDATE simplequeue.job_running SET claimed_at = claimed_at - interval '1 hour', lease_ms = 1 WHERE id = $1`, id)
	if err != nil || tag.RowsAffected() != 1 {
		t.Fatalf("expire: %v, %d rows", err, tag.RowsAffected())
	}
	// Sweeps have not been interrupted.
	if _, err := pool.Exec(t.Context(), `UPDATE simplequeue.job_sweep SET continuous_since = continuous_since - interval '1 hour'`); err != nil {
		t.Fatal(err)
	}
}

// An owner whose lease has been taken away and who has not noticed yet writes
// its outcome while the same job runs elsewhere in the same state: nothing
// changes, whatever the outcome, and it counts as a lost lease, not as done.
func TestOutcomeOfAStaleOwnerChangesNothing(t *testing.T) {
	t.Parallel()
	outcomes := map[string]error{"last attempt": errors.New("stale"), "give back": errors.New("stale")}
	for kind, err := range zombieOutcomes {
		outcomes[kind] = err
	}
	for name, outcome := range outcomes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.New(t)
			first, second := make(chan struct{}), make(chan struct{})
			var running [2]sync.WaitGroup
			running[0].Add(1)
			running[1].Add(1)
			var backTo sync.Once
			old := newQueue(t, pool, simplequeue.Options{
				ReaperInterval: time.Hour, Stop: simplequeue.StopTimeouts{Drain: -1},
				Handlers: []simplequeue.Handler{simplequeue.HandlerFunc("zombie", func(ctx context.Context, _ *simplequeue.Job) error {
					backTo.Do(running[0].Done)
					<-first
					if name == "give back" {
						<-ctx.Done()
					}
					return outcome
				})},
			})
			stopOld := start(t, old)
			job := simplequeue.NewJob{Queue: "zombie"}
			if name == "last attempt" {
				job.MaxAttempts = 2
			}
			id := insert(t, old, job)
			running[0].Wait()
			var runs atomic.Int64
			next := newQueue(t, pool, simplequeue.Options{
				ReaperInterval: 50 * time.Millisecond,
				Handlers: []simplequeue.Handler{simplequeue.HandlerFunc("zombie", func(context.Context, *simplequeue.Job) error {
					if runs.Add(1) == 1 {
						running[1].Done()
					}
					<-second
					return nil
				})},
			})
			// Only the new owner may run it again.
			if err := old.SetQueuePermits("zombie", 1); err != nil {
				t.Fatal(err)
			}
			start(t, next)
			eventually(t, "the new owner sweeps", func() bool { return swept(t, pool) })
			expire(t, pool, id)
			running[1].Wait()
			before := get(t, next, id)

			close(first)
			if name == "give back" {
				if err := stopOld(); err != nil {
					t.Errorf("Run of the old owner: %v", err)
				}
			}
			eventually(t, "the old owner's outcome is refused", func() bool { return old.Stats().LeasesLost == 1 })
			after := get(t, next, id)
			if after.State != simplequeue.StateRunning || after.Attempt != 2 || after.StartedAt != before.StartedAt ||
				after.WorkerID != before.WorkerID || len(after.Errors) != 1 {
				t.Errorf("after the stale outcome: %s, attempt %d, started %v by %v, errors %+v; before it: %s, attempt %d, started %v by %v",
					after.State, after.Attempt, after.StartedAt, after.WorkerID, after.Errors, before.State, before.Attempt, before.StartedAt, before.WorkerID)
			}
			close(second)
			awaitState(t, next, id, simplequeue.StateCompleted)
			s := old.Stats()
			if s.Completed+s.Retried+s.Rescheduled+s.GivenBack+s.DeadLettered != 0 {
				t.Errorf("the old owner counts its stale outcome: %+v", s)
			}
			if n := runs.Load(); n != 1 {
				t.Errorf("the new owner ran the job %d times, want once", n)
			}
		})
	}
}

// swept reports whether a reaper has been at work in the database.
func swept(t *testing.T, pool *pgxpool.Pool) (found bool) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), "SELECT EXISTS (SELECT FROM simplequeue.job_sweep WHERE name = 'reaper')").Scan(&found); err != nil {
		t.Fatal(err)
	}
	return found
}

// A job that already ended is not touched by an owner that comes late: terminal
// is final.
func TestOutcomeOfAStaleOwnerLeavesAFinishedJobAlone(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	running, release := make(chan struct{}), make(chan struct{})
	q := newQueue(t, pool, handler("late", func(context.Context, *simplequeue.Job) error {
		close(running)
		<-release
		return errors.New("late failure")
	}))
	start(t, q)
	id := insert(t, q, simplequeue.NewJob{Queue: "late", MaxAttempts: 1})
	<-running
	reap := newQueue(t, pool, simplequeue.Options{
		ReaperInterval: 50 * time.Millisecond,
		Handlers:       []simplequeue.Handler{simplequeue.HandlerFunc("other", func(context.Context, *simplequeue.Job) error { return nil })},
	})
	start(t, reap)
	eventually(t, "sweeps run", func() bool { return swept(t, pool) })
	expire(t, pool, id)
	before := awaitState(t, q, id, simplequeue.StateFailed)
	close(release)
	eventually(t, "the late outcome is refused", func() bool { return q.Stats().LeasesLost == 1 })
	if after := get(t, q, id); after.State != before.State || after.Reason != before.Reason || len(after.Errors) != len(before.Errors) {
		t.Errorf("after the late outcome: %s %q %+v, before: %s %q %+v", after.State, after.Reason, after.Errors, before.State, before.Reason, before.Errors)
	}
}
