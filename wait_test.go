package simplequeue_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// lookCounter counts the statements that look for outcomes, and the ids in them.
type lookCounter struct{ looks, ids atomic.Int64 }

func (c *lookCounter) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	return ctx
}

func (c *lookCounter) TraceBatchQuery(_ context.Context, _ *pgx.Conn, data pgx.TraceBatchQueryData) {
	if strings.Contains(data.SQL, "job_outcome AS o") {
		c.looks.Add(1)
		c.ids.Add(int64(len(data.Args[0].([]string))))
	}
}
func (c *lookCounter) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData) {}
func (c *lookCounter) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}
func (c *lookCounter) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// waitingQueue is a queue that runs nothing, on a pool of its own, whose looks
// are counted.
func waitingQueue(t testing.TB, database string, opts simplequeue.Options) (*simplequeue.SimpleQueue, *lookCounter) {
	t.Helper()
	config, err := pgxpool.ParseConfig(database)
	if err != nil {
		t.Fatal(err)
	}
	c := &lookCounter{}
	config.MaxConns, config.ConnConfig.Tracer = 4, c
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return newQueue(t, pool, opts), c
}

// sums is a worker of jobs that add numbers, or fail as their kind says.
func sums(t testing.TB, database string, opts simplequeue.Options) *simplequeue.SimpleQueue {
	t.Helper()
	opts.Handlers = []simplequeue.Handler{simplequeue.TypedResult("sums", func(ctx context.Context, job *simplequeue.Job, terms []int) (sum, error) {
		switch job.Kind {
		case "fails":
			return sum{}, simplequeue.Critical(errors.New("no good"))
		case "retries":
			if job.Attempt == 1 {
				return sum{}, simplequeue.RetryAfter(0, errors.New("not yet"))
			}
		case "hangs":
			<-ctx.Done()
			return sum{}, ctx.Err()
		}
		var s sum
		for _, n := range terms {
			s.Total += n
		}
		return s, nil
	})}
	q := newQueue(t, pgtest.Pool(t, database, 6), opts)
	start(t, q)
	return q
}

// Whoever inserts a job and waits gets its typed result from another process, or
// a typed error that says how it ended; with notifications and without.
func TestInsertAndWait(t *testing.T) {
	t.Parallel()
	for name, pollOnly := range map[string]bool{"notified": false, "polling": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			database := pgtest.Database(t)
			opts := simplequeue.Options{PollOnly: pollOnly, PollInterval: 50 * time.Millisecond}
			worker := sums(t, database, opts)
			q, _ := waitingQueue(t, database, opts)
			for _, kind := range []string{"", "retries"} {
				info, err := q.InsertAndWait(t.Context(), simplequeue.NewJob{Queue: "sums", Kind: kind, Payload: []int{1, 2, 3}})
				if err != nil {
					t.Fatalf("kind %q: %v", kind, err)
				}
				if got, err := simplequeue.ResultOf[sum](info); err != nil || got.Total != 6 || info.State != simplequeue.StateCompleted || info.Payload != nil {
					t.Errorf("kind %q: %+v, %v, payload %s", kind, got, err, info.Payload)
				}
			}

			info, err := q.InsertAndWait(t.Context(), simplequeue.NewJob{Queue: "sums", Kind: "fails", Payload: []int{}})
			var not *simplequeue.NotCompletedError
			if !errors.As(err, &not) || not.Job.State != simplequeue.StateCritical || info.State != simplequeue.StateCritical ||
				errors.Is(err, simplequeue.ErrCancelled) || !strings.Contains(err.Error(), "no good") {
				t.Errorf("a job that fails: %s, %v", info.State, err)
			}
			// And whoever comes later.
			if again, err := q.Wait(t.Context(), info.ID); !errors.As(err, &not) || again.LastError() != info.LastError() {
				t.Errorf("waited for again: %v", err)
			}

			short, cancel := context.WithTimeout(t.Context(), 2*time.Second) // enough for the insert
			defer cancel()
			info, err = q.InsertAndWait(short, simplequeue.NewJob{Queue: "sums", Kind: "hangs", Payload: []int{}})
			if !errors.Is(err, context.DeadlineExceeded) || info.ID == uuid.Nil || info.State != "" {
				t.Fatalf("when ctx ends: %+v, %v", info, err)
			}
			cancelled := make(chan error, 1)
			go func() {
				_, err := q.Wait(context.Background(), info.ID)
				cancelled <- err
			}()
			awaitState(t, worker, info.ID, simplequeue.StateRunning)
			if s, err := worker.CancelAndWait(t.Context(), info.ID, "enough"); err != nil || s != simplequeue.StateCancelled {
				t.Errorf("CancelAndWait: %s, %v", s, err)
			}
			if err := <-cancelled; !errors.Is(err, simplequeue.ErrCancelled) || !errors.As(err, &not) || not.Job.State != simplequeue.StateCancelled {
				t.Errorf("a job that is cancelled: %v", err)
			}

			// Cancelled before it has started, and deleted.
			for what, want := range map[string]error{"cancel": simplequeue.ErrCancelled, "delete": simplequeue.ErrNotFound} {
				ended := make(chan error, 1)
				go func() {
					_, err := q.InsertAndWait(context.Background(), simplequeue.NewJob{Queue: "nobody's", Fingerprint: what})
					ended <- err
				}()
				eventually(t, "somebody waits", func() bool { return q.Waiters() == 1 && counts(t, q, "nobody's")[simplequeue.StatePending] == 1 })
				var err error
				if what == "cancel" {
					_, err = worker.CancelMatching(t.Context(), simplequeue.Filter{Fingerprint: what}, "")
				} else {
					execute(t, pgtest.Pool(t, database, 1), "DELETE FROM simplequeue.job_queue WHERE fingerprint = 'delete'")
				}
				if err != nil {
					t.Fatal(err)
				}
				if err := <-ended; !errors.Is(err, want) {
					t.Errorf("%s: %v, want %v", what, err, want)
				}
			}
			if _, err := q.Wait(t.Context(), uuid.New()); !errors.Is(err, simplequeue.ErrNotFound) {
				t.Errorf("an unknown job: %v", err)
			}
		})
	}
}

// A job that was inserted for nobody can be waited for too, and an insert that
// is skipped waits for the job that holds the key.
func TestWaitForAJobThatDoesNotTell(t *testing.T) {
	t.Parallel()
	database := pgtest.Database(t)
	worker := sums(t, database, simplequeue.Options{})
	q, _ := waitingQueue(t, database, simplequeue.Options{})
	id := insert(t, q, simplequeue.NewJob{Queue: "sums", Kind: "hangs", Payload: []int{}, UniqueKey: "k"})
	results := make(chan error, 2)
	go func() {
		_, err := q.Wait(context.Background(), id)
		results <- err
	}()
	go func() {
		info, err := q.InsertAndWait(context.Background(), simplequeue.NewJob{Queue: "sums", UniqueKey: "k"})
		if info.ID != id {
			err = fmt.Errorf("waited for %v, want the holder %v: %w", info.ID, id, err)
		}
		results <- err
	}()
	eventually(t, "both wait", func() bool { return q.Waiters() == 2 })
	awaitState(t, worker, id, simplequeue.StateRunning)
	if _, err := worker.Cancel(t.Context(), id, ""); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := <-results; !errors.Is(err, simplequeue.ErrCancelled) || errors.Is(err, simplequeue.ErrNotFound) {
			t.Error(err)
		}
	}
}

// The outcome of a job that somebody may be waiting for stays, whichever way it
// ends, where nothing is kept of jobs, and nothing else of it stays.
func TestOutcomeStaysWhereNothingIsKept(t *testing.T) {
	t.Parallel()
	none := simplequeue.Retention{Archive: simplequeue.KeepNothing, DeadLetter: simplequeue.KeepNothing}
	for name, aside := range map[string]bool{"direct": false, "aside": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.New(t)
			opts := handler("a", func(ctx context.Context, job *simplequeue.Job) error {
				if err := job.SetResult(job.Kind); err != nil {
					return err
				}
				switch job.Kind {
				case "no result":
					return job.SetResult(nil)
				case "dead":
					return simplequeue.Critical(errors.New("no good"))
				case "in a transaction":
					return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return job.CompleteTx(ctx, tx) })
				case "cancelled while running":
					<-ctx.Done()
					return ctx.Err()
				}
				return nil
			})
			opts.Retention, opts.JanitorInterval = none, 20*time.Millisecond
			if aside {
				opts = opts.FinishAside()
			}
			q := newQueue(t, pool, opts)
			start(t, q)
			other := newQueue(t, pool, simplequeue.Options{})
			ended := map[string]simplequeue.State{
				"completed": simplequeue.StateCompleted, "no result": simplequeue.StateCompleted, "dead": simplequeue.StateCritical,
				"in a transaction": simplequeue.StateCompleted, "cancelled while running": simplequeue.StateCancelled, "cancelled": simplequeue.StateCancelled,
			}
			for kind, want := range ended {
				job := simplequeue.NewJob{Queue: "a", Kind: kind, Raw: make([]byte, 3000), UniqueKey: kind, Fingerprint: "f", Awaited: true, Metadata: map[string]string{"a": "b"}}
				if kind == "cancelled" {
					job.Delay = time.Hour
				}
				id := insert(t, q, job)
				if strings.HasPrefix(kind, "cancelled") {
					if want := simplequeue.StateRunning; kind != "cancelled" {
						awaitState(t, q, id, want)
					}
					if _, err := q.Cancel(t.Context(), id, "enough"); err != nil {
						t.Fatal(err)
					}
				}
				eventually(t, kind+" is gone", func() bool { return state(t, q, id) == "" })
				info, err := other.Wait(t.Context(), id)
				var not *simplequeue.NotCompletedError
				switch {
				case info.State != want || (want != simplequeue.StateCompleted) != errors.As(err, &not):
					t.Errorf("%s: %s, %v", kind, info.State, err)
				case info.Kind != kind || info.Queue != "a" || info.UniqueKey != kind || info.Fingerprint != "f" || info.Metadata["a"] != "b" || info.CreatedAt.IsZero() || info.FinishedAt.IsZero() || info.MaxAttempts != 3:
					t.Errorf("%s: %+v", kind, info)
				case kind != "cancelled" && (info.Attempt != 1 || info.StartedAt.IsZero() || info.WorkerID == uuid.Nil):
					t.Errorf("%s: attempt %d at %v of %v", kind, info.Attempt, info.StartedAt, info.WorkerID)
				}
				result, err := simplequeue.ResultOf[string](info)
				if want := kind == "completed" || kind == "in a transaction"; want != (result == kind) || want != (err == nil) {
					t.Errorf("%s: result %q, %v", kind, result, err)
				}
				if kind == "dead" && !strings.Contains(info.LastError(), "no good") || strings.HasPrefix(kind, "cancelled") && info.Reason != "enough" {
					t.Errorf("%s: error %q, reason %q", kind, info.LastError(), info.Reason)
				}
			}
			if n := queryOne[int](t, pool, `SELECT (SELECT count(*) FROM simplequeue.job) + (SELECT count(*) FROM simplequeue.job_payload)
				+ (SELECT count(*) FROM simplequeue.job_unique) + (SELECT count(*) FROM simplequeue.job_fingerprint)`); n != 0 {
				t.Errorf("%d rows are left", n)
			}
			// A job that nobody waits for leaves nothing.
			id := insert(t, q, simplequeue.NewJob{Queue: "a", Kind: "completed"})
			eventually(t, "it has gone", func() bool { return state(t, q, id) == "" })
			if n := queryOne[int](t, pool, "SELECT count(*) FROM simplequeue.job_outcome"); n != len(ended) {
				t.Errorf("%d outcomes, want %d", n, len(ended))
			}
			if _, err := other.Wait(t.Context(), id); !errors.Is(err, simplequeue.ErrNotFound) {
				t.Errorf("wait for a job that leaves nothing: %v", err)
			}
			// A retention of a minute is one of ten where somebody may wait.
			brief := insert(t, q, simplequeue.NewJob{Queue: "a", Kind: "completed", Awaited: true, Retention: simplequeue.Retention{Archive: time.Minute}})
			eventually(t, "it is in the archive", func() bool { return keptUntil(t, pool, brief) != "" })
			if ok := queryOne[bool](t, pool, `SELECT expires_on = ((finished_at + interval '10 minutes') AT TIME ZONE 'UTC')::date
				FROM simplequeue.job_queue_archive WHERE id = $1`, brief); !ok {
				t.Error("it is kept for less than ten minutes")
			}
		})
	}
}

// Outcomes go after twenty minutes at the latest where the janitor runs, after
// ten at the earliest, and it waits for nobody.
func TestOutcomesExpire(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{Retention: simplequeue.Retention{Archive: simplequeue.KeepNothing}})
	put := func(slotsAgo int) uuid.UUID {
		id := insert(t, q, simplequeue.NewJob{Queue: "a", Awaited: true})
		list, err := q.Claim(t.Context(), "a", 1, time.Minute)
		if err != nil || len(list) != 1 {
			t.Fatal(list, err)
		}
		if err := list[0].Settle(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		execute(t, pool, fmt.Sprintf("UPDATE simplequeue.job_outcome SET slot = (slot - %d) & 3 WHERE id = '%v'", slotsAgo, id))
		return id
	}
	// Not across the border of two slots.
	eventually(t, "ten minutes begin or go on", func() bool {
		return queryOne[bool](t, pool, "SELECT extract(epoch FROM clock_timestamp())::bigint % 600 < 590")
	})
	filled, before, old := put(0), put(1), put(2)
	expire := func() bool {
		t.Helper()
		began := time.Now()
		emptied := queryOne[bool](t, pool, "SELECT simplequeue.expire_outcomes()")
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("it waited for %v", took)
		}
		return emptied
	}
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "SELECT count(*) FROM simplequeue.job_outcome"); err != nil {
		t.Fatal(err)
	}
	if expire() {
		t.Error("a table that is being read was emptied")
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !expire() || expire() {
		t.Error("want a table emptied, once")
	}
	for id, want := range map[uuid.UUID]error{filled: nil, before: nil, old: simplequeue.ErrNotFound} {
		if _, err := q.Wait(t.Context(), id); !errors.Is(err, want) {
			t.Errorf("wait: %v, want %v", err, want)
		}
	}
}

// The wait for an attempt ends when one has been made, and the job shows what has
// become of it; not when the job was only put off by a permit.
func TestWaitAttempt(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	again := make(chan struct{})
	h := &deferring{Handler: simplequeue.HandlerFunc("a", func(ctx context.Context, job *simplequeue.Job) error {
		switch {
		case job.Kind == "completes":
			return nil
		case job.Kind == "snoozes":
			return simplequeue.RescheduleAfter(time.Hour)
		case job.Attempt == 1:
			return simplequeue.RetryAfter(time.Hour, errors.New("not yet"))
		}
		return nil
	}), again: again}
	worker := newQueue(t, pool, simplequeue.Options{Handlers: []simplequeue.Handler{h}})
	start(t, worker)
	q := newQueue(t, pool, simplequeue.Options{})
	wait := func(job simplequeue.NewJob) (simplequeue.JobInfo, error) {
		job.Awaited = true
		return q.WaitAttempt(t.Context(), insert(t, q, job))
	}
	if info, err := wait(simplequeue.NewJob{Queue: "a", Kind: "fails"}); err != nil || info.State != simplequeue.StateWaiting ||
		info.Attempt != 1 || info.LastError() != "not yet" {
		t.Errorf("an attempt that fails: %s after %d, %q, %v", info.State, info.Attempt, info.LastError(), err)
	}
	if info, err := wait(simplequeue.NewJob{Queue: "a", Kind: "snoozes"}); err != nil || info.State != simplequeue.StateWaiting || info.ReprocessCount != 1 {
		t.Errorf("an attempt that is put off: %s, %v", info.State, err)
	}
	if info, err := wait(simplequeue.NewJob{Queue: "a", Kind: "completes"}); err != nil || info.State != simplequeue.StateCompleted {
		t.Errorf("an attempt that completes: %s, %v", info.State, err)
	}
	var not *simplequeue.NotCompletedError
	if _, err := wait(simplequeue.NewJob{Queue: "a", Kind: "fails", MaxAttempts: 1}); !errors.As(err, &not) || not.Job.State != simplequeue.StateFailed {
		t.Errorf("the last attempt fails: %v", err)
	}
	deferred := make(chan error, 1)
	go func() {
		job := simplequeue.NewJob{Queue: "a", Kind: "deferred"}
		info, err := wait(job)
		if err == nil && info.Attempt != 1 {
			err = fmt.Errorf("the wait was over after %d attempts", info.Attempt)
		}
		deferred <- err
	}()
	eventually(t, "the permit has put it off twice", func() bool { return worker.Stats().Deferred >= 2 })
	select {
	case err := <-deferred:
		t.Fatalf("the wait is over when nothing has run: %v", err)
	default:
	}
	close(again)
	if err := <-deferred; err != nil {
		t.Error(err)
	}
}

// deferring defers jobs of a kind until it may grant them.
type deferring struct {
	simplequeue.Handler
	again chan struct{}
}

func (p *deferring) Acquire(_ context.Context, job *simplequeue.Job) (func(), error) {
	if job.Kind == "deferred" {
		select {
		case <-p.again:
		default:
			return nil, simplequeue.RescheduleAfter(20 * time.Millisecond)
		}
	}
	return func() {}, nil
}

// Ten thousand calls wait on one connection that listens and look at the
// database together; when that connection is killed while jobs end, each call
// still gets its job's outcome, by a few looks at many.
func TestManyWaitersOneListener(t *testing.T) {
	t.Parallel()
	const many = 10_000
	database := pgtest.Database(t)
	pool := pgtest.Pool(t, database, 4)
	finish := make(chan struct{})
	opts := handler("a", func(ctx context.Context, job *simplequeue.Job) error {
		if job.Kind == "second" {
			select {
			case <-finish:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return job.SetResult(job.ID)
	})
	opts.QueuePermits, opts.PollOnly = 500, false
	opts.Retention.Archive = simplequeue.KeepNothing
	worker := newQueue(t, pgtest.Pool(t, database, 6), opts)
	q, looks := waitingQueue(t, database, simplequeue.Options{})
	listening := func() int {
		return queryOne[int](t, pool, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
			AND (query LIKE 'LISTEN%_ended%' OR query LIKE '%pg_listening_channels%' OR query LIKE 'SELECT pg_notify%') AND wait_event = 'ClientRead'`)
	}
	insertAll := func(kind string) []uuid.UUID {
		jobs := slices.Repeat([]simplequeue.NewJob{{Queue: "a", Kind: kind, Awaited: true}}, many/2)
		results, err := q.InsertMany(t.Context(), jobs)
		if err != nil {
			t.Fatal(err)
		}
		ids := make([]uuid.UUID, len(results))
		for i, r := range results {
			ids[i] = r.ID
		}
		return ids
	}
	first, second := insertAll("first"), insertAll("second")
	var all sync.WaitGroup
	var done, wrong atomic.Int64
	for _, id := range slices.Concat(first, second) {
		all.Go(func() {
			info, err := q.Wait(t.Context(), id)
			if got, e := simplequeue.ResultOf[uuid.UUID](info); err != nil || e != nil || got != id {
				wrong.Add(1)
			}
			done.Add(1)
		})
	}
	eventually(t, "all wait, and somebody listens", func() bool { return q.Waiters() == many && q.Listening() })
	eventually(t, "one connection listens for all", func() bool { // it is not seen while it asks something
		n := listening()
		if n > 1 {
			t.Fatalf("%d connections listen for %d waiters, want 1", n, many)
		}
		return n == 1
	})
	start(t, worker)
	eventually(t, "the first half has its outcomes", func() bool { return done.Load() == many/2 })

	// Gone while all that still wait are told.
	looks.looks.Store(0)
	looks.ids.Store(0)
	if n := queryOne[int](t, pool, `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
		AND (query LIKE 'LISTEN%' OR query LIKE '%pg_listening_channels%' OR query LIKE 'SELECT pg_notify(%') AND wait_event = 'ClientRead'`); n == 0 {
		t.Error("no connection that listens was found")
	}
	close(finish)
	all.Wait()
	if n := wrong.Load(); n != 0 {
		t.Errorf("%d of %d have another outcome than theirs", n, many)
	}
	t.Logf("%d looks at %d jobs for %d outcomes", looks.looks.Load(), looks.ids.Load(), many/2)
	if n := looks.looks.Load(); n > many/20 {
		t.Errorf("%d looks for %d outcomes", n, many/2)
	}
}

// Where nobody waits nothing is told, and nothing is by those that poll only;
// every end of a job that somebody may wait for is, and that of each attempt.
func TestWhatIsTold(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	opts := handler("a", func(ctx context.Context, job *simplequeue.Job) error {
		switch job.Kind {
		case "fails":
			return simplequeue.Critical(errors.New("x"))
		case "retries":
			if job.Attempt == 1 {
				return simplequeue.RetryAfter(0, errors.New("x"))
			}
		case "in a transaction":
			return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return job.CompleteTx(ctx, tx) })
		}
		return nil
	})
	q := newQueue(t, pool, opts)
	opts = handler("polled", nothing)
	opts.PollOnly = true
	polled := newQueue(t, pool, opts)
	conn, err := pgx.Connect(t.Context(), pool.Config().ConnString())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), "LISTEN "+q.EndedChannel()); err != nil {
		t.Fatal(err)
	}
	start(t, q)
	start(t, polled)
	endAll := func(awaited bool) (ids []uuid.UUID) {
		t.Helper()
		for _, kind := range []string{"", "fails", "retries", "in a transaction"} {
			ids = append(ids, insert(t, q, simplequeue.NewJob{Queue: "a", Kind: kind, Awaited: awaited}))
		}
		for _, job := range []simplequeue.NewJob{{Queue: "nobody's"}, {Queue: "a", Delay: time.Hour}} {
			job.Awaited = awaited
			id := insert(t, q, job)
			if _, err := q.Cancel(t.Context(), id, ""); err != nil {
				t.Fatal(err)
			}
			ids = append(ids, id)
		}
		byHand := insert(t, q, simplequeue.NewJob{Queue: "by hand", Awaited: awaited})
		leases, err := q.Claim(t.Context(), "by hand", 1, time.Minute)
		if err != nil || len(leases) != 1 {
			t.Fatalf("%d leases, %v", len(leases), err)
		}
		if err := leases[0].Settle(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, byHand)
		for _, id := range ids {
			eventually(t, "it has ended", func() bool { return state(t, q, id).Terminal() })
		}
		return ids
	}
	endAll(false)
	awaitState(t, q, insert(t, q, simplequeue.NewJob{Queue: "polled", Awaited: true}), simplequeue.StateCompleted)
	want := endAll(true)
	told := map[string]int{}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for len(told) < len(want) {
		n, err := conn.WaitForNotification(ctx)
		if err != nil {
			t.Fatalf("%v, when %d of %d jobs had been told of", err, len(told), len(want))
		}
		for line := range strings.SplitSeq(n.Payload, "\n") {
			told[line]++
		}
	}
	for _, id := range want {
		delete(told, "+"+id.String())
	}
	if len(told) != 0 {
		t.Errorf("told were others too: %v", told)
	}
	if q.Waiters() != 0 || q.Listening() {
		t.Error("somebody waits")
	}
}
