package simplequeue_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// sqlState is the SQLSTATE of an error, "" if the server did not give it.
func sqlState(err error) string {
	var pe *pgconn.PgError
	if errors.As(err, &pe) {
		return pe.Code
	}
	return ""
}

// A job exists from the commit of its transaction on, workers are woken by that
// commit, and a rollback, of a savepoint too, leaves neither job nor key.
func TestInsertInTheCallersTransaction(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	ran := make(chan uuid.UUID, 10)
	opts := handler("a", func(_ context.Context, job *simplequeue.Job) error { ran <- job.ID; return nil })
	opts.PollInterval = time.Minute // what runs was woken
	q := newQueue(t, pool, opts)
	start(t, q)
	jobs := []simplequeue.NewJob{{Queue: "a"}, {Queue: "a", UniqueKey: "k"}, {Queue: "a", Delay: time.Millisecond}}

	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	lost, err := q.InsertManyTx(t.Context(), tx, jobs)
	if err != nil {
		t.Fatal(err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}

	if tx, err = pool.Begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	inner, err := tx.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	undone, err := q.InsertTx(t.Context(), inner, simplequeue.NewJob{Queue: "a", UniqueKey: "k"})
	if err != nil {
		t.Fatal(err)
	}
	if err := inner.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	kept, err := q.InsertManyTx(t.Context(), tx, jobs[:2])
	if err != nil {
		t.Fatal(err)
	}
	select {
	case id := <-ran:
		t.Errorf("job %v ran before the commit", id)
	case <-time.After(50 * time.Millisecond):
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := map[uuid.UUID]bool{<-ran: true, <-ran: true}
	if want := map[uuid.UUID]bool{kept[0].ID: true, kept[1].ID: true}; !cmp.Equal(got, want) {
		t.Errorf("ran %v, want %v", got, want)
	}
	for _, r := range append(lost, undone) {
		if got := state(t, q, r.ID); got != "" {
			t.Errorf("job of a rolled-back transaction is %s", got)
		}
	}
	if n := queryOne[int](t, pool, "SELECT count(*) FROM simplequeue.job_waiting"); n != 0 {
		t.Errorf("%d jobs wait, want none", n)
	}
}

// What an insert finds wrong with a job leaves the transaction as it was; what
// the database finds aborts it and comes back as it is.
func TestErrorsInTheCallersTransaction(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{})
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	var invalid *simplequeue.InvalidJobError
	if _, err := q.InsertTx(t.Context(), tx, simplequeue.NewJob{}); !errors.As(err, &invalid) {
		t.Errorf("error %v, want an InvalidJobError", err)
	}
	r, err := q.InsertTx(t.Context(), tx, simplequeue.NewJob{Queue: "a"})
	if err != nil {
		t.Fatalf("insert after a refused job: %v", err)
	}
	if _, err := tx.Exec(t.Context(), "SELECT 1/0"); err == nil {
		t.Fatal("no division by zero")
	}
	for _, job := range []simplequeue.NewJob{{Queue: "a"}, {Queue: "a", UniqueKey: "k"}} {
		if _, err := q.InsertTx(t.Context(), tx, job); sqlState(err) != "25P02" || errors.Is(err, simplequeue.ErrInsertUnknown) {
			t.Errorf("error %v, want 25P02, in failed transaction", err)
		}
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := state(t, q, r.ID); got != "" {
		t.Errorf("job is %s", got)
	}
}

// At REPEATABLE READ and SERIALIZABLE a key that another transaction took
// meanwhile is a serialization failure, unchanged, so that the caller's own
// retry finds it; a key whose holder the snapshot sees is a duplicate.
func TestSerializationFailuresOfTheCallersTransactionComeBackUnchanged(t *testing.T) {
	t.Parallel()
	for _, level := range []pgx.TxIsoLevel{pgx.RepeatableRead, pgx.Serializable} {
		t.Run(string(level), func(t *testing.T) {
			t.Parallel()
			pool := pgtest.New(t)
			q := newQueue(t, pool, simplequeue.Options{})
			visible := insert(t, q, simplequeue.NewJob{Queue: "a", UniqueKey: "old"})
			tx, err := pool.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: level})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = tx.Rollback(context.Background()) }()
			if r, err := q.InsertTx(t.Context(), tx, simplequeue.NewJob{Queue: "a", UniqueKey: "old"}); err != nil || !r.Duplicate || r.ID != visible {
				t.Errorf("InsertTx = %+v, %v, want duplicate of %v", r, err, visible)
			}
			insert(t, q, simplequeue.NewJob{Queue: "a", UniqueKey: "new"})
			if _, err := q.InsertTx(t.Context(), tx, simplequeue.NewJob{Queue: "a", UniqueKey: "new"}); sqlState(err) != "40001" {
				t.Errorf("error %v, want 40001", err)
			}
		})
	}
}

// The statements of the library run at READ COMMITTED whatever the database's
// default is: nothing it does on its own fails for reasons of isolation.
func TestTheDefaultIsolationLevelDoesNotMatter(t *testing.T) {
	t.Parallel()
	for _, level := range []string{"repeatable read", "serializable"} {
		t.Run(level, func(t *testing.T) {
			t.Parallel()
			url := pgtest.Database(t)
			execute(t, pgtest.Pool(t, url, 1), `DO $$ BEGIN
				EXECUTE format('ALTER DATABASE %I SET default_transaction_isolation = ''`+level+`''', current_database());
				EXECUTE format('ALTER DATABASE %I SET default_transaction_deferrable = on', current_database());
			END $$`)
			pool := pgtest.Pool(t, url, 10)
			if got := queryOne[string](t, pool, "SHOW default_transaction_isolation"); got != level {
				t.Fatalf("default isolation is %s", got)
			}
			var logged errorLog
			opts := simplequeue.Options{
				Logger: logged.logger(slog.LevelWarn), JanitorInterval: 20 * time.Millisecond,
				Handlers: []simplequeue.Handler{
					simplequeue.HandlerFunc("a", func(_ context.Context, job *simplequeue.Job) error {
						if job.Attempt == 1 {
							return simplequeue.RetryAfter(0, errors.New("again"))
						}
						return nil
					}),
					simplequeue.HandlerFunc("slow", func(ctx context.Context, _ *simplequeue.Job) error { <-ctx.Done(); return ctx.Err() }),
				},
			}
			q := newQueue(t, pool, opts)
			start(t, q)
			start(t, newQueue(t, pool, opts))
			slow := insert(t, q, simplequeue.NewJob{Queue: "slow"})
			done := make(chan error, 4)
			for range cap(done) {
				go func() {
					for i := range 50 {
						_, err := q.InsertMany(context.Background(), []simplequeue.NewJob{{Queue: "a"}, {Queue: "a", UniqueKey: string(rune('a' + i%5))}})
						if err != nil && !errors.Is(err, simplequeue.ErrUniqueContention) {
							done <- err
							return
						}
					}
					done <- nil
				}()
			}
			for range cap(done) {
				if err := <-done; err != nil {
					t.Errorf("InsertMany: %v", err)
				}
			}
			eventually(t, "all plain jobs completed", func() bool {
				c := counts(t, q, "a")
				return c[simplequeue.StateCompleted] >= 200 && len(c) == 1
			})
			if _, err := q.Cancel(t.Context(), slow, ""); err != nil {
				t.Error(err)
			}
			awaitState(t, q, slow, simplequeue.StateCancelled)
			if errs := logged.lines(); len(errs) > 0 {
				t.Errorf("logged: %v", errs)
			}
		})
	}
}

// A job that a handler inserts knows its parent and the first of the chain.
func TestFollowUpJobsKnowTheirParent(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, handler("a", func(ctx context.Context, job *simplequeue.Job) error {
		if job.Kind == "3" {
			return nil
		}
		next := simplequeue.NewJob{Queue: "a", Kind: string(job.Kind[0] + 1)}
		if job.Kind == "1" {
			_, err := simplequeue.FromContext(ctx).Insert(ctx, next)
			return err
		}
		tx, err := pool.Begin(ctx)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback(ctx) }()
		if _, err := simplequeue.FromContext(ctx).InsertTx(ctx, tx, next); err != nil {
			return err
		}
		return tx.Commit(ctx)
	}))
	start(t, q)
	first := insert(t, q, simplequeue.NewJob{Queue: "a", Kind: "1"})
	eventually(t, "the chain completed", func() bool { return counts(t, q, "a")[simplequeue.StateCompleted] == 3 })
	byKind := map[string]simplequeue.JobInfo{}
	list, err := q.List(t.Context(), simplequeue.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	for _, j := range list {
		byKind[j.Kind] = j
	}
	if p := byKind["1"]; p.ParentID != uuid.Nil || p.RootID != uuid.Nil {
		t.Errorf("first job has parent %v, root %v", p.ParentID, p.RootID)
	}
	if p := byKind["2"]; p.ParentID != first || p.RootID != first {
		t.Errorf("second job has parent %v, root %v, want %v", p.ParentID, p.RootID, first)
	}
	if p := byKind["3"]; p.ParentID != byKind["2"].ID || p.RootID != first {
		t.Errorf("third job has parent %v, root %v, want %v, %v", p.ParentID, p.RootID, byKind["2"].ID, first)
	}
}
