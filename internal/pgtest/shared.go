package pgtest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue/internal/pgserver"
)

// databasePrefix starts the names of all databases made here. The time at
// which the test binary started follows, so that a later run knows the age of
// what an aborted run left on a server that outlives it.
const databasePrefix = "simplequeue_test_"

// staleAfter is the age at which the databases of another run count as left
// behind. No run takes that long.
const staleAfter = 6 * time.Hour

// shared is the server of this test binary.
var shared = &server{
	name: fmt.Sprintf("%s%d_%s", databasePrefix, time.Now().Unix(), strings.ToLower(rand.Text()[:10])),
}

// server is a PostgreSQL server with a template database, started by the first
// test that asks.
type server struct {
	name string // starts the names of this binary's databases

	once     sync.Once
	err      error // of starting
	postgres *pgserver.Server
	admin    *pgxpool.Pool // on the database of the server's URL

	mu     sync.Mutex
	number int // of databases so far
}

// database creates a database for a test and returns its URL.
func (s *server) database(t testing.TB, migrated bool) string {
	t.Helper()
	s.once.Do(func() {
		if s.err = s.start(); s.err != nil {
			s.err = errors.Join(s.err, s.close())
		}
	})
	if s.err != nil {
		t.Fatalf("pgtest: %v", s.err)
	}

	s.mu.Lock()
	s.number++
	name := s.name + "_" + strconv.Itoa(s.number)
	s.mu.Unlock()

	template := "template0"
	if migrated {
		template = s.template()
	}
	ctx, cancel := adminContext()
	defer cancel()
	if err := s.create(ctx, name, template); err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := adminContext()
		defer cancel()
		if err := s.drop(ctx, name); err != nil {
			t.Errorf("pgtest: %v", err)
		}
	})
	return withDatabase(s.postgres.URL(), name)
}

func (s *server) template() string { return s.name + "_template" }

// start starts the server and makes the template.
func (s *server) start() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	var err error
	if s.postgres, err = pgserver.Start(ctx, pgserver.Options{URLVariable: URLVariable, InMemory: true}); err != nil {
		return err
	}
	config, err := pgxpool.ParseConfig(s.postgres.URL())
	if err != nil {
		return err
	}
	config.MaxConns = 4
	if s.admin, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		return err
	}
	if s.postgres.Provider() == pgserver.Environment {
		if err := s.dropStale(ctx); err != nil {
			return err
		}
	}
	if err := s.create(ctx, s.template(), "template0"); err != nil {
		return err
	}
	return migrateUp(ctx, withDatabase(s.postgres.URL(), s.template()))
}

// stop ends what start started, if it did.
func (s *server) stop() error {
	s.once.Do(func() { s.err = errors.New("the tests are over") })
	if s.err != nil {
		return nil // Nothing was started, or start has cleaned up after itself.
	}
	return s.close()
}

func (s *server) close() error {
	var err error
	if s.admin != nil {
		if s.postgres.Provider() == pgserver.Environment {
			ctx, cancel := adminContext()
			defer cancel()
			err = s.drop(ctx, s.template())
		}
		s.admin.Close()
	}
	if s.postgres != nil {
		err = errors.Join(err, s.postgres.Stop())
	}
	return err
}

// create copies a database. PostgreSQL refuses while anybody is connected to
// the template, be it the connection that has just migrated it.
func (s *server) create(ctx context.Context, name, template string) error {
	statement := "CREATE DATABASE " + quote(name) + " TEMPLATE " + quote(template)
	const objectInUse = "55006"
	for {
		_, err := s.admin.Exec(ctx, statement)
		var pgErr *pgconn.PgError
		if err == nil {
			return nil
		}
		if !errors.As(err, &pgErr) || pgErr.Code != objectInUse || ctx.Err() != nil {
			return fmt.Errorf("creating the database of a test: %w", err)
		}
	}
}

// drop removes a database and cuts the connections to it.
func (s *server) drop(ctx context.Context, name string) error {
	if _, err := s.admin.Exec(ctx, "DROP DATABASE IF EXISTS "+quote(name)+" WITH (FORCE)"); err != nil {
		return fmt.Errorf("dropping the database of a test: %w", err)
	}
	return nil
}

// dropStale removes the databases of runs that ended without cleaning up.
func (s *server) dropStale(ctx context.Context) error {
	rows, err := s.admin.Query(ctx, "SELECT datname FROM pg_database WHERE starts_with(datname, $1)", databasePrefix)
	if err != nil {
		return fmt.Errorf("looking for databases of old test runs: %w", err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("looking for databases of old test runs: %w", err)
	}
	for _, name := range names {
		started, _, _ := strings.Cut(strings.TrimPrefix(name, databasePrefix), "_")
		seconds, err := strconv.ParseInt(started, 10, 64)
		if err != nil || time.Since(time.Unix(seconds, 0)) < staleAfter {
			continue
		}
		if err := s.drop(ctx, name); err != nil {
			fmt.Fprintln(os.Stderr, "pgtest:", err) // Another run may be at it, or it is somebody else's.
		}
	}
	return nil
}

// adminContext bounds one statement on the server's databases. It is none of
// the test's: that one is cancelled when the clean-up runs.
func adminContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), time.Minute)
}

func quote(name string) string { return pgx.Identifier{name}.Sanitize() }

// withDatabase returns the connection string with another database.
func withDatabase(connection, name string) string {
	u, err := url.Parse(connection)
	if err != nil || u.Scheme == "" {
		// Keywords and values; the last one of a keyword counts.
		return connection + " dbname=" + name
	}
	u.Path = "/" + name
	q := u.Query()
	if q.Has("dbname") || q.Has("database") {
		q.Del("dbname")
		q.Del("database")
		u.RawQuery = q.Encode()
	}
	return u.String()
}
