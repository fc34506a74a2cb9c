package simplequeue_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/backoff"
	"github.com/simplequeue/simplequeue/internal/pgtest"
	"github.com/simplequeue/simplequeue/reaper"
)

// What a newer program may keep with a job that this one knows nothing of: more
// properties, one that is known in another form, and more in the error history.
const (
	futureProps  = `{"future": {"n": 12345678901234567890123.45, "list": [null, "\u2603", {"a": []}]}, "trace": ["in another form"]}`
	futureErrors = `[{"attempt": 1, "error": "of long ago", "future": 18446744073709551616}]`
)

// fromTheFuture inserts a job as a newer program would.
func fromTheFuture(t testing.TB, pool *pgxpool.Pool, q *simplequeue.SimpleQueue, job simplequeue.NewJob) (id uuid.UUID) {
	t.Helper()
	err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		r, err := q.InsertTx(t.Context(), tx, job)
		if err != nil {
			return err
		}
		id = r.ID
		for _, table := range []string{"job_waiting", "job_queue"} {
			_, err := tx.Exec(t.Context(), "UPDATE simplequeue."+table+` SET props = coalesce(props, '{}') || $2::text::jsonb, errors = $3::text::jsonb
				WHERE id = $1`, id, futureProps, futureErrors)
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// keptWhatItHad verifies that a job is in one table and has all that
// fromTheFuture gave it. A copy has no error history.
func keptWhatItHad(t testing.TB, pool *pgxpool.Pool, name string, id uuid.UUID, history bool) {
	t.Helper()
	var rows int
	var properties, errors bool
	var is string
	err := pool.QueryRow(context.Background(), `
		SELECT count(*), coalesce(bool_and(j.props @> $2::text::jsonb), false),
		       coalesce(bool_and(j.errors @> $3::text::jsonb), false), coalesce(max(j.props::text || ' ' || coalesce(j.errors::text, '')), '')
		FROM (
			SELECT id, props, errors FROM simplequeue.job
			UNION ALL
			SELECT id, props, errors FROM simplequeue.job_outcome
		) AS j
		WHERE j.id = $1`, id, futureProps, futureErrors).Scan(&rows, &properties, &errors, &is)
	if err != nil {
		t.Fatal(err)
	}
	if rows != 1 || !properties || history && !errors {
		t.Errorf("%s: the job is in %d rows and lost some of what a newer program gave it: %s", name, rows, is)
	}
}

// A program moves the jobs of a newer one, and whichever way a job goes it loses
// nothing that the program knows nothing of.
func TestJobOfANewerProgramLosesNothing(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	ended := func(s simplequeue.State) func(simplequeue.JobInfo) bool {
		return func(i simplequeue.JobInfo) bool { return i.State == s }
	}
	completed := ended(simplequeue.StateCompleted)
	waits := func(reason string) func(simplequeue.JobInfo) bool {
		return func(i simplequeue.JobInfo) bool { return i.Reason == reason }
	}
	always := func(err error) func(context.Context, *simplequeue.Job) error {
		return func(context.Context, *simplequeue.Job) error { return err }
	}
	once := func(err error) func(context.Context, *simplequeue.Job) error {
		return func(_ context.Context, job *simplequeue.Job) error {
			if job.Attempt == 1 && job.ReprocessCount == 0 {
				return err
			}
			return nil
		}
	}
	nothing := simplequeue.Retention{Archive: simplequeue.KeepNothing, DeadLetter: simplequeue.KeepNothing}
	broken := errors.New("broken")
	var asked sync.Map
	ways := map[string]struct {
		job     simplequeue.NewJob
		process func(context.Context, *simplequeue.Job) error
		acquire func(context.Context, *simplequeue.Job) (func(), error)
		there   func(simplequeue.JobInfo) bool // it has gone all the way; default: completed
	}{
		"completed": {process: always(nil)},
		"delayed":   {job: simplequeue.NewJob{Delay: time.Millisecond}, process: always(nil)},
		"apart":     {job: simplequeue.NewJob{Payload: strings.Repeat("p", 3000)}, process: once(broken)},
		"result":    {process: func(_ context.Context, job *simplequeue.Job) error { return job.SetResult(1) }},
		"in a transaction": {process: func(ctx context.Context, job *simplequeue.Job) error {
			return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return job.CompleteTx(ctx, tx) })
		}},
		"checkpoint": {process: func(ctx context.Context, job *simplequeue.Job) error {
			if job.Attempt > 1 {
				return nil
			}
			return errors.Join(broken, job.Checkpoint(ctx, strings.Repeat("p", 3000), nil))
		}},
		"step": {process: func(ctx context.Context, job *simplequeue.Job) error {
			_, err := simplequeue.Step(ctx, job, "one", func(context.Context) (int, error) { return 1, nil })
			return err
		}},
		"outcome only": {job: simplequeue.NewJob{Awaited: true, Retention: nothing}, process: always(nil), there: func(simplequeue.JobInfo) bool { return false }},
		"retried":      {process: once(broken)},
		"panicked": {process: func(_ context.Context, job *simplequeue.Job) error {
			if job.Attempt == 1 {
				panic("broken")
			}
			return nil
		}},
		"rescheduled":   {process: once(simplequeue.RescheduleAfter(0))},
		"failed":        {job: simplequeue.NewJob{MaxAttempts: 2}, process: always(broken), there: ended(simplequeue.StateFailed)},
		"critical":      {process: always(simplequeue.Critical(broken)), there: ended(simplequeue.StateCritical)},
		"unprocessable": {process: always(simplequeue.Unprocessable(broken)), there: ended(simplequeue.StateUnprocessable)},
		"cancels":       {process: always(simplequeue.Cancel(broken)), there: ended(simplequeue.StateCancelled)},
		"parked":        {there: waits("unknown_kind")},
		"deferred": {process: always(nil), acquire: func(_ context.Context, job *simplequeue.Job) (func(), error) {
			if _, again := asked.LoadOrStore(job.ID, true); !again {
				return nil, simplequeue.RescheduleAfter(0)
			}
			return nil, nil
		}},
		"given back": {process: always(nil), acquire: func(ctx context.Context, job *simplequeue.Job) (func(), error) {
			if _, again := asked.LoadOrStore(job.ID, true); !again {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return nil, nil
		}},
		"in order":       {job: simplequeue.NewJob{OrderKey: "k", Delay: time.Millisecond}, process: once(broken)},
		"to the tail":    {job: simplequeue.NewJob{OrderKey: "k"}, process: once(simplequeue.RescheduleToTail(0))},
		"fair":           {job: simplequeue.NewJob{FairnessKey: "k"}, process: always(nil)},
		"fair, in order": {job: simplequeue.NewJob{OrderKey: "both", FairnessKey: "k"}, process: always(nil)},
		"held":           {job: simplequeue.NewJob{Hold: time.Hour}, process: always(nil)},
		"held at a gate": {job: simplequeue.NewJob{Hold: time.Hour, FairnessKey: "k"}, process: always(nil)},
	}
	mux := simplequeue.NewMux("q")
	for name, way := range ways {
		h := simplequeue.HandlerFunc("", way.process)
		switch {
		case way.process == nil: // of no kind that is known
		case way.acquire != nil:
			mux.Handle(name, permitted{h, way.acquire})
		default:
			mux.Handle(name, h)
		}
	}
	q := newQueue(t, pool, simplequeue.Options{
		Handlers: []simplequeue.Handler{mux}, Backoff: backoff.Constant(0), PermitWait: 20 * time.Millisecond,
		JanitorInterval: 20 * time.Millisecond, ReaperInterval: 20 * time.Millisecond,
	})
	start(t, q)
	ids := map[string]uuid.UUID{}
	for name, way := range ways {
		way.job.Queue, way.job.Kind = "q", name
		ids[name] = fromTheFuture(t, pool, q, way.job)
		if way.job.Hold > 0 {
			if done, err := q.CommitHeld(t.Context(), ids[name]); err != nil || len(done) != 1 {
				t.Fatalf("%s: %v, %v", name, done, err)
			}
		}
	}
	for name, way := range ways {
		eventually(t, name, func() bool {
			info, err := q.Get(context.Background(), ids[name])
			if name == "outcome only" {
				return errors.Is(err, simplequeue.ErrNotFound)
			}
			if way.there != nil {
				return err == nil && way.there(info)
			}
			return err == nil && completed(info)
		})
		keptWhatItHad(t, pool, name, ids[name], true)
	}

	// A program that knows the kind takes what was parked.
	knows := newQueue(t, pool, handler("q", func(context.Context, *simplequeue.Job) error { return nil }))
	stop := start(t, knows)
	awaitState(t, q, ids["parked"], simplequeue.StateCompleted)
	keptWhatItHad(t, pool, "parked, and claimed there", ids["parked"], true)
	_ = stop()
}

// So do those who operate the queue, and the reaper.
func TestOperatorsTakeNothingFromJobsOfANewerProgram(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{})
	add := func(name string, job simplequeue.NewJob) uuid.UUID {
		t.Helper()
		job.Queue = name
		return fromTheFuture(t, pool, q, job)
	}
	must := func(name string, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}

	for name, job := range map[string]simplequeue.NewJob{
		"cancelled, pending": {},
		"cancelled, waiting": {Delay: time.Hour},
		"cancelled, gated":   {OrderKey: "k"},
		"cancelled, held":    {Hold: time.Hour},
	} {
		id := add(name, job)
		_, err := q.Cancel(t.Context(), id, "")
		must(name, err)
		keptWhatItHad(t, pool, name, id, true)
	}

	running := add("cancelled, running", simplequeue.NewJob{})
	l := claimOne(t, q, "cancelled, running")
	_, err := q.Cancel(t.Context(), running, "")
	must("cancelled, running", errors.Join(err, l.Settle(t.Context(), errors.New("stopped"))))
	keptWhatItHad(t, pool, "cancelled, running", running, true)

	for name, c := range map[string]struct {
		job simplequeue.NewJob
		to  simplequeue.Change
	}{
		"changed, pending":     {simplequeue.NewJob{}, simplequeue.Change{Priority: new(int)}},
		"changed, to wait":     {simplequeue.NewJob{}, simplequeue.Change{Delay: time.Hour, Payload: strings.Repeat("p", 3000)}},
		"changed, waiting":     {simplequeue.NewJob{Delay: time.Hour}, simplequeue.Change{Delay: 2 * time.Hour}},
		"changed, to be ready": {simplequeue.NewJob{Delay: time.Hour}, simplequeue.Change{RunAt: time.Unix(1, 0), Raw: []byte("r")}},
		"changed, gated":       {simplequeue.NewJob{OrderKey: "k"}, simplequeue.Change{Delay: time.Hour}},
	} {
		id := add(name, c.job)
		must(name, q.Change(t.Context(), id, c.to))
		keptWhatItHad(t, pool, name, id, true)
	}

	debounced := simplequeue.NewJob{Delay: time.Hour, UniqueKey: "k"}
	id := add("debounced", debounced)
	debounced.Queue, debounced.Delay, debounced.Unique.OnConflict = "debounced", 2*time.Hour, simplequeue.ConflictDebounce
	if r, err := q.Insert(t.Context(), debounced); err != nil || !r.Replaced || r.ID != id {
		t.Errorf("debounced: %+v, %v", r, err)
	}
	keptWhatItHad(t, pool, "debounced", id, true)

	id = add("given back", simplequeue.NewJob{})
	must("given back", claimOne(t, q, "given back").GiveBack(t.Context()))
	keptWhatItHad(t, pool, "given back", id, true)

	for name, most := range map[string]int{"reaped": 3, "reaped for good": 1} {
		id := add(name, simplequeue.NewJob{MaxAttempts: most})
		claimOne(t, q, name)
		execute(t, pool, fmt.Sprintf("UPDATE simplequeue.job_running SET claimed_at = '-infinity' WHERE id = '%v'", id))
		r, err := reaper.New(pool, reaper.Options{})
		must(name, err)
		if done, err := r.Once(t.Context()); err != nil || done.Reaped() != 1 {
			t.Errorf("%s: %+v, %v", name, done, err)
		}
		keptWhatItHad(t, pool, name, id, true)
	}

	// From the dead letter queue, also past a job that holds the key, and from
	// where a cancel leaves a job.
	id = add("redriven", simplequeue.NewJob{UniqueKey: "k", Payload: strings.Repeat("p", 3000)})
	bury(t, pool, q, simplequeue.Filter{IDs: []uuid.UUID{id}})
	keptWhatItHad(t, pool, "dead", id, true)
	holder := insert(t, q, simplequeue.NewJob{Queue: "redriven", UniqueKey: "k"})
	redrive := func(want int) {
		t.Helper()
		done, err := q.Redrive(t.Context(), simplequeue.Filter{IDs: []uuid.UUID{id}}, simplequeue.RedriveOptions{})
		if err != nil || len(done.IDs) != want {
			t.Errorf("redriven: %+v, %v, want %d", done, err, want)
		}
		keptWhatItHad(t, pool, fmt.Sprintf("redriven %d", want), id, true)
	}
	cancel := func(id uuid.UUID) {
		t.Helper()
		_, err := q.Cancel(t.Context(), id, "")
		must("cancel", err)
	}
	redrive(0)
	cancel(holder)
	redrive(1)
	cancel(id)
	redrive(1)

	id = add("replayed", simplequeue.NewJob{})
	must("replayed", claimOne(t, q, "replayed").Settle(t.Context(), nil))
	done, err := q.Replay(t.Context(), simplequeue.Filter{IDs: []uuid.UUID{id}}, simplequeue.RedriveOptions{})
	if err != nil || len(done.IDs) != 1 {
		t.Fatalf("replayed: %+v, %v", done, err)
	}
	keptWhatItHad(t, pool, "replayed", id, true)
	keptWhatItHad(t, pool, "the copy", done.IDs[0], false)
}
