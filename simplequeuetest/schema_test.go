package simplequeuetest_test

import (
	"context"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
	"github.com/simplequeue/simplequeue/simplequeuetest"
)

func schemas(t testing.TB, pool *pgxpool.Pool) (n int) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), "SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'simplequeuetest%'").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// Each test's schema is its own, and gone when the test has ended: also if it has
// closed the pool, or has every connection in use.
func TestSchema(t *testing.T) {
	t.Parallel()
	url := pgtest.EmptyDatabase(t)
	pool := pgtest.Pool(t, url, 2)
	if _, err := pool.Exec(t.Context(), "CREATE SCHEMA simplequeuetest_1000_left; CREATE SCHEMA simplequeuetest_mine; CREATE SCHEMA simplequeuetest_99999999999_new"); err != nil {
		t.Fatal(err)
	}
	_, _ = record(t, func(t testing.TB) {
		a := newQueue(t, pool, simplequeue.Options{Schema: simplequeuetest.Schema(t, pool)})
		b := newQueue(t, pool, simplequeue.Options{Schema: simplequeuetest.Schema(t, pool)})
		insert(t, a, simplequeue.NewJob{Queue: "a"})
		simplequeuetest.Inserted(t, a, 1, simplequeue.NewJob{})
		simplequeuetest.Inserted(t, b, 0, simplequeue.NewJob{})
	})
	_, _ = record(t, func(t testing.TB) {
		own := pgtest.Pool(t, url, 1)
		simplequeuetest.Schema(t, own)
		own.Close()
	})
	_, _ = record(t, func(t testing.TB) {
		own := pgtest.Pool(t, url, 1)
		simplequeuetest.Schema(t, own)
		conn, err := own.Acquire(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(conn.Release) // so before the schema
	})
	if n := schemas(t, pool); n > 3 {
		t.Errorf("%d schemas are left", n)
	}
	simplequeuetest.DropLeft(t, pool)
	if n := schemas(t, pool); n != 2 {
		t.Errorf("%d schemas are there, want those that nobody has left behind", n)
	}
}

// A transaction that the test has left open is named as what is in the way.
func TestSchemaInUse(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	var tx pgx.Tx
	r, _ := record(t, func(t testing.TB) {
		q := newQueue(t, pool, simplequeue.Options{Schema: simplequeuetest.Schema(t, pool)})
		var err error
		if tx, err = pool.Begin(context.Background()); err != nil {
			t.Fatal(err)
		}
		if _, err := q.InsertTx(t.Context(), tx, simplequeue.NewJob{Queue: "a"}); err != nil {
			t.Fatal(err)
		}
	})
	_ = tx.Rollback(t.Context())
	if !strings.Contains(r.text, "still open") {
		t.Errorf("the test has failed with %q", r.text)
	}
}
