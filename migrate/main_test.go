package migrate_test

import (
	"context"
	"flag"
	"fmt"
	"os"
	"testing"
	"testing/fstest"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/simplequeue/simplequeue/internal/pgtest"
	"github.com/simplequeue/simplequeue/migrate"
)

var update = flag.Bool("update", false, "rewrite schema.sql and catalog.txt; run the tests again without it")

// childURL names the database that a re-executed test binary migrates.
const childURL = "SIMPLEQUEUE_MIGRATE_CHILD_URL"

func TestMain(m *testing.M) {
	if url := os.Getenv(childURL); url != "" {
		if err := runChild(url); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	pgtest.Main(m)
}

// runChild is the whole program of a re-executed test binary.
func runChild(url string) error {
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	runner, err := migrate.NewRunner(slowFiles(slow))
	if err != nil {
		return err
	}
	return runner.Up(ctx, conn, "q")
}

// slow is what a migration takes where it need only not be at once.
const slow = 30 * time.Millisecond

// slowFiles are migrations that take as long each, and would not bear being run
// twice.
func slowFiles(each time.Duration) fstest.MapFS {
	sleep := fmt.Sprintf("SELECT pg_sleep(%g);", each.Seconds())
	return fstest.MapFS{
		"sql/0001_first.sql": {Data: []byte(`
CREATE TABLE {schema}.a (id integer);
` + sleep + `
CREATE INDEX a_id ON {schema}.a (id);`)},
		"sql/0002_second.sql": {Data: []byte(sleep + `
ALTER TABLE {schema}.a ADD COLUMN name text;
INSERT INTO {schema}.a VALUES (1, '{schema_name}');`)},
		"sql/0003_third.sql": {Data: []byte(`
CREATE VIEW {schema}.v AS SELECT id FROM {schema}.a;
` + sleep)},
	}
}

func newRunner(t *testing.T, files fstest.MapFS) migrate.Runner {
	t.Helper()
	runner, err := migrate.NewRunner(files)
	if err != nil {
		t.Fatal(err)
	}
	return runner
}

// connect opens a connection that is closed when the test ends. The settings
// are startup parameters, in force from the first statement.
func connect(t *testing.T, url string, settings ...string) *pgx.Conn {
	t.Helper()
	config, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(settings); i += 2 {
		config.RuntimeParams[settings[i]] = settings[i+1]
	}
	conn, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return conn
}

func exec(t *testing.T, conn *pgx.Conn, sql string) {
	t.Helper()
	if _, err := conn.PgConn().Exec(t.Context(), sql).ReadAll(); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// value returns the one value that a query yields, as text.
func value(t *testing.T, conn *pgx.Conn, sql string) string {
	t.Helper()
	var v string
	if err := conn.QueryRow(t.Context(), "SELECT ("+sql+")::text").Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

func up(t *testing.T, conn *pgx.Conn, schema string) {
	t.Helper()
	if err := migrate.Up(t.Context(), conn, schema); err != nil {
		t.Fatal(err)
	}
}

func wantVersion(t *testing.T, conn *pgx.Conn, schema string, want int) {
	t.Helper()
	if got, err := migrate.Version(t.Context(), conn, schema); err != nil || got != want {
		t.Fatalf("version of %q = %d, %v; want %d", schema, got, err, want)
	}
}

func quoted(schema string) string { return pgx.Identifier{schema}.Sanitize() }
