package simplequeue_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// However many jobs a process inserts, and however many callers at once, it sends
// one notification every five milliseconds at most: PostgreSQL commits those of a
// database one at a time.
func TestWakeUpsCostABoundedNumberOfNotifications(t *testing.T) {
	t.Parallel()
	const callers, each, gap = 64, 50, 5 * time.Millisecond
	pool := pgtest.New(t)
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	defer func() { _, _ = conn.Exec(context.Background(), "UNLISTEN *") }()
	channel := scalar[string](t, pool, "SELECT 'simplequeue_' || left(encode(sha256('simplequeue'), 'hex'), 16)")
	if _, err := conn.Exec(t.Context(), "LISTEN "+pgx.Identifier{channel}.Sanitize()); err != nil {
		t.Fatal(err)
	}
	q := newQueue(t, pool, simplequeue.Options{})
	began := time.Now()
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for range each {
				if _, err := q.Insert(t.Context(), simplequeue.NewJob{Queue: "a"}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	took, n := time.Since(began), 0
	for {
		ctx, stop := context.WithTimeout(t.Context(), time.Second)
		_, err := conn.Conn().WaitForNotification(ctx)
		stop()
		if err != nil {
			break // no more for a second
		}
		n++
	}
	if most := int(took/gap) + 2; n < 1 || n > min(most, callers*each/2) {
		t.Errorf("%d notifications for %d inserts in %v, want 1 to %d", n, callers*each, took, min(most, callers*each/2))
	}
}

// With PostgreSQL's notification queue full, so that the commit of whoever
// notifies fails, inserts go in, jobs run, end and are waited for by polling. A
// transaction of the caller's fails as one, unless its queue is PollOnly.
func TestWorkGoesOnWhileTheNotificationQueueIsFull(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	admin := pgtest.Pool(t, url, 1)
	execute(t, admin, `
		CREATE SCHEMA crowded;
		CREATE TABLE crowded.note (channel text);
		CREATE FUNCTION crowded.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
		    RAISE EXCEPTION 'too many notifications in the NOTIFY queue' USING ERRCODE = 'program_limit_exceeded';
		END $$;
		CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON crowded.note DEFERRABLE INITIALLY DEFERRED
		    FOR EACH ROW EXECUTE FUNCTION crowded.refuse();
		CREATE FUNCTION crowded.pg_notify(channel text, payload text) RETURNS void LANGUAGE sql AS 'INSERT INTO crowded.note VALUES (channel)'`)
	alterDatabase(t, admin, "search_path", "crowded, pg_catalog, public")
	pool := pgtest.Pool(t, url, 8)
	if _, err := pool.Exec(t.Context(), "SELECT pg_notify('a', 'b')"); code(err) != "54000" {
		t.Fatalf("the queue is not full: %v", err)
	}
	opts := handler("a", nothing)
	opts.PollInterval = 50 * time.Millisecond
	start(t, newQueue(t, pgtest.Pool(t, url, 8), opts))
	q := newQueue(t, pool, simplequeue.Options{})
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() { // alone and with a key, by a group's transaction and by its own
			for _, key := range []string{"", "k"} {
				if _, err := q.Insert(t.Context(), simplequeue.NewJob{Queue: "a", UniqueKey: key}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if _, err := q.InsertMany(t.Context(), repeat(300, simplequeue.NewJob{Queue: "a"})); err != nil {
		t.Error(err)
	}
	if _, err := q.InsertAndWait(t.Context(), simplequeue.NewJob{Queue: "a"}); err != nil {
		t.Error(err)
	}
	inTx := func(q *simplequeue.SimpleQueue) error {
		return pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
			_, err := q.InsertTx(t.Context(), tx, simplequeue.NewJob{Queue: "in a transaction"})
			return err
		})
	}
	if err := inTx(q); code(err) != "54000" {
		t.Errorf("InsertTx: %v, want 54000", err)
	}
	if err := inTx(newQueue(t, pool, simplequeue.Options{PollOnly: true})); err != nil {
		t.Errorf("InsertTx with PollOnly: %v", err)
	}
	if c := counts(t, q, "in a transaction"); c[simplequeue.StatePending] != 1 || len(c) != 1 {
		t.Errorf("inserted in transactions: %v, want the one of PollOnly", c)
	}
	eventually(t, "all jobs have run", func() bool {
		c := counts(t, q, "a")
		return len(c) == 1 && c[simplequeue.StateCompleted] >= 352
	})
}

func code(err error) string {
	if e := (*pgconn.PgError)(nil); errors.As(err, &e) {
		return e.Code
	}
	return ""
}
