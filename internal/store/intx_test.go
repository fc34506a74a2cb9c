package store_test

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/simplequeue/simplequeue/internal/pgtest"
	"github.com/simplequeue/simplequeue/internal/store"
)

// What a process has locked that stands still in the middle of a transaction is
// let go by the server. The settings for that end with the transaction.
func TestTransactionThatStandsStillLetsGo(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	if _, err := pool.Exec(t.Context(), "INSERT INTO simplequeue.job_pause (queue, reason) VALUES ('q', '')"); err != nil {
		t.Fatal(err)
	}
	db := &store.DB{Schema: store.NewSchema(pgtest.Schema), Pool: pgtest.Pool(t, pool.Config().ConnString(), 1)}
	const row = "SELECT true FROM simplequeue.job_pause FOR UPDATE SKIP LOCKED"
	free := func() bool {
		rows, err := pool.Query(t.Context(), row)
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		return rows.Next()
	}
	idle := func() (timeout string) {
		if err := db.Pool.QueryRow(t.Context(), "SHOW idle_in_transaction_session_timeout").Scan(&timeout); err != nil {
			t.Fatal(err)
		}
		return timeout
	}
	before := idle()
	err := db.InTx(t.Context(), 10*time.Second, func(ctx context.Context, tx pgx.Tx) error {
		_, err := tx.Exec(ctx, row)
		return err
	})
	if after := idle(); err != nil || after != before {
		t.Errorf("InTx: %v; idle_in_transaction_session_timeout is %s afterwards, was %s", err, after, before)
	}
	err = db.InTx(t.Context(), time.Second, func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, row); err != nil {
			t.Errorf("lock the row: %v", err)
		}
		for began := time.Now(); !free(); time.Sleep(10 * time.Millisecond) {
			if time.Since(began) > 10*time.Second {
				t.Error("the row stays locked")
				break
			}
		}
		return nil
	})
	if err == nil {
		t.Error("the transaction that stood still is committed")
	}
}
