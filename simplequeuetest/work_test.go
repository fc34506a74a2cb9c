package simplequeuetest_test

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/backoff"
	"github.com/simplequeue/simplequeue/internal/pgtest"
	"github.com/simplequeue/simplequeue/simplequeuetest"
)

func handlers(h ...simplequeue.Handler) simplequeue.Options {
	return simplequeue.Options{Handlers: h, Backoff: backoff.Constant(time.Hour)}
}

// A program whose queue is in a transaction inserts, runs, keys, waits and
// cancels there; nobody sees it, and nothing is left of it.
func TestInATransaction(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, handlers(
		simplequeue.HandlerFunc("orders", func(ctx context.Context, job *simplequeue.Job) error {
			_, err := simplequeue.FromContext(ctx).Insert(ctx, simplequeue.NewJob{Queue: "mails", Payload: "thanks"})
			return err
		}),
		simplequeue.HandlerFunc("mails", returns(nil)),
	))
	tx := begin(t, pool)
	in := simplequeuetest.In(tx, q)
	ctx := t.Context()
	if _, err := q.InsertTx(ctx, tx, simplequeue.NewJob{Queue: "orders", UniqueKey: "1"}); err != nil {
		t.Fatal(err)
	}
	if r, err := in.Insert(ctx, simplequeue.NewJob{Queue: "orders", UniqueKey: "1"}); err != nil || !r.Duplicate {
		t.Errorf("a second insert of the key: %+v, %v", r, err)
	}
	insert(t, in, make300("orders")...)
	later, err := in.Insert(ctx, simplequeue.NewJob{Queue: "orders", Delay: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.Insert(ctx, simplequeue.NewJob{Queue: "no*name"}); err == nil {
		t.Error("a job that cannot be was inserted")
	}
	if n := len(simplequeuetest.Work(t, in)); n != 602 {
		t.Errorf("%d attempts, want 602", n)
	}
	if s, err := in.Cancel(ctx, later.ID, ""); err != nil || s != simplequeue.StateCancelled {
		t.Errorf("Cancel: %s, %v", s, err)
	}
	if c := counts(t, in); c[simplequeue.StateCompleted] != 602 || c[simplequeue.StateCancelled] != 1 {
		t.Errorf("inside: %v", c)
	}
	if c := counts(t, q); len(c) != 0 {
		t.Errorf("outside: %v", c)
	}
	if err := in.Run(ctx); err == nil {
		t.Error("it can Run")
	}
	if err := tx.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	if c := counts(t, q); len(c) != 0 {
		t.Errorf("after the rollback: %v", c)
	}
}

// noSpool is a spool that takes no jobs.
type noSpool struct{ attached int }

func (s *noSpool) Attach(*simplequeue.SpoolTarget) error {
	if s.attached++; s.attached > 1 {
		return errors.New("attached twice")
	}
	return nil
}

func (s *noSpool) Insert(context.Context, []simplequeue.NewJob) ([]simplequeue.Inserted, error) {
	return nil, errors.New("an insert went to the spool")
}

func (s *noSpool) Problem() string { return "" }

// A queue that has a spool has none inside a transaction.
func TestASpoolStaysOutsideTheTransaction(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	opts := handlers(simplequeue.HandlerFunc("orders", returns(nil)))
	opts.Spool = &noSpool{}
	in := simplequeuetest.In(begin(t, pool), newQueue(t, pool, opts))
	insert(t, in, simplequeue.NewJob{Queue: "orders"})
	if n := len(simplequeuetest.Work(t, in)); n != 1 {
		t.Errorf("%d attempts, want 1", n)
	}
}

// Inside a transaction what has ended can be waited for, its result too, also
// where nothing is kept. Nobody runs the rest meanwhile, and a wait says so at once.
func TestWaitInATransaction(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	opts := handlers(simplequeue.TypedResult("sums", func(ctx context.Context, job *simplequeue.Job, n []int) (int, error) {
		if len(n) == 0 {
			_, err := simplequeue.FromContext(ctx).InsertAndWait(ctx, simplequeue.NewJob{Queue: "sums", Payload: []int{1, 2}})
			return 0, err
		}
		return n[0] + n[1], nil
	}))
	opts.Retention.Archive = simplequeue.KeepNothing
	q := newQueue(t, pool, opts)
	in := simplequeuetest.In(begin(t, pool), q)
	ctx := t.Context()
	r, err := in.Insert(ctx, simplequeue.NewJob{Queue: "sums", Payload: []int{3, 4}, Awaited: true})
	if err != nil {
		t.Fatal(err)
	}
	for name, wait := range map[string]func() (simplequeue.JobInfo, error){
		"Wait":        func() (simplequeue.JobInfo, error) { return in.Wait(ctx, r.ID) },
		"WaitAttempt": func() (simplequeue.JobInfo, error) { return in.WaitAttempt(ctx, r.ID) },
		"InsertAndWait": func() (simplequeue.JobInfo, error) {
			return in.InsertAndWait(ctx, simplequeue.NewJob{Queue: "sums", Payload: []int{5, 6}})
		},
	} {
		if info, err := wait(); err == nil || !strings.Contains(err.Error(), "simplequeuetest.Work") || info.ID == uuid.Nil {
			t.Errorf("%s of a job that has not run: %v, %v", name, info.ID, err)
		}
	}
	if n := len(simplequeuetest.Work(t, in)); n != 2 {
		t.Errorf("%d attempts, want 2", n)
	}
	info, err := in.Wait(ctx, r.ID)
	if sum, e := simplequeue.ResultOf[int](info); err != nil || e != nil || sum != 7 {
		t.Errorf("Wait: %d, %v, %v", sum, err, e)
	}
	if _, err := in.WaitAttempt(ctx, r.ID); err != nil {
		t.Errorf("WaitAttempt: %v", err)
	}
	if _, err := in.Wait(ctx, uuid.New()); !errors.Is(err, simplequeue.ErrNotFound) {
		t.Errorf("Wait for no job: %v", err)
	}
	insert(t, in, simplequeue.NewJob{Queue: "sums", Payload: []int{}})
	if o := simplequeuetest.WorkOne(t, in); o.Err == nil || !strings.Contains(o.Err.Error(), "simplequeuetest.Work") {
		t.Errorf("a handler that waits for a job: %v", o.Err)
	}
}

// Jobs of a batch come alone, and wait for no other.
func TestBatchInWork(t *testing.T) {
	t.Parallel()
	const wait = time.Hour
	batch := simplequeue.Batch("rows", 100, wait, func(_ context.Context, jobs []*simplequeue.Job) error {
		if len(jobs) != 1 {
			return simplequeue.Critical(fmt.Errorf("%d jobs", len(jobs)))
		}
		if jobs[0].Kind == "bad" {
			return simplequeue.BatchErrors{simplequeue.Unprocessable(nil)}
		}
		return jobs[0].SetResult(jobs[0].Kind)
	})
	job := func(kind string) simplequeue.NewJob {
		return simplequeue.NewJob{Queue: "rows", Kind: kind, Timeout: 20 * time.Second}
	}
	pool := pgtest.New(t)
	q := simplequeuetest.In(begin(t, pool), newQueue(t, pool, handlers(batch)))
	insert(t, q, job("good"), job("bad"), job("good"))
	var states []simplequeue.State
	for _, o := range simplequeuetest.Work(t, q) {
		states = append(states, o.State)
	}
	if want := []simplequeue.State{simplequeue.StateCompleted, simplequeue.StateUnprocessable, simplequeue.StateCompleted}; !slices.Equal(states, want) {
		t.Errorf("%v, want %v", states, want)
	}
	if o := simplequeuetest.Process(t, batch, job("good")); o.State != simplequeue.StateCompleted || string(o.Result) != `"good"` {
		t.Errorf("Process: %s, %s, %v", o.State, o.Result, o.Err)
	}
}

func make300(queue string) []simplequeue.NewJob {
	jobs := make([]simplequeue.NewJob, 300)
	for i := range jobs {
		jobs[i].Queue = queue
	}
	return jobs
}

// What a call inside the transaction fails with leaves the transaction usable.
func TestInATransactionAfterAnError(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{})
	if err := q.SetQueueLimit(t.Context(), "small", 1); err != nil {
		t.Fatal(err)
	}
	tx := begin(t, pool)
	in := simplequeuetest.In(tx, q)
	insert(t, in, simplequeue.NewJob{Queue: "small"})
	if _, err := in.Insert(t.Context(), simplequeue.NewJob{Queue: "small"}); !errors.Is(err, simplequeue.ErrQueueFull) {
		t.Errorf("Insert into a full queue: %v", err)
	}
	insert(t, in, simplequeue.NewJob{Queue: "a"})
	broken, stop := context.WithCancel(t.Context())
	stop()
	if _, err := in.Insert(broken, simplequeue.NewJob{Queue: "a"}); err == nil {
		t.Error("inserted although the context had ended")
	}
	simplequeuetest.Inserted(t, in, 2, simplequeue.NewJob{})
}

// The handler's own transaction completes the job, inside another one or not.
func TestCompleteTxInWork(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	schema := map[string]string{"in a schema": simplequeuetest.Schema(t, pool), "in a transaction": simplequeuetest.Schema(t, pool)}
	outer := begin(t, pool)
	for how, db := range map[string]interface {
		Begin(context.Context) (pgx.Tx, error)
	}{"in a schema": pool, "in a transaction": outer} {
		complete := func(queue string, commit bool, then error) simplequeue.Handler {
			return simplequeue.HandlerFunc(queue, func(ctx context.Context, job *simplequeue.Job) error {
				tx, err := db.Begin(ctx)
				if err != nil {
					return err
				}
				defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
				if err := job.CompleteTx(ctx, tx); err != nil || !commit {
					return errors.Join(err, then)
				}
				return errors.Join(tx.Commit(ctx), then)
			})
		}
		opts := handlers(complete("committed", true, nil), complete("committed late", true, errBroken),
			complete("rolled back", false, nil), complete("broken", false, errBroken))
		opts.Schema = schema[how]
		q := newQueue(t, pool, opts)
		if how == "in a transaction" {
			q = simplequeuetest.In(outer, q)
		}
		for queue, want := range map[string]struct {
			state simplequeue.State
			last  string
		}{
			"committed":      {simplequeue.StateCompleted, ""},
			"committed late": {simplequeue.StateCompleted, ""},
			"rolled back":    {simplequeue.StateWaiting, simplequeue.ErrNotCommitted.Error()},
			"broken":         {simplequeue.StateWaiting, "broken"},
		} {
			insert(t, q, simplequeue.NewJob{Queue: queue})
			o := simplequeuetest.WorkOne(t, q, queue)
			if o.State != want.state || o.LastError() != want.last {
				t.Errorf("%s, %s: %s, %q", queue, how, o.State, o.LastError())
			}
		}
	}
	if o := simplequeuetest.Process(t, simplequeue.HandlerFunc("a", func(ctx context.Context, job *simplequeue.Job) error {
		return job.CompleteTx(ctx, outer)
	}), simplequeue.NewJob{}); o.State != simplequeue.StateCompleted || o.Err != nil {
		t.Errorf("without a database: %s, %v", o.State, o.Err)
	}
}

// Time goes by when the test says so.
func TestAdvance(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	opts := handlers(simplequeue.HandlerFunc("a", func(_ context.Context, job *simplequeue.Job) error {
		if job.Attempt < 3 {
			return errBroken
		}
		return nil
	}))
	for how, q := range map[string]*simplequeue.SimpleQueue{
		"on the pool": newQueue(t, pool, opts), "in a transaction": simplequeuetest.In(begin(t, pool), newQueue(t, pool, opts)),
	} {
		insert(t, q, simplequeue.NewJob{Queue: "a", Delay: 10 * time.Minute})
		for i, want := range []struct {
			by       time.Duration
			attempts int
		}{{0, 0}, {9 * time.Minute, 0}, {time.Minute, 1}, {59 * time.Minute, 0}, {-time.Minute, 0}, {time.Minute, 0}, {time.Minute, 1}, {time.Hour, 1}, {time.Hour, 0}} {
			simplequeuetest.Advance(t, q, want.by)
			if n := len(simplequeuetest.Work(t, q)); n != want.attempts {
				t.Errorf("%s, step %d: %d attempts, want %d", how, i, n, want.attempts)
			}
		}
		simplequeuetest.Inserted(t, q, 1, simplequeue.NewJob{Queue: "a"})
		if c := counts(t, q); c[simplequeue.StateCompleted] != 1 {
			t.Errorf("%s: %v", how, c)
		}
		// The other way looks at the same tables.
		if _, err := q.Purge(t.Context(), simplequeue.Filter{Queue: "a"}); err != nil {
			t.Error(err)
		}
	}
}

// Work takes what a worker would take, in its order, and leaves the rest.
func TestWorkTakesWhatAWorkerWould(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	var ran []string
	note := func(_ context.Context, job *simplequeue.Job) error {
		ran = append(ran, job.Queue+string(job.Payload))
		return nil
	}
	q := newQueue(t, pool, handlers(
		simplequeue.HandlerFunc("b.*", note), simplequeue.HandlerFunc("a", note), simplequeue.HandlerFunc("paused", note),
		simplequeue.NewMux("kinds").HandleFunc("known", note),
	))
	other := newQueue(t, pool, handlers(simplequeue.NewMux("kinds").HandleFunc("new", note)))
	if err := q.Pause(t.Context(), "paused", ""); err != nil {
		t.Fatal(err)
	}
	insert(t, q,
		simplequeue.NewJob{Queue: "b.2", Payload: 1}, simplequeue.NewJob{Queue: "b.1", Payload: 1, Priority: 5}, simplequeue.NewJob{Queue: "b.1", Payload: 2, Priority: 1},
		simplequeue.NewJob{Queue: "a", Payload: 1}, simplequeue.NewJob{Queue: "a", Payload: 2}, simplequeue.NewJob{Queue: "a", Delay: time.Hour},
		simplequeue.NewJob{Queue: "paused"}, simplequeue.NewJob{Queue: "unserved"}, simplequeue.NewJob{Queue: "kinds", Kind: "new", Payload: 1},
	)
	if o := simplequeuetest.WorkOne(t, q, "b.2", "nowhere"); o.Queue != "b.2" || o.State != simplequeue.StateCompleted {
		t.Errorf("WorkOne: %s of %s", o.State, o.Queue)
	}
	done := simplequeuetest.Work(t, q)
	if last := done[len(done)-1]; last.State != simplequeue.StateWaiting || last.Reason != "unknown_kind" {
		t.Errorf("a job of an unknown kind: %s, %s", last.State, last.Reason)
	}
	if got, want := strings.Join(ran, " "), "b.21 a1 a2 b.12 b.11"; got != want {
		t.Errorf("ran %s, want %s", got, want)
	}
	if n := len(simplequeuetest.Work(t, q)); n != 0 {
		t.Errorf("there were %d more", n)
	}
	if o := simplequeuetest.WorkOne(t, other); o.Kind != "new" || o.State != simplequeue.StateCompleted {
		t.Errorf("a parked job, where its kind is known: %s", o.State)
	}
	if text := fails(t, func(t testing.TB) { simplequeuetest.WorkOne(t, q) }); !strings.Contains(text, `"unserved"`) || !strings.Contains(text, "due") {
		t.Errorf("without a job to run: %s", text)
	}
	none := newQueue(t, pool, simplequeue.Options{})
	if text := fails(t, func(t testing.TB) { simplequeuetest.Work(t, none) }); !strings.Contains(text, "Handlers") {
		t.Errorf("without handlers: %s", text)
	}
}

// A job that has no end ends the test.
func TestWorkWithoutEnd(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{MaxReschedules: -1, Handlers: []simplequeue.Handler{
		simplequeue.HandlerFunc("a", returns(simplequeue.RescheduleAfter(0))),
	}})
	in := simplequeuetest.In(begin(t, pool), q)
	insert(t, in, simplequeue.NewJob{Queue: "a"})
	if text := fails(t, func(t testing.TB) { simplequeuetest.WorkAll(t, in, nil, 100) }); !strings.Contains(text, "101 attempts") {
		t.Error(text)
	}
}

// A handler that ends the test ends it, after its job; one that ends its
// goroutine has failed.
func TestFatalInAHandler(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	for _, work := range []func(t testing.TB, h simplequeue.Handler){
		func(t testing.TB, h simplequeue.Handler) { simplequeuetest.Process(t, h, simplequeue.NewJob{}) },
		func(t testing.TB, h simplequeue.Handler) {
			q := newQueue(t, pool, handlers(h))
			insert(t, q, simplequeue.NewJob{Queue: "a"})
			simplequeuetest.Work(t, q)
		},
	} {
		text := fails(t, func(t testing.TB) {
			work(t, simplequeue.HandlerFunc("a", func(context.Context, *simplequeue.Job) error {
				t.Fatal("in the handler")
				return nil
			}))
		})
		if text != "in the handler" {
			t.Error(text)
		}
	}
}

// A cancel reaches the handler of a job that Work runs.
func TestCancelInWork(t *testing.T) {
	t.Parallel()
	var q *simplequeue.SimpleQueue
	q = newQueue(t, pgtest.New(t), handlers(simplequeue.HandlerFunc("a", func(ctx context.Context, job *simplequeue.Job) error {
		if _, err := q.Cancel(ctx, job.ID, "enough"); err != nil {
			return err
		}
		<-ctx.Done()
		return context.Cause(ctx)
	})))
	insert(t, q, simplequeue.NewJob{Queue: "a"})
	if o := simplequeuetest.WorkOne(t, q); o.State != simplequeue.StateCancelled || o.Reason != "enough" || !errors.Is(o.Err, simplequeue.ErrCancelled) {
		t.Errorf("%s, %q, %v", o.State, o.Reason, o.Err)
	}
}

// An attempt whose job was taken away meanwhile says so.
func TestLostLeaseInWork(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, handlers(simplequeue.HandlerFunc("a", func(ctx context.Context, _ *simplequeue.Job) error {
		_, err := pool.Exec(ctx, "UPDATE simplequeue.job_running SET claim_nonce = claim_nonce + 1")
		return err
	})))
	insert(t, q, simplequeue.NewJob{Queue: "a"})
	if o := simplequeuetest.WorkOne(t, q); !errors.Is(o.Err, simplequeue.ErrLeaseLost) || o.State != simplequeue.StateRunning {
		t.Errorf("%v, %s", o.Err, o.State)
	}
}

// What handlers log is there when Work returns.
func TestJobLogInWork(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	opts := handlers(simplequeue.HandlerFunc("a", func(ctx context.Context, _ *simplequeue.Job) error {
		simplequeue.Logger(ctx).Info("hello", "n", 1)
		return nil
	}))
	opts.LogSink = simplequeue.LogTable()
	for how, q := range map[string]*simplequeue.SimpleQueue{
		"on the pool": newQueue(t, pool, opts), "in a transaction": simplequeuetest.In(begin(t, pool), newQueue(t, pool, opts)),
	} {
		insert(t, q, simplequeue.NewJob{Queue: "a"})
		var lines []string
		for line, err := range q.JobLog(t.Context(), simplequeuetest.WorkOne(t, q).ID) {
			if err != nil {
				t.Fatal(err)
			}
			lines = append(lines, line.Message+string(line.Attrs))
		}
		if got := strings.Join(lines, ";"); got != `hello{"n": 1}` {
			t.Errorf("%s: %s", how, got)
		}
	}
}

// Process calls a handler with any job there could be, and says what is wrong
// with one that could not.
func TestProcess(t *testing.T) {
	t.Parallel()
	var got *simplequeue.Job
	h := simplequeue.HandlerFunc("a", func(ctx context.Context, job *simplequeue.Job) error {
		if q := simplequeue.FromContext(ctx); q == nil || simplequeue.JobFromContext(ctx) != job {
			return errors.New("the context has neither queue nor job")
		} else if _, err := q.Insert(ctx, simplequeue.NewJob{Queue: "b"}); err == nil || !strings.Contains(err.Error(), "no database") {
			return fmt.Errorf("Insert: %w", err)
		} else if _, err := q.Get(ctx, job.ID); err == nil || !strings.Contains(err.Error(), "no database") {
			return fmt.Errorf("Get: %w", err)
		}
		got = job
		return errBroken
	})
	o := simplequeuetest.Process(t, h, simplequeue.NewJob{Payload: map[string]int{"n": 1}}, func(job *simplequeue.Job) {
		job.Attempt, job.MaxAttempts, job.CrashCount = 5, 5, 2
	})
	if o.State != simplequeue.StateFailed || o.Attempt != 5 || !errors.Is(o.Err, errBroken) {
		t.Errorf("%s, attempt %d, %v", o.State, o.Attempt, o.Err)
	}
	if got == nil || string(got.Payload) != `{"n":1}` || got.Queue != "a" || got.CrashCount != 2 {
		t.Errorf("the handler has seen %+v", got)
	}
	rescheduled := simplequeuetest.Process(t, simplequeue.HandlerFunc("a", returns(simplequeue.RescheduleAfter(time.Hour))), simplequeue.NewJob{},
		func(job *simplequeue.Job) { job.ReprocessCount = 99 })
	if rescheduled.State != simplequeue.StateBadJob || rescheduled.ReprocessCount != 100 {
		t.Errorf("rescheduled once too often: %s, %d", rescheduled.State, rescheduled.ReprocessCount)
	}
	for want, job := range map[string]simplequeue.NewJob{
		"Priority": {Priority: 17}, "serves": {Queue: "b"}, "encode": {Payload: func() {}},
	} {
		if text := fails(t, func(t testing.TB) { simplequeuetest.Process(t, h, job) }); !strings.Contains(text, want) {
			t.Errorf("%+v: %s", job, text)
		}
	}
	many := simplequeue.HandlerFunc("*", returns(nil))
	if text := fails(t, func(t testing.TB) { simplequeuetest.Process(t, many, simplequeue.NewJob{}) }); !strings.Contains(text, "queue") {
		t.Errorf("which queue? %s", text)
	}
}

// Inside a bubble all time is the test's.
func TestProcessInABubble(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		h := simplequeue.HandlerFunc("a", func(ctx context.Context, _ *simplequeue.Job) error {
			<-ctx.Done()
			return simplequeue.RetryAfter(time.Hour, context.Cause(ctx))
		})
		o := simplequeuetest.Process(t, h, simplequeue.NewJob{Timeout: 24 * time.Hour})
		if !errors.Is(o.Err, simplequeue.ErrTimeout) || o.RunAt != began.Add(25*time.Hour) {
			t.Errorf("%v, again at %v, began at %v", o.Err, o.RunAt, began)
		}
		deaf := simplequeue.HandlerFunc("a", func(context.Context, *simplequeue.Job) error { time.Sleep(time.Hour); return nil })
		if o := simplequeuetest.Process(t, deaf, simplequeue.NewJob{Timeout: time.Second}); o.State != simplequeue.StateWaiting || !strings.Contains(o.LastError(), "did not return") {
			t.Errorf("a handler that does not hear: %s, %s", o.State, o.LastError())
		}
	})
}

// Nobody who uses the kit, or the library, gets what only tests of the library
// need.
func TestDependencies(t *testing.T) {
	t.Parallel()
	for pkg, unwanted := range map[string][]string{
		"github.com/simplequeue/simplequeue":                 {"testing", "github.com/simplequeue/simplequeue/simplequeuetest"},
		"github.com/simplequeue/simplequeue/simplequeuetest": {"github.com/simplequeue/simplequeue/internal/pgtest", "github.com/simplequeue/simplequeue/internal/pgserver", "github.com/ory/dockertest/v3"},
	} {
		out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", pkg).Output()
		if err != nil {
			t.Fatal(err)
		}
		deps := strings.Fields(string(out))
		for _, u := range unwanted {
			for _, d := range deps {
				if d == u {
					t.Errorf("%s depends on %s", pkg, u)
				}
			}
		}
	}
}
