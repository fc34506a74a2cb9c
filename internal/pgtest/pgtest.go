package pgtest

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue/internal/pgserver"
	"github.com/simplequeue/simplequeue/migrate"
)

// URLVariable is the environment variable that names an existing server for
// the tests. Its user must be allowed to create databases.
const URLVariable = "SIMPLEQUEUE_TEST_DATABASE_URL"

// Schema is the schema that the databases of the tests are migrated in.
const Schema = "simplequeue"

// closeLimit is how long a test's pool may take to close. A pool closes when
// its last connection comes back.
const closeLimit = 10 * time.Second

// New returns a pool of at most 10 connections to a migrated database of the
// test's own. Pool and database go when the test ends.
func New(t testing.TB) *pgxpool.Pool {
	t.Helper()
	return Pool(t, Database(t), 10)
}

// Pool returns a pool of at most maxConns connections that is closed when the
// test ends.
func Pool(t testing.TB, url string, maxConns int32) *pgxpool.Pool {
	t.Helper()
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	config.MaxConns = maxConns
	pool, err := pgxpool.NewWithConfig(context.Background(), config)
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	t.Cleanup(func() {
		closed := make(chan struct{})
		go func() {
			defer close(closed)
			pool.Close()
		}()
		select {
		case <-closed:
		case <-time.After(closeLimit):
			t.Errorf("pgtest: the test ended with %d connections of its pool in use", pool.Stat().AcquiredConns())
		}
	})
	return pool
}

// Database returns the URL of a migrated database of the test's own, which is
// dropped when the test ends.
func Database(t testing.TB) string {
	t.Helper()
	return shared.database(t, true)
}

// EmptyDatabase is [Database] without the schema.
func EmptyDatabase(t testing.TB) string {
	t.Helper()
	return shared.database(t, false)
}

// Migrated brings the database at url to the newest version of the schema.
func Migrated(t testing.TB, url string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := migrateUp(ctx, url); err != nil {
		t.Fatalf("pgtest: %v", err)
	}
}

// OwnServer returns a server that the test may kill and restart, with
// PostgreSQL settings on top of the ones for tests. It is stopped when the test
// ends. Where only a server of somebody else is to be had, the test is skipped.
func OwnServer(t testing.TB, settings map[string]string) *pgserver.Server {
	t.Helper()
	s, err := pgserver.Start(t.Context(), pgserver.Options{
		URLVariable:  URLVariable,
		Settings:     settings,
		Controllable: true,
		InMemory:     true,
	})
	if err != nil {
		t.Skipf("this test kills its server, and no server is there to be killed: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Errorf("pgtest: %v", err)
		}
	})
	return s
}

// migrateUp migrates the database at url.
func migrateUp(ctx context.Context, url string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	return migrate.Up(ctx, conn, Schema)
}
