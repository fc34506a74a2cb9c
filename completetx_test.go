package simplequeue_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
	"github.com/simplequeue/simplequeue/reaper"
)

var levels = []pgx.TxIsoLevel{pgx.ReadCommitted, pgx.RepeatableRead, pgx.Serializable}

// makeEffects makes a table in which handlers note what they have done.
func makeEffects(t testing.TB, pool *pgxpool.Pool) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), "CREATE TABLE effects (job uuid, attempt integer)"); err != nil {
		t.Fatal(err)
	}
}

const addEffect = "INSERT INTO effects (job, attempt) VALUES ($1, $2)"

func effects(t testing.TB, pool *pgxpool.Pool, id uuid.UUID) (n int) {
	t.Helper()
	if err := pool.QueryRow(context.Background(), "SELECT count(*) FROM effects WHERE job = $1", id).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// completeWith does a job's work, inserts the next job and completes the first, in
// one transaction.
func completeWith(ctx context.Context, tx pgx.Tx, job *simplequeue.Job) error {
	_, err := tx.Exec(ctx, addEffect, job.ID, job.Attempt)
	if err == nil {
		_, err = simplequeue.FromContext(ctx).InsertTx(ctx, tx, simplequeue.NewJob{Queue: "next"})
	}
	if err == nil {
		err = job.SetResult("done")
	}
	if err == nil {
		err = job.CompleteTx(ctx, tx)
	}
	return err
}

func completeWithSQL(ctx context.Context, pool *pgxpool.Pool, level pgx.TxIsoLevel, job *simplequeue.Job) error {
	db := stdlib.OpenDBFromPool(pool)
	defer db.Close()
	tx, err := db.BeginTx(ctx, &sql.TxOptions{Isolation: map[pgx.TxIsoLevel]sql.IsolationLevel{
		pgx.ReadCommitted: sql.LevelReadCommitted, pgx.RepeatableRead: sql.LevelRepeatableRead, pgx.Serializable: sql.LevelSerializable,
	}[level]})
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, addEffect, job.ID, job.Attempt)
	if err == nil {
		_, err = simplequeue.FromContext(ctx).InsertSQLTx(ctx, tx, simplequeue.NewJob{Queue: "next"})
	}
	if err = errors.Join(err, job.SetResult("done"), job.CompleteSQLTx(ctx, tx)); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return tx.Commit()
}

// The job completes with what its transaction writes, at every isolation level,
// once; all that it held is free, and a job inserted with it runs.
func TestCompleteInTheCallersTransaction(t *testing.T) {
	t.Parallel()
	for _, level := range levels {
		for _, driver := range []string{"pgx", "database/sql"} {
			t.Run(fmt.Sprint(level, " ", driver), func(t *testing.T) {
				t.Parallel()
				pool := pgtest.New(t)
				makeEffects(t, pool)
				opts := simplequeue.Options{Handlers: []simplequeue.Handler{
					simplequeue.HandlerFunc("first", func(ctx context.Context, job *simplequeue.Job) error {
						for {
							var err error
							if driver == "pgx" {
								err = pgx.BeginTxFunc(ctx, pool, pgx.TxOptions{IsoLevel: level}, func(tx pgx.Tx) error { return completeWith(ctx, tx, job) })
							} else {
								err = completeWithSQL(ctx, pool, level, job)
							}
							// The reaper marks fingerprints.
							if sqlState(err) != "40001" || level == pgx.ReadCommitted {
								return err
							}
						}
					}),
					simplequeue.HandlerFunc("next", nothing),
				}}
				q := newQueue(t, pool, opts)
				start(t, q)
				id := insert(t, q, simplequeue.NewJob{
					Queue: "first", UniqueKey: "key", Fingerprint: "print", Raw: make([]byte, 5000),
					Retention: simplequeue.Retention{Archive: 400 * 24 * time.Hour}, // no partition yet
				})
				info := awaitState(t, q, id, simplequeue.StateCompleted)
				if got, err := simplequeue.ResultOf[string](info); got != "done" || err != nil || info.Attempt != 1 || len(info.Raw) != 5000 {
					t.Errorf("result %q, %v, attempt %d, %d bytes of payload", got, err, info.Attempt, len(info.Raw))
				}
				if n := effects(t, pool, id); n != 1 {
					t.Errorf("%d effects, want 1", n)
				}
				eventually(t, "both jobs are counted", func() bool { return q.Stats().Completed == 2 })
				eventually(t, "what went by way of the janitor is moved", func() bool {
					return scalar[int](t, pool, "SELECT count(*) FROM simplequeue.job_finished") == 0
				})
				for _, from := range []string{"job_unique", "job_fingerprint", "job_payload", "job_running", "job_finished"} {
					if n := countRows(t, pool, from); n != 0 {
						t.Errorf("%d rows are left in %s", n, from)
					}
				}
				if n := countRows(t, pool, "job_queue_archive"); n != 2 {
					t.Errorf("%d rows in the archive, want 2", n)
				}
				if s := q.Stats(); s.LeasesLost != 0 || s.Retried != 0 || s.Running != 0 {
					t.Errorf("stats %+v", s)
				}
			})
		}
	}
}

// What the handler returns and what its transaction did decide together.
func TestWhatBecomesOfAHandedJob(t *testing.T) {
	t.Parallel()
	boom := errors.New("boom")
	tests := map[string]struct {
		commit  bool
		err     error
		state   simplequeue.State
		effects int
		text    string // of the last error
	}{
		"committed, nil":            {true, nil, simplequeue.StateCompleted, 1, ""},
		"committed, error":          {true, boom, simplequeue.StateCompleted, 1, ""},
		"committed, reschedule":     {true, simplequeue.RescheduleAfter(0), simplequeue.StateCompleted, 1, ""},
		"committed, cancel":         {true, simplequeue.Cancel(boom), simplequeue.StateCompleted, 1, ""},
		"rolled back, nil":          {false, nil, simplequeue.StateFailed, 0, simplequeue.ErrNotCommitted.Error()},
		"rolled back, error":        {false, boom, simplequeue.StateFailed, 0, "boom"},
		"rolled back, unprocessed":  {false, simplequeue.Unprocessable(boom), simplequeue.StateUnprocessable, 0, "boom"},
		"rolled back, and complete": {false, simplequeue.Complete(), simplequeue.StateFailed, 0, simplequeue.ErrNotCommitted.Error()},
	}
	pool := pgtest.New(t)
	makeEffects(t, pool)
	var runs atomic.Int64
	opts := handler("q", func(ctx context.Context, job *simplequeue.Job) error {
		runs.Add(1)
		tx, err := pool.Begin(ctx)
		if err != nil {
			return err
		}
		test := tests[job.Kind]
		if err := completeWith(ctx, tx, job); err != nil {
			return errors.Join(err, tx.Rollback(ctx))
		}
		if test.commit {
			err = tx.Commit(ctx)
		} else {
			err = tx.Rollback(ctx)
		}
		if err != nil {
			t.Error(err)
		}
		return test.err
	})
	q := newQueue(t, pool, opts)
	start(t, q)
	for name, test := range tests {
		info := awaitEnd(t, q, insert(t, q, simplequeue.NewJob{Queue: "q", Kind: name, MaxAttempts: 1}))
		if info.State != test.state || effects(t, pool, info.ID) != test.effects || info.LastError() != test.text {
			t.Errorf("%s: %s, %d effects, error %q, want %+v", name, info.State, effects(t, pool, info.ID), info.LastError(), test)
		}
	}
	eventually(t, "each is counted", func() bool { s := q.Stats(); return s.Completed == 4 && s.DeadLettered == 4 })
	if s := q.Stats(); runs.Load() != int64(len(tests)) || s.LeasesLost != 0 {
		t.Errorf("%d runs, stats %+v", runs.Load(), s)
	}
}

// A transaction that is open for three leases holds up nobody, and loses no
// lease: neither while its handler runs nor after that has returned.
func TestLongTransactionBesideOthers(t *testing.T) {
	t.Parallel()
	for i := range 2 * len(levels) {
		level, kind := levels[i/2], []string{"waits", "leaves it open"}[i%2]
		t.Run(fmt.Sprint(level, " ", kind), func(t *testing.T) {
			t.Parallel()
			pool := pgtest.New(t)
			makeEffects(t, pool)
			const interval = 700 * time.Millisecond
			var runs atomic.Int64
			begun, committed := make(chan pgx.Tx, 1), make(chan struct{})
			q := newQueue(t, pool, simplequeue.Options{HeartbeatInterval: interval, Handlers: []simplequeue.Handler{
				simplequeue.HandlerFunc("long", func(ctx context.Context, job *simplequeue.Job) error {
					runs.Add(1)
					tx, err := pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: level})
					if err != nil {
						return err
					}
					if err := completeWith(ctx, tx, job); err != nil {
						return err
					}
					begun <- tx
					if job.Kind == "leaves it open" {
						return nil
					}
					select {
					case <-committed:
					case <-ctx.Done():
						t.Errorf("the handler's context has ended: %v", context.Cause(ctx))
					}
					return nil
				}),
				simplequeue.HandlerFunc("others", func(ctx context.Context, job *simplequeue.Job) error {
					if job.Attempt == 1 {
						return simplequeue.RetryAfter(0, errors.New("locks its row to be settled"))
					}
					return nil
				}),
				simplequeue.HandlerFunc("next", nothing),
			}})
			start(t, q)
			id := insert(t, q, simplequeue.NewJob{Queue: "long", Kind: kind})
			tx := <-begun
			since := time.Now()
			for range 100 {
				insert(t, q, simplequeue.NewJob{Queue: "others"})
			}
			eventually(t, "the others complete beside them", func() bool { return q.Stats().Completed == 100 })
			eventually(t, "three leases are over", func() bool { return time.Since(since) > 3*interval*5/2 })
			if s := state(t, q, id); s != simplequeue.StateRunning {
				t.Errorf("with its transaction open the job is %s", s)
			}
			if err := tx.Commit(t.Context()); err != nil {
				t.Error(err)
			}
			// The handler goes on after its commit: its lease is not lost either.
			eventually(t, "a beat has found the row gone", func() bool { return time.Since(since) > 4*interval*5/2 })
			close(committed)
			if info := awaitState(t, q, id, simplequeue.StateCompleted); info.Attempt != 1 || effects(t, pool, id) != 1 {
				t.Errorf("attempt %d, %d effects", info.Attempt, effects(t, pool, id))
			}
			eventually(t, "all are counted", func() bool { return q.Stats().Completed == 102 })
			if s := q.Stats(); s.LeasesLost != 0 || s.Reaped != 0 || runs.Load() != 1 {
				t.Errorf("%d runs, %d leases lost, %d reaped, want 1, 0 and 0", runs.Load(), s.LeasesLost, s.Reaped)
			}
		})
	}
}

// holdOpen runs a job whose handler returns with its transaction open, and
// returns that.
func holdOpen(t *testing.T, opts simplequeue.Options, kind string) (q *simplequeue.SimpleQueue, pool *pgxpool.Pool, id uuid.UUID, tx pgx.Tx, stop func() error) {
	t.Helper()
	pool = pgtest.New(t)
	begun := make(chan pgx.Tx, 1)
	opts.Handlers = []simplequeue.Handler{
		simplequeue.HandlerFunc("q", func(ctx context.Context, job *simplequeue.Job) error {
			if job.Attempt > 1 || job.Kind == "other" {
				return nil
			}
			tx, err := pool.Begin(context.Background())
			if err != nil {
				return err
			}
			if job.Kind == "checkpoint" {
				err = job.CheckpointTx(ctx, tx, "second", nil)
			} else {
				err = job.CompleteTx(ctx, tx)
			}
			begun <- tx
			if job.Kind == "stuck" {
				<-opts.Handlers[0].(waiter).done
			}
			return err
		}),
	}
	done := make(chan struct{})
	if kind == "stuck" {
		opts.Handlers[0] = waiter{opts.Handlers[0], done}
	}
	q = newQueue(t, pool, opts)
	stop = start(t, q)
	t.Cleanup(func() { close(done) })
	id = insert(t, q, simplequeue.NewJob{Queue: "q", Kind: kind, Payload: "first"})
	tx = <-begun
	t.Cleanup(func() { _ = tx.Rollback(context.Background()) })
	return q, pool, id, tx, stop
}

type waiter struct {
	simplequeue.Handler
	done chan struct{}
}

// A handler that is given up while its transaction is open holds up no outcome,
// and the transaction still decides about the job.
func TestStuckHandlerWithAnOpenTransaction(t *testing.T) {
	t.Parallel()
	for _, commit := range []bool{true, false} {
		q, _, id, tx, _ := holdOpen(t, simplequeue.Options{Timeout: 2 * time.Second, StuckAfter: 50 * time.Millisecond}, "stuck")
		eventually(t, "the handler is given up", func() bool { return q.Stats().Stuck == 1 })
		awaitState(t, q, insert(t, q, simplequeue.NewJob{Queue: "q", Kind: "other"}), simplequeue.StateCompleted)
		end, attempt := tx.Rollback, 2
		if commit {
			end, attempt = tx.Commit, 1
		}
		if err := end(t.Context()); err != nil {
			t.Fatal(err)
		}
		if info := awaitState(t, q, id, simplequeue.StateCompleted); info.Attempt != attempt {
			t.Errorf("commit %t: completed in attempt %d, want %d", commit, info.Attempt, attempt)
		}
	}
}

// A checkpoint's transaction that outlives its handler holds up no outcome
// either, and the job's own waits for it.
func TestCheckpointInATransactionThatOutlivesItsHandler(t *testing.T) {
	t.Parallel()
	q, _, id, tx, _ := holdOpen(t, simplequeue.Options{}, "checkpoint")
	for range 20 {
		awaitState(t, q, insert(t, q, simplequeue.NewJob{Queue: "q", Kind: "other"}), simplequeue.StateCompleted)
	}
	if s := state(t, q, id); s != simplequeue.StateRunning {
		t.Errorf("with the transaction open the job is %s", s)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if info := awaitState(t, q, id, simplequeue.StateCompleted); string(info.Payload) != `"second"` || info.Attempt != 1 {
		t.Errorf("payload %s, attempt %d", info.Payload, info.Attempt)
	}
}

// A request to cancel does not wait for the transaction of a handler, and
// decides if that is rolled back.
func TestCancelBesideAnOpenTransaction(t *testing.T) {
	t.Parallel()
	for _, commit := range []bool{true, false} {
		q, _, id, tx, _ := holdOpen(t, simplequeue.Options{}, "complete")
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		got, err := q.Cancel(ctx, id, "enough")
		cancel()
		if err != nil || got != simplequeue.StateCancelling {
			t.Errorf("Cancel() = %s, %v", got, err)
		}
		end, want := tx.Rollback, simplequeue.StateCancelled
		if commit {
			end, want = tx.Commit, simplequeue.StateCompleted
		}
		if err := end(t.Context()); err != nil {
			t.Fatal(err)
		}
		awaitState(t, q, id, want)
	}
}

// A reaper steps over a job that a transaction has, however stale its lease is,
// and finds the others; and it finds that one too if the transaction is rolled
// back, as that of a dead process is.
func TestReaperStepsOverAnOpenTransaction(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	ids := []uuid.UUID{uuid.New(), uuid.New()}
	if _, err := pool.Exec(t.Context(), `INSERT INTO simplequeue.job_running
		(claim_nonce, claimed_at, id, seq, created_at, worker_id, lease_ms, attempt, max_attempts, reprocess_count,
		 crash_count, payload_bytes, priority, lane, queue, kind)
		SELECT 1, clock_timestamp() - interval '1 hour', i.id, 1, now(), gen_random_uuid(), 1, 1, 3, 0, 0, 0, 0, 0, 'q', ''
		FROM unnest($1::uuid[]) AS i(id)`, ids); err != nil {
		t.Fatal(err)
	}
	tx, err := pool.Begin(t.Context())
	if err == nil {
		_, err = tx.Exec(t.Context(), "DELETE FROM simplequeue.job_running WHERE id = $1", ids[0])
	}
	if err != nil {
		t.Fatal(err)
	}
	r, err := reaper.New(pool, reaper.Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []int{1, 0} {
		began := time.Now()
		if got, err := r.Once(t.Context()); err != nil || got.Reaped() != want || time.Since(began) > 10*time.Second {
			t.Errorf("beside the transaction: %+v, %v after %v, want %d reaped", got, err, time.Since(began), want)
		}
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, err := r.Once(t.Context()); err != nil || got.Reaped() != 1 {
		t.Errorf("after it: %+v, %v, want 1 reaped", got, err)
	}
}

// A stop does not wait for a transaction for ever, and writes the outcomes of the
// others; the transaction still decides.
func TestStopBesideAnOpenTransaction(t *testing.T) {
	t.Parallel()
	q, _, id, tx, stop := holdOpen(t, simplequeue.Options{Stop: simplequeue.StopTimeouts{Flush: time.Second}}, "complete")
	other := insert(t, q, simplequeue.NewJob{Queue: "q", Kind: "other"})
	awaitState(t, q, other, simplequeue.StateCompleted)
	var left *simplequeue.StopError
	if err := stop(); !errors.As(err, &left) || *left != (simplequeue.StopError{Unsettled: 1}) {
		t.Errorf("Run: %v, want to be told of one job", err)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if info := get(t, q, id); info.State != simplequeue.StateCompleted {
		t.Errorf("after the commit the job is %s", info.State)
	}
}

// What PostgreSQL cannot serialize comes back as it is, also where the rows of
// job_running were moved under the snapshot; the handler begins again, and the
// transaction that commits completes the job.
func TestCompletionThatCannotBeSerialized(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	makeEffects(t, pool)
	disturb := map[string]func() error{
		"updated": func() error {
			_, err := pool.Exec(context.Background(), "UPDATE simplequeue.job_running SET seq = seq")
			return err
		},
		"moved": func() error { moveRunning(t, pool); return nil },
	}
	q := newQueue(t, pool, simplequeue.Options{Handlers: []simplequeue.Handler{
		simplequeue.HandlerFunc("q", func(ctx context.Context, job *simplequeue.Job) error {
			for _, level := range levels[1:] {
				tx, err := pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: level})
				if err != nil {
					return err
				}
				if _, err := tx.Exec(ctx, "SELECT 1"); err != nil {
					return err
				}
				if err := disturb[job.Kind](); err != nil {
					return err
				}
				err = job.CompleteTx(ctx, tx)
				_ = tx.Rollback(ctx)
				if sqlState(err) != "40001" || errors.Is(err, simplequeue.ErrLeaseLost) {
					return simplequeue.Critical(fmt.Errorf("%s: %w, want 40001", level, err))
				}
			}
			return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return completeWith(ctx, tx, job) })
		}),
	}})
	start(t, q)
	for kind := range disturb {
		info := awaitEnd(t, q, insert(t, q, simplequeue.NewJob{Queue: "q", Kind: kind}))
		if info.State != simplequeue.StateCompleted || info.Attempt != 1 || effects(t, pool, info.ID) != 1 {
			t.Errorf("%s: %s in attempt %d: %s", kind, info.State, info.Attempt, info.LastError())
		}
	}
}

// Where the archive's partition cannot be made the job goes by way of the
// janitor; the caller's transaction is not aborted.
func TestCompletionWithoutAPartition(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	makeEffects(t, pool)
	rename := func(from, to string) {
		if _, err := pool.Exec(t.Context(), fmt.Sprintf("ALTER FUNCTION simplequeue.%s(text, bigint[], integer) RENAME TO %s", from, to)); err != nil {
			t.Fatal(err)
		}
	}
	rename("make_partitions", "hidden")
	q := newQueue(t, pool, handler("q", func(ctx context.Context, job *simplequeue.Job) error {
		return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			if job.Kind == "plain" {
				return job.CompleteTx(ctx, tx)
			}
			return completeWith(ctx, tx, job)
		})
	}))
	start(t, q)
	for _, kind := range []string{"plain", "with a result"} {
		id := insert(t, q, simplequeue.NewJob{Queue: "q", Kind: kind, Retention: simplequeue.Retention{Archive: 500 * 24 * time.Hour}})
		info := awaitState(t, q, id, simplequeue.StateCompleted)
		if (info.Result != nil) != (kind != "plain") || countRows(t, pool, "job_running") != 0 {
			t.Errorf("%s: result %s", kind, info.Result)
		}
	}
	if n := countRows(t, pool, "job_finished"); n != 2 {
		t.Errorf("%d jobs wait for the janitor, want 2", n)
	}
	rename("hidden", "make_partitions")
	eventually(t, "the janitor archives them", func() bool { return countRows(t, pool, "job_queue_archive") == 2 })
}

// TestCompletionsOfOneTransactionWithPartitionsMadeMeanwhile: a transaction that
// has written to the archive does not learn of partitions made since.
func TestCompletionsOfOneTransactionWithPartitionsMadeMeanwhile(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	const size = 3
	ended := make(chan error, 2)
	q := newQueue(t, pool, simplequeue.Options{Handlers: []simplequeue.Handler{
		simplequeue.Batch("b", size, time.Minute, func(ctx context.Context, jobs []*simplequeue.Job) error {
			err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
				for _, job := range jobs {
					if err := job.CompleteTx(ctx, tx); err != nil {
						return err
					}
				}
				return nil
			})
			ended <- err
			return err
		}),
	}})
	start(t, q)
	for range 2 { // all set aside, and all straight into the archive
		jobs := make([]simplequeue.NewJob, size)
		for i := range jobs {
			jobs[i] = simplequeue.NewJob{Queue: "b", Retention: simplequeue.Retention{Archive: time.Duration(100*(i+1)) * 24 * time.Hour}}
		}
		in, err := q.InsertMany(t.Context(), jobs)
		if err != nil {
			t.Fatal(err)
		}
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		for _, job := range in {
			awaitState(t, q, job.ID, simplequeue.StateCompleted)
		}
	}
}

// A stale owner's completion is refused, and its transaction can go on.
func TestCompletionByAStaleOwner(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	makeEffects(t, pool)
	begun, reaped, answer := make(chan uuid.UUID, 1), make(chan struct{}), make(chan error, 1)
	old := newQueue(t, pool, simplequeue.Options{
		GlobalPermits:  1, // only the next owner may run it again
		ReaperInterval: time.Hour,
		Handlers: []simplequeue.Handler{simplequeue.HandlerFunc("q", func(_ context.Context, job *simplequeue.Job) error {
			begun <- job.ID
			<-reaped
			ctx := context.Background()
			answer <- pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
				err := job.CompleteTx(ctx, tx)
				if _, e := tx.Exec(ctx, "SELECT 1"); e != nil {
					return e
				}
				return err
			})
			return nil
		})},
	})
	start(t, old)
	insert(t, old, simplequeue.NewJob{Queue: "q"})
	id := <-begun
	expire(t, pool, id)
	next := newQueue(t, pool, simplequeue.Options{
		ReaperInterval: 200 * time.Millisecond, Handlers: []simplequeue.Handler{simplequeue.HandlerFunc("q", nothing)},
	})
	start(t, next)
	if info := awaitState(t, next, id, simplequeue.StateCompleted); info.Attempt != 2 {
		t.Errorf("attempt %d, want 2", info.Attempt)
	}
	close(reaped)
	if err := <-answer; !errors.Is(err, simplequeue.ErrLeaseLost) {
		t.Errorf("the stale owner is told %v, want %v", err, simplequeue.ErrLeaseLost)
	}
	eventually(t, "the old owner counts a lost lease", func() bool { return old.Stats().LeasesLost == 1 })
	if n := old.Stats().Completed; n != 0 || countRows(t, pool, "job_queue_archive") != 1 {
		t.Errorf("the old owner counts %d completed", n)
	}
}
