package simplequeue_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/backoff"
	"github.com/simplequeue/simplequeue/internal/pgtest"
	"github.com/simplequeue/simplequeue/internal/store"
	"github.com/simplequeue/simplequeue/reaper"
)

// A waiting and a pending job end at once; no other job is touched, and nobody
// runs what was cancelled.
func TestCancelEndsOneJobThatHasNotStarted(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	ran := make(chan uuid.UUID, 20)
	q := newQueue(t, pool, handler("a", func(_ context.Context, job *simplequeue.Job) error { ran <- job.ID; return nil }))
	var ids []uuid.UUID
	for i := range 10 {
		ids = append(ids, insert(t, q, simplequeue.NewJob{Queue: "a", Fingerprint: "f", UniqueKey: fmt.Sprint(i)}))
	}
	later := insert(t, q, simplequeue.NewJob{Queue: "a", Delay: time.Hour})
	for _, id := range []uuid.UUID{ids[4], later} {
		got, err := q.Cancel(t.Context(), id, "not wanted")
		if err != nil || got != simplequeue.StateCancelled {
			t.Fatalf("Cancel = %s, %v", got, err)
		}
		info := get(t, q, id)
		if info.State != simplequeue.StateCancelled || info.Reason != "not wanted" || info.Attempt != 0 || info.FinishedAt.IsZero() {
			t.Errorf("cancelled job: %+v", info)
		}
	}
	want := map[simplequeue.State]int64{simplequeue.StatePending: 9, simplequeue.StateCancelled: 2}
	if d := cmp.Diff(want, counts(t, q, "a")); d != "" {
		t.Errorf("counts (-want +got):\n%s", d)
	}
	start(t, q)
	for range 9 {
		if id := <-ran; id == ids[4] || id == later {
			t.Errorf("a cancelled job ran")
		}
	}
	awaitCompleted(t, q, "a", 9)
	eventually(t, "the cancelled jobs are dead letters", func() bool {
		return queryOne[int](t, pool, "SELECT count(*) FROM simplequeue.job_queue_dlq") == 2
	})
	for _, table := range []string{"job_fingerprint", "job_unique", "job_finished", "job_cancel"} {
		if n := queryOne[int](t, pool, "SELECT count(*) FROM simplequeue."+table); n != 0 {
			t.Errorf("%s holds %d rows of jobs that have ended", table, n)
		}
	}
}

// The context of a running job ends with ErrCancelled, and the job ends as
// cancelled whatever its handler then returns, with the reason that was given.
func TestCancelOfARunningJob(t *testing.T) {
	t.Parallel()
	returns := map[string]func(ctx context.Context) error{
		"the context's error": func(ctx context.Context) error { return ctx.Err() },
		"the cause":           context.Cause,
		"another error":       func(context.Context) error { return errors.New("x") },
		"a retry":             func(context.Context) error { return simplequeue.RetryAfter(0, errors.New("x")) },
		"a reschedule":        func(context.Context) error { return simplequeue.RescheduleAfter(0) },
		"critical":            func(context.Context) error { return simplequeue.Critical(errors.New("x")) },
		"unprocessable":       func(context.Context) error { return simplequeue.Unprocessable(nil) },
		"a panic":             func(context.Context) error { panic("x") },
	}
	for _, attempts := range []int{1, 3} {
		t.Run(fmt.Sprint(attempts, " attempts"), func(t *testing.T) {
			t.Parallel()
			causes := make(chan error, len(returns))
			q := newQueue(t, pgtest.New(t), handler("a", func(ctx context.Context, job *simplequeue.Job) error {
				<-ctx.Done()
				causes <- context.Cause(ctx)
				return returns[job.Kind](ctx)
			}))
			start(t, q)
			ids := map[string]uuid.UUID{}
			for kind := range returns {
				ids[kind] = insert(t, q, simplequeue.NewJob{Queue: "a", Kind: kind, MaxAttempts: attempts, UniqueKey: kind})
			}
			for kind, id := range ids {
				awaitState(t, q, id, simplequeue.StateRunning)
				if got, err := q.Cancel(t.Context(), id, "enough"); err != nil || got != simplequeue.StateCancelling {
					t.Fatalf("%s: Cancel = %s, %v", kind, got, err)
				}
			}
			for kind, id := range ids {
				if cause := <-causes; !errors.Is(cause, simplequeue.ErrCancelled) || !strings.Contains(cause.Error(), "enough") {
					t.Errorf("cause %v, want ErrCancelled with the reason", cause)
				}
				eventually(t, kind+" ended", func() bool { return get(t, q, id).State.Terminal() })
				if got := get(t, q, id); got.State != simplequeue.StateCancelled || got.Reason != "enough" || got.Attempt != 1 {
					t.Errorf("%s: job is %s because %q after %d attempts, want cancelled because \"enough\" after one", kind, got.State, got.Reason, got.Attempt)
				}
				insert(t, q, simplequeue.NewJob{Queue: "b", UniqueKey: kind})
			}
		})
	}
}

// A request that comes too late for the handler to hear of it is seen by what
// writes the outcome: a job that would be tried again, put off, parked, given
// back or that has failed for good ends as cancelled; a completed one stays.
func TestACancelThatTheHandlerDoesNotHear(t *testing.T) {
	t.Parallel()
	for name, aside := range map[string]bool{"direct": false, "aside": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var opts simplequeue.Options
			if aside {
				opts = opts.FinishAside()
			}
			unheardCancel(t, opts)
		})
	}
}

func unheardCancel(t *testing.T, opts simplequeue.Options) {
	pool := pgtest.New(t)
	results := map[string]error{
		"retry": simplequeue.RetryAfter(0, errors.New("x")), "reschedule": simplequeue.RescheduleAfter(0), "error": errors.New("x"),
		"last": errors.New("x"), "critical": simplequeue.Critical(errors.New("x")), "unprocessable": simplequeue.Unprocessable(nil),
		"cancel": simplequeue.Cancel(errors.New("x")), "completed": nil,
	}
	release := make(chan struct{})
	opts.Handlers = handler("a", func(_ context.Context, job *simplequeue.Job) error { <-release; return results[job.Kind] }).Handlers
	opts.PollInterval = time.Minute
	opts.PollOnly = true // the worker hears of no request in time
	q := newQueue(t, pool, opts)
	other := newQueue(t, pool, simplequeue.Options{})
	ids := map[string]uuid.UUID{}
	for kind := range results {
		job := simplequeue.NewJob{Queue: "a", Kind: kind}
		if kind == "last" {
			job.MaxAttempts = 1
		}
		ids[kind] = insert(t, q, job)
	}
	start(t, q)
	for kind, id := range ids {
		awaitState(t, q, id, simplequeue.StateRunning)
		if got, err := other.Cancel(t.Context(), id, "enough"); err != nil || got != simplequeue.StateCancelling {
			t.Fatalf("%s: Cancel = %s, %v", kind, got, err)
		}
		if got := state(t, q, id); got != simplequeue.StateCancelling {
			t.Errorf("%s: job is %s, want cancelling", kind, got)
		}
	}
	close(release)
	for kind, id := range ids {
		eventually(t, kind+" ended", func() bool { return get(t, q, id).State.Terminal() })
		want, reason := simplequeue.StateCancelled, "enough"
		if kind == "completed" {
			want, reason = simplequeue.StateCompleted, ""
		}
		if got := get(t, q, id); got.State != want || got.Reason != reason {
			t.Errorf("%s: job is %s because %q, want %s because %q", kind, got.State, got.Reason, want, reason)
		}
	}
}

// TestCancelMakesAnEarlierRequestGiveWay: after a failover a claim may have the
// number of an earlier one, for which a request may still be there.
func TestCancelMakesAnEarlierRequestGiveWay(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	begun := make(chan struct{})
	q := newQueue(t, pool, handler("x", func(ctx context.Context, _ *simplequeue.Job) error {
		close(begun)
		<-ctx.Done()
		return ctx.Err()
	}))
	id := insert(t, q, simplequeue.NewJob{Queue: "x"})
	start(t, q)
	<-begun
	execute(t, pool, `INSERT INTO simplequeue.job_cancel (claim_id, claim_nonce, job_id, reason)
		SELECT r.claim_id, r.claim_nonce # 1, gen_random_uuid(), 'old' FROM simplequeue.job_running AS r`)
	if _, err := q.Cancel(t.Context(), id, "new"); err != nil {
		t.Fatal(err)
	}
	if _, err := q.Cancel(t.Context(), id, "newer"); err != nil && !errors.Is(err, simplequeue.ErrFinished) {
		t.Fatal(err)
	}
	if info := awaitState(t, q, id, simplequeue.StateCancelled); info.Reason != "new" {
		t.Errorf("cancelled because of %q, want the first request", info.Reason)
	}
}

// A job that has ended stays what it is, and an id that nobody has is unknown.
func TestCancelOfAFinishedJobChangesNothing(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, handler("a", func(_ context.Context, job *simplequeue.Job) error {
		if job.Kind == "dead" {
			return simplequeue.Critical(nil)
		}
		return nil
	}))
	stop := start(t, q)
	done, dead := insert(t, q, simplequeue.NewJob{Queue: "a", Kind: "done"}), insert(t, q, simplequeue.NewJob{Queue: "a", Kind: "dead"})
	awaitState(t, q, done, simplequeue.StateCompleted)
	awaitState(t, q, dead, simplequeue.StateCritical)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	cancelled := insert(t, q, simplequeue.NewJob{Queue: "a"}) // ends in job_finished
	if _, err := q.Cancel(t.Context(), cancelled, "first"); err != nil {
		t.Fatal(err)
	}
	for _, id := range []uuid.UUID{done, dead, cancelled} {
		before := get(t, q, id)
		got, err := q.Cancel(t.Context(), id, "second")
		if !errors.Is(err, simplequeue.ErrFinished) || got != before.State {
			t.Errorf("Cancel = %s, %v, want %s, ErrFinished", got, err, before.State)
		}
		if d := cmp.Diff(before, get(t, q, id), cmpopts.IgnoreUnexported(simplequeue.Job{})); d != "" {
			t.Errorf("the job changed:\n%s", d)
		}
	}
	if n, err := q.CancelMatching(t.Context(), simplequeue.Filter{Queue: "a"}, ""); n != 0 || err != nil {
		t.Errorf("CancelMatching = %d, %v, want none", n, err)
	}
	if n, err := q.CancelMatching(t.Context(), simplequeue.Filter{IDs: []uuid.UUID{done}, States: []simplequeue.State{simplequeue.StateCompleted}}, ""); n != 0 || err != nil {
		t.Errorf("CancelMatching of completed jobs = %d, %v, want none", n, err)
	}
	if _, err := q.Cancel(t.Context(), uuid.New(), ""); !errors.Is(err, simplequeue.ErrNotFound) {
		t.Errorf("error %v, want ErrNotFound", err)
	}
}

// A filter cancels what it selects, in every live state, and nothing else; one
// that selects everything is refused.
func TestCancelMatching(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	opts := handler("a", func(ctx context.Context, _ *simplequeue.Job) error { <-ctx.Done(); return ctx.Err() })
	opts.Queues = map[string]simplequeue.QueueOptions{"a": {Permits: 2}}
	opts.Stop.Drain = -1 // bystanders run until then
	q := newQueue(t, pool, opts)
	var victims, bystanders []uuid.UUID
	for i := range 2 {
		victims = append(victims, insert(t, q, simplequeue.NewJob{Queue: "a", Fingerprint: "f", Kind: fmt.Sprint(i)}))
	}
	start(t, q)
	for _, id := range victims {
		awaitState(t, q, id, simplequeue.StateRunning)
	}
	var jobs []simplequeue.NewJob
	for i := range 1200 { // more than a round
		jobs = append(jobs, simplequeue.NewJob{Queue: "a", Fingerprint: "f", Delay: time.Duration(i%2) * time.Hour})
	}
	for i := range 10 {
		jobs = append(jobs, simplequeue.NewJob{Queue: "a", Fingerprint: "other", Delay: time.Duration(i%2) * time.Hour}, simplequeue.NewJob{Queue: "b"})
	}
	r, err := q.InsertMany(t.Context(), jobs)
	if err != nil {
		t.Fatal(err)
	}
	for i := range r {
		if i < 1200 {
			victims = append(victims, r[i].ID)
		} else {
			bystanders = append(bystanders, r[i].ID)
		}
	}
	n, err := q.CancelMatching(t.Context(), simplequeue.Filter{Fingerprint: "f"}, "all of them")
	if err != nil || n != len(victims) {
		t.Errorf("CancelMatching = %d, %v, want %d", n, err, len(victims))
	}
	eventually(t, "all are cancelled", func() bool {
		c, err := q.Count(t.Context(), simplequeue.Filter{Fingerprint: "f"})
		return err == nil && c[simplequeue.StateCancelled] == int64(len(victims)) && len(c) == 1
	})
	for _, id := range bystanders {
		if got := state(t, q, id); got == simplequeue.StateCancelled || got == simplequeue.StateCancelling {
			t.Fatalf("a bystander is %s", got)
		}
	}
	for _, f := range []simplequeue.Filter{{}, {States: []simplequeue.State{simplequeue.StatePending}}, {Limit: 1}} {
		if _, err := q.CancelMatching(t.Context(), f, ""); err == nil {
			t.Errorf("CancelMatching(%+v) was not refused", f)
		}
	}
}

// beforeBatch is a tracer that is told of batches before they are sent.
type beforeBatch func(b *pgx.Batch)

func (beforeBatch) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}
func (beforeBatch) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}
func (f beforeBatch) TraceBatchStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceBatchStartData) context.Context {
	f(data.Batch)
	return ctx
}
func (beforeBatch) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}
func (beforeBatch) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData)     {}

// A job that has left the states asked for, once it was picked, is left alone: a
// pending one that somebody has claimed runs on.
func TestCancelMatchingKeepsToTheStatesAskedFor(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{})
	runAt := func(at time.Time) func(uuid.UUID) error {
		return func(id uuid.UUID) error { return q.Change(t.Context(), id, simplequeue.Change{RunAt: at}) }
	}
	for i, c := range []struct {
		asked, moved simplequeue.State
		move         func(id uuid.UUID) error
	}{
		{simplequeue.StatePending, simplequeue.StateWaiting, runAt(time.Now().Add(time.Hour))},
		{simplequeue.StateWaiting, simplequeue.StatePending, runAt(time.Now().Add(-time.Hour))},
		{simplequeue.StatePending, simplequeue.StateRunning, func(id uuid.UUID) error {
			if l := claimOne(t, q, "2"); l.Job.ID != id {
				return fmt.Errorf("claimed %v", l.Job.ID)
			}
			return nil
		}},
	} {
		job := simplequeue.NewJob{Queue: strconv.Itoa(i)}
		if c.asked == simplequeue.StateWaiting {
			job.Delay = time.Hour
		}
		moves, stays := insert(t, q, job), insert(t, q, job)
		config := pool.Config()
		var once sync.Once
		config.ConnConfig.Tracer = beforeBatch(func(b *pgx.Batch) {
			if slices.ContainsFunc(b.QueuedQueries, func(q *pgx.QueuedQuery) bool { return strings.Contains(q.SQL, "'cancelled'") }) {
				once.Do(func() {
					if err := c.move(moves); err != nil {
						t.Error(err)
					}
				})
			}
		})
		traced, err := pgxpool.NewWithConfig(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		defer traced.Close()
		f := simplequeue.Filter{Queue: job.Queue, States: []simplequeue.State{c.asked}}
		if n, err := newQueue(t, traced, simplequeue.Options{}).CancelMatching(t.Context(), f, ""); err != nil || n != 1 {
			t.Errorf("%s: %d cancelled, %v, want 1", c.asked, n, err)
		}
		if a, b := state(t, q, stays), state(t, q, moves); a != simplequeue.StateCancelled || b != c.moved {
			t.Errorf("%s: the jobs are %s and %s, want cancelled and %s", c.asked, a, b, c.moved)
		}
	}
}

// The holder of a unique key is found by it, in its queue or, with no queue
// named, in any, whether the key is the queue's or global.
func TestCancelByUniqueKey(t *testing.T) {
	t.Parallel()
	q := newQueue(t, pgtest.New(t), simplequeue.Options{})
	ctx := t.Context()
	for _, c := range []struct {
		queue   string
		victims []bool
	}{
		{"a", []bool{true, false, false}},
		{"b", []bool{false, true, false}},
		{"c", []bool{false, false, true}},
		{"", []bool{true, true, true}},
		{"d", []bool{false, false, false}},
	} {
		ids := []uuid.UUID{
			insert(t, q, simplequeue.NewJob{Queue: "a", UniqueKey: "k"}),
			insert(t, q, simplequeue.NewJob{Queue: "b", UniqueKey: "k", Delay: time.Hour}),
			insert(t, q, simplequeue.NewJob{Queue: "c", UniqueKey: "k", UniqueGlobal: true}),
		}
		others := []uuid.UUID{insert(t, q, simplequeue.NewJob{Queue: "a", UniqueKey: "other"}), insert(t, q, simplequeue.NewJob{Queue: "a"})}
		n, err := q.CancelMatching(ctx, simplequeue.Filter{Queue: c.queue, UniqueKey: "k"}, "")
		victims := 0
		for i, id := range ids {
			want := simplequeue.StatePending
			if i == 1 {
				want = simplequeue.StateWaiting
			}
			if c.victims[i] {
				want = simplequeue.StateCancelled
				victims++
			}
			if got := state(t, q, id); got != want {
				t.Errorf("queue %q: job %d is %s, want %s", c.queue, i, got, want)
			}
		}
		if err != nil || n != victims {
			t.Errorf("queue %q: CancelMatching = %d, %v, want %d", c.queue, n, err, victims)
		}
		for _, id := range others {
			if got := state(t, q, id); got != simplequeue.StatePending {
				t.Errorf("queue %q: a bystander is %s", c.queue, got)
			}
		}
		if _, err := q.CancelMatching(ctx, simplequeue.Filter{IDs: append(ids, others...)}, ""); err != nil {
			t.Fatal(err)
		}
	}
}

// A reason of any bytes and any length is stored as far as it can be.
func TestAnyReasonCanBeStored(t *testing.T) {
	t.Parallel()
	q := newQueue(t, pgtest.New(t), handler("a", func(ctx context.Context, _ *simplequeue.Job) error { <-ctx.Done(); return context.Cause(ctx) }))
	for _, reason := range []string{"\x00", "\xff\xfe", strings.Repeat("\x00", 1<<20), strings.Repeat("☃", 1<<20)} {
		pending := insert(t, q, simplequeue.NewJob{Queue: "b"})
		if _, err := q.Cancel(t.Context(), pending, reason); err != nil {
			t.Errorf("Cancel for %.10q: %v", reason, err)
		}
		if got := get(t, q, pending).Reason; got == "" || len(got) > 2048 || !utf8.ValidString(got) {
			t.Errorf("reason %.10q of %d bytes was stored as %.10q of %d bytes", reason, len(reason), got, len(got))
		}
	}
	start(t, q)
	running := insert(t, q, simplequeue.NewJob{Queue: "a"})
	awaitState(t, q, running, simplequeue.StateRunning)
	if _, err := q.Cancel(t.Context(), running, strings.Repeat("\x00", 1<<20)); err != nil {
		t.Error(err)
	}
	awaitState(t, q, running, simplequeue.StateCancelled)
}

// A cancel at any moment of a job's way through the tables either ends it
// before it runs or reaches its handler; what was cancelled is never tried
// again, and what was not is never lost.
func TestCancelAtEveryMoment(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t, pgtest.Database(t), 20)
	var runs sync.Map // id -> *atomic.Int64, runs that began after the cancel had returned
	var cancelled sync.Map
	opts := handler("a", func(ctx context.Context, job *simplequeue.Job) error {
		if _, ok := cancelled.Load(job.ID); ok {
			n, _ := runs.LoadOrStore(job.ID, &atomic.Int64{})
			n.(*atomic.Int64).Add(1)
		}
		switch job.Attempt {
		case 1:
			return simplequeue.RetryAfter(0, errors.New("again"))
		case 2:
			if job.ReprocessCount < 3 {
				return simplequeue.RescheduleAfter(0)
			}
			return simplequeue.RetryAfter(0, errors.New("again"))
		}
		return nil
	})
	opts.Backoff = backoff.Constant(time.Millisecond)
	opts.MaxAttempts = 4
	q := newQueue(t, pool, opts)
	start(t, q)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 60 {
				r, err := q.Insert(context.Background(), simplequeue.NewJob{Queue: "a", UniqueKey: uuid.NewString()})
				if err != nil {
					t.Errorf("Insert: %v", err)
					return
				}
				timer := time.NewTimer(rand.N(20 * time.Millisecond)) // anywhere on the job's way
				<-timer.C
				got, err := q.Cancel(context.Background(), r.ID, "")
				for err != nil && strings.HasSuffix(err.Error(), "try again") {
					got, err = q.Cancel(context.Background(), r.ID, "")
				}
				switch {
				case err == nil:
					if got == simplequeue.StateCancelled {
						cancelled.Store(r.ID, true)
					}
					eventually(t, "the job ended", func() bool { return state(t, q, r.ID).Terminal() })
					if end := state(t, q, r.ID); end != simplequeue.StateCancelled && (got == simplequeue.StateCancelled || end != simplequeue.StateCompleted) {
						t.Errorf("Cancel told %s, and the job ended as %s", got, end)
					}
				case errors.Is(err, simplequeue.ErrFinished):
					if got != simplequeue.StateCompleted {
						t.Errorf("Cancel told %v of a job that is %s", err, got)
					}
				default:
					t.Errorf("Cancel: %v", err)
				}
			}
		})
	}
	all.Wait()
	runs.Range(func(id, n any) bool {
		t.Errorf("job %v ran %d times after Cancel had told that it was cancelled", id, n.(*atomic.Int64).Load())
		return true
	})
	if n := queryOne[int](t, pool, "SELECT count(*) FROM simplequeue.job_unique"); n != 0 {
		t.Errorf("%d keys are still held", n)
	}
}

// A running job whose worker is dead, or whose handler does not listen, can be
// cancelled too.
func TestCancelOfADeadWorkersJobAndOfADeafHandler(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	release := make(chan struct{})
	opts := handler("a", func(context.Context, *simplequeue.Job) error { <-release; return errors.New("late") })
	opts.StuckAfter = 50 * time.Millisecond
	opts.HeartbeatInterval, opts.ReaperInterval = 2*time.Second, 200*time.Millisecond
	q := newQueue(t, pool, opts)
	start(t, q)
	defer close(release)
	deaf := insert(t, q, simplequeue.NewJob{Queue: "a", MaxAttempts: 1})
	orphan := insert(t, q, simplequeue.NewJob{Queue: "nobody", UniqueKey: "k"})
	awaitState(t, q, deaf, simplequeue.StateRunning)
	execute(t, pool, `WITH gone AS (DELETE FROM simplequeue.job_queue RETURNING *)
		INSERT INTO simplequeue.job_running
		(claim_nonce, claimed_at, id, seq, created_at, worker_id, lease_ms, attempt, max_attempts, reprocess_count, crash_count,
		 payload_bytes, priority, lane, queue, kind, unique_scope, unique_key)
		SELECT 1, clock_timestamp(), id, seq, created_at, gen_random_uuid(), 3000, 1, max_attempts, 0, 0,
		       payload_bytes, priority, lane, queue, kind, unique_scope, unique_key FROM gone`)
	for _, id := range []uuid.UUID{deaf, orphan} {
		if got, err := q.Cancel(t.Context(), id, "enough"); err != nil || got != simplequeue.StateCancelling {
			t.Errorf("Cancel = %s, %v", got, err)
		}
	}
	for _, id := range []uuid.UUID{deaf, orphan} {
		if got := awaitState(t, q, id, simplequeue.StateCancelled); got.Reason != "enough" {
			t.Errorf("cancelled because %q", got.Reason)
		}
	}
	insert(t, q, simplequeue.NewJob{Queue: "nobody", UniqueKey: "k"})
}

// A cancel and a change of the same jobs take turns, in whichever of the tables
// of job_queue the jobs are.
func TestCancelAndChangeDoNotDeadlock(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{})
	insert(t, q, simplequeue.NewJob{Queue: "other"})
	restart(t, pool, "job_queue", "seq", store.ChunkStart(3))
	first := insert(t, q, simplequeue.NewJob{Queue: "a"})
	restart(t, pool, "job_queue", "seq", store.ChunkStart(4))
	insert(t, q, simplequeue.NewJob{Queue: "a"}) // in the table that is read first
	tx, err := pool.Begin(t.Context())
	if err == nil {
		_, err = tx.Exec(t.Context(), "SELECT FROM simplequeue.job_queue WHERE id = $1 FOR UPDATE", first)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	waiting := func(n int) func() bool {
		return func() bool {
			return queryOne[int](t, pool, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'") == n
		}
	}
	done := make(chan error, 2)
	go func() {
		priority := 3
		_, err := q.ChangeMatching(t.Context(), simplequeue.Filter{Queue: "a"}, simplequeue.Change{Priority: &priority})
		done <- err
	}()
	eventually(t, "the change waits", waiting(1))
	go func() {
		_, err := q.CancelMatching(t.Context(), simplequeue.Filter{Queue: "a"}, "")
		done <- err
	}()
	eventually(t, "the cancel waits", waiting(2))
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// A cancel that comes while an outcome is being committed, however long that
// takes, and that the outcome did not see, ends the job with the next sweep.
func TestCancelThatASettleDidNotSee(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{})
	execute(t, pool, `CREATE FUNCTION public.slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END'`,
		`CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON simplequeue.job_waiting DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.slow()`)
	id := insert(t, q, simplequeue.NewJob{Queue: "a"})
	leases, err := q.Claim(t.Context(), "a", 1, time.Minute)
	if err != nil || len(leases) != 1 {
		t.Fatalf("%d leases, %v", len(leases), err)
	}
	tx, err := pool.Begin(t.Context())
	if err == nil {
		_, err = tx.Exec(t.Context(), "SELECT pg_advisory_xact_lock(1)")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	settled := make(chan error, 1)
	go func() {
		settled <- leases[0].Settle(t.Context(), simplequeue.RetryAfter(time.Hour, errors.New("again")))
	}()
	eventually(t, "the outcome is being committed", func() bool {
		return queryOne[int](t, pool, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'") == 1
	})
	if s, err := q.Cancel(t.Context(), id, "enough"); err != nil || s != simplequeue.StateCancelling {
		t.Fatalf("Cancel = %s, %v", s, err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-settled; err != nil {
		t.Fatal(err)
	}
	if s := state(t, q, id); s != simplequeue.StateWaiting {
		t.Fatalf("state %s after the outcome, want %s", s, simplequeue.StateWaiting)
	}
	sweep(t, pool)
	if info := get(t, q, id); info.State != simplequeue.StateCancelled || info.Reason != "enough" {
		t.Errorf("state %s, %q after a sweep", info.State, info.Reason)
	}
	if n := queryOne[int](t, pool, "SELECT count(*) FROM simplequeue.job_cancel"); n != 0 {
		t.Errorf("%d requests are left", n)
	}
}

// A redrive of a job that was cancelled while it ran is not met by the old
// request.
func TestRedriveOfAJobJustCancelled(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{})
	id := insert(t, q, simplequeue.NewJob{Queue: "a"})
	leases, err := q.Claim(t.Context(), "a", 1, time.Minute)
	if err != nil || len(leases) != 1 {
		t.Fatalf("%d leases, %v", len(leases), err)
	}
	if _, err := q.Cancel(t.Context(), id, ""); err != nil {
		t.Fatal(err)
	}
	if err := leases[0].Settle(t.Context(), errors.New("stopped")); err != nil {
		t.Fatal(err)
	}
	if r, err := q.Redrive(t.Context(), simplequeue.Filter{IDs: []uuid.UUID{id}}, simplequeue.RedriveOptions{}); err != nil || len(r.IDs) != 1 {
		t.Fatalf("Redrive: %+v, %v", r, err)
	}
	sweep(t, pool)
	if s := state(t, q, id); s != simplequeue.StatePending {
		t.Errorf("state %s after a sweep, want %s", s, simplequeue.StatePending)
	}
}

// sweep sweeps once, as a reaper does.
func sweep(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	r, err := reaper.New(pool, reaper.Options{})
	if err == nil {
		_, err = r.Once(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
}
