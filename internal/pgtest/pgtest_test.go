package pgtest

import (
	"context"
	"crypto/rand"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

func TestMain(m *testing.M) { Main(m) }

// TestIsolation has parallel tests write the same table name, which would fail
// in a shared database.
func TestIsolation(t *testing.T) {
	for _, name := range []string{"a", "b", "c", "d", "e", "f"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := New(t)
			if got := pool.Config().MaxConns; got != 10 {
				t.Errorf("MaxConns is %d, want 10", got)
			}
			if _, err := pool.Exec(t.Context(), "CREATE TABLE mine AS SELECT $1::text AS name", name); err != nil {
				t.Fatal(err)
			}
			var got string
			if err := pool.QueryRow(t.Context(), "SELECT name FROM mine").Scan(&got); err != nil || got != name {
				t.Errorf("read %q, %v, want %q", got, err, name)
			}
		})
	}
}

func TestDatabasesGoWithTheTest(t *testing.T) {
	var name string
	ok := t.Run("one", func(t *testing.T) {
		if err := New(t).QueryRow(t.Context(), "SELECT current_database()").Scan(&name); err != nil {
			t.Fatal(err)
		}
		// A connection that outlives the test must not keep the database.
		if _, err := pgx.Connect(context.Background(), withDatabase(shared.postgres.URL(), name)); err != nil {
			t.Fatal(err)
		}
	})
	if ok && databaseExists(t, name) {
		t.Errorf("the database %s is still there", name)
	}
}

func TestMigratedAndEmpty(t *testing.T) {
	t.Parallel()
	url := EmptyDatabase(t)
	if schemaExists(t, url) {
		t.Error("an empty database has the schema")
	}
	Migrated(t, url)
	if !schemaExists(t, url) {
		t.Error("a migrated database lacks the schema")
	}
	if !schemaExists(t, Database(t)) {
		t.Error("a copy of the template lacks the schema")
	}
}

func TestDropStale(t *testing.T) {
	t.Parallel()
	New(t) // Starts the server.
	own := "_" + rand.Text()
	old, fresh, foreign := databasePrefix+"1"+own, databasePrefix+"99999999999"+own, databasePrefix+"notatime"+own
	for _, name := range []string{old, fresh, foreign} {
		if err := shared.create(t.Context(), name, "template0"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := shared.drop(context.Background(), name); err != nil {
				t.Error(err)
			}
		})
	}
	if err := shared.dropStale(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{old: false, fresh: true, foreign: true} {
		if got := databaseExists(t, name); got != want {
			t.Errorf("%s exists: %t, want %t", name, got, want)
		}
	}
}

func TestOwnServer(t *testing.T) {
	t.Parallel()
	s := OwnServer(t, map[string]string{"work_mem": "12MB"})
	conn, err := pgx.Connect(t.Context(), s.URL())
	if err != nil {
		t.Fatal(err)
	}
	var got string
	if err := conn.QueryRow(t.Context(), "SHOW work_mem").Scan(&got); err != nil || got != "12MB" {
		t.Errorf("work_mem is %q, %v", got, err)
	}
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := conn.Ping(t.Context()); err == nil {
		t.Error("the connection survived the kill")
	}
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	Migrated(t, s.URL())
}

func TestWithDatabase(t *testing.T) {
	t.Parallel()
	tests := map[string]string{
		"postgres://u:p@h:1/postgres?sslmode=disable": "postgres://u:p@h:1/new?sslmode=disable",
		"postgres://u@h?dbname=old":                   "postgres://u@h/new",
		"host=h user=u dbname=old":                    "host=h user=u dbname=old dbname=new",
	}
	for in, want := range tests {
		if got := withDatabase(in, "new"); got != want {
			t.Errorf("withDatabase(%q) = %q, want %q", in, got, want)
		}
		config, err := pgx.ParseConfig(withDatabase(in, "new"))
		if err != nil || config.Database != "new" {
			t.Errorf("%q leads to the database %q, %v", in, config.Database, err)
		}
	}
}

// fakeTests stands in for the tests of a package.
type fakeTests func() int

func (f fakeTests) Run() int { return f() }

func TestMainFindsLeaks(t *testing.T) {
	stop := make(chan struct{})
	defer close(stop)
	leak := fakeTests(func() int {
		go func() { <-stop }()
		return 0
	})
	var stderr strings.Builder
	if code := run(leak, &server{}, &stderr); code != 1 || !strings.Contains(stderr.String(), "TestMainFindsLeaks") {
		t.Errorf("a leak gave the code %d and the message %q", code, stderr.String())
	}
	if code := run(fakeTests(func() int { return 3 }), &server{}, &stderr); code != 3 {
		t.Errorf("the tests' code 3 became %d", code)
	}
}

func databaseExists(t *testing.T, name string) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var exists bool
	if err := shared.admin.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", name).Scan(&exists); err != nil {
		t.Fatal(err)
	}
	return exists
}

func schemaExists(t *testing.T, url string) bool {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var exists bool
	if err := conn.QueryRow(t.Context(), "SELECT to_regnamespace($1) IS NOT NULL", Schema).Scan(&exists); err != nil {
		t.Fatal(err)
	}
	return exists
}

func TestNames(t *testing.T) {
	t.Parallel()
	// PostgreSQL cuts names at 63 bytes.
	if name := shared.name + "_template"; len(name) > 63 || name != strings.ToLower(name) {
		t.Errorf("the name %q is too long or not in lower case", name)
	}
}
