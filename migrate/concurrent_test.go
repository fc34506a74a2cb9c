package migrate_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	osexec "os/exec"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/simplequeue/simplequeue/internal/pgtest"
	"github.com/simplequeue/simplequeue/migrate"
)

func TestUpFromManyConnections(t *testing.T) {
	t.Parallel()
	url := pgtest.EmptyDatabase(t)
	var wg sync.WaitGroup
	start := make(chan struct{})
	isolation := []string{"read committed", "repeatable read", "serializable"}
	for i := range 20 {
		conn := connect(t, url, "default_transaction_isolation", isolation[i%len(isolation)])
		wg.Go(func() {
			<-start
			if err := migrate.Up(t.Context(), conn, "simplequeue"); err != nil {
				t.Error(err)
			}
		})
	}
	close(start)
	wg.Wait()

	conn := connect(t, url)
	if got := value(t, conn, "SELECT count(*) FROM simplequeue.schema_migration"); got != value(t, conn, "SELECT max(version) FROM simplequeue.schema_migration") {
		t.Errorf("%s rows in schema_migration, want one for each version", got)
	}
	wantVersion(t, conn, "simplequeue", migrate.Latest())
	if got := value(t, conn, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"); got != "0" {
		t.Errorf("%s advisory locks are left", got)
	}
}

// TestUpFromProcessesThatDie starts processes that migrate the same empty
// database and kills most of them at a random moment.
func TestUpFromProcessesThatDie(t *testing.T) {
	t.Parallel()
	url := pgtest.EmptyDatabase(t)
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	for i := range 20 {
		child := osexec.CommandContext(ctx, program)
		child.Env = append(os.Environ(), childURL+"="+url)
		child.Stderr = os.Stderr
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		if i%4 != 0 {
			killer := time.AfterFunc(rand.N(400*time.Millisecond), func() { _ = child.Process.Kill() })
			defer killer.Stop()
		}
		wg.Go(func() {
			if err := child.Wait(); err != nil && i%4 == 0 {
				t.Errorf("a process that nobody killed: %v", err)
			}
		})
	}
	wg.Wait()

	conn := connect(t, url)
	wantVersion(t, conn, "q", 3)
	if got := value(t, conn, "SELECT string_agg(version::text, ',' ORDER BY version) FROM q.schema_migration"); got != "1,2,3" {
		t.Errorf("recorded versions %s, want 1,2,3", got)
	}
	if got := value(t, conn, "SELECT count(*) FROM q.a"); got != "1" {
		t.Errorf("the second migration ran %s times, want once", got)
	}
}

func TestUpResumesAfterCancel(t *testing.T) {
	t.Parallel()
	url := pgtest.EmptyDatabase(t)
	runner := newRunner(t, slowFiles(slow))
	// One migration takes 30 ms: these end before, in and between them.
	for _, after := range []time.Duration{0, 10, 20, 45, 60, 80} {
		ctx, cancel := context.WithTimeout(t.Context(), after*time.Millisecond)
		err := runner.Up(ctx, connect(t, url), "q")
		cancel()
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("cancelled after %v ms: %v", int(after), err)
		}
	}
	conn := connect(t, url)
	if err := runner.Up(t.Context(), conn, "q"); err != nil {
		t.Fatal(err)
	}
	wantVersion(t, conn, "q", 3)
	if got := value(t, conn, "SELECT count(*) FROM q.a"); got != "1" {
		t.Errorf("the second migration ran %s times, want once", got)
	}
}

func TestUpGivesUpWaitingWithItsContext(t *testing.T) {
	t.Parallel()
	url := pgtest.EmptyDatabase(t)
	holder, conn, other := connect(t, url), connect(t, url), connect(t, url)
	if _, err := holder.Exec(t.Context(), "SELECT pg_advisory_lock($1)", migrate.LockKey("q")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := migrate.Up(ctx, conn, "q"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the context's error", err)
	}
	wantVersion(t, other, "q", 0)
	up(t, other, "another schema has another lock")
}

// TestUpIsNotHurriedByTimeouts gives the role timeouts far below the time
// that a migration takes, and has another process hold the lock for longer than
// a migration would try if it stepped back each time.
func TestUpIsNotHurriedByTimeouts(t *testing.T) {
	t.Parallel()
	url := pgtest.EmptyDatabase(t)
	runner := newRunner(t, slowFiles(600*time.Millisecond))
	holder := connect(t, url)
	exec(t, holder, fmt.Sprintf("BEGIN; SELECT pg_advisory_xact_lock(%d)", migrate.LockKey("q")))
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := holder.PgConn().Exec(t.Context(), "SELECT pg_sleep(1.5); COMMIT").ReadAll(); err != nil {
			t.Error(err)
		}
	})
	for range 3 {
		conn := connect(t, url, "statement_timeout", "300ms", "lock_timeout", "150ms")
		wg.Go(func() {
			if err := runner.Up(t.Context(), conn, "q"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// TestUpStepsBackFromLockedTables holds a table that the second migration
// alters. Up must neither fail nor keep others waiting behind it.
func TestUpStepsBackFromLockedTables(t *testing.T) {
	t.Parallel()
	url := pgtest.EmptyDatabase(t)
	conn, holder, reader := connect(t, url), connect(t, url), connect(t, url)
	first := newRunner(t, fstest.MapFS{"sql/0001_first.sql": slowFiles(slow)["sql/0001_first.sql"]})
	if err := first.Up(t.Context(), conn, "q"); err != nil {
		t.Fatal(err)
	}
	tx, err := holder.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), "SELECT FROM q.a"); err != nil {
		t.Fatal(err)
	}

	done := make(chan error, 1)
	all := newRunner(t, slowFiles(slow))
	go func() { done <- all.Up(t.Context(), conn, "q") }()
	waiting := "SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'q.a'::regclass AND NOT granted)"
	for value(t, reader, waiting) != "true" {
		if t.Context().Err() != nil {
			t.Fatal("the migration never waited")
		}
	}
	if _, err := reader.Exec(t.Context(), "SET statement_timeout = '5s'; SELECT FROM q.a"); err != nil {
		t.Errorf("a reader waits behind the migration: %v", err)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	wantVersion(t, reader, "q", 3)
}

func TestUpPoolOfOne(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t, pgtest.EmptyDatabase(t), 1)
	for range 2 {
		if err := migrate.UpPool(t.Context(), pool, "simplequeue"); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := pool.Ping(ctx); err != nil {
		t.Errorf("the pool's connection did not come back: %v", err)
	}
}
