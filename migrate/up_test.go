package migrate_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/simplequeue/simplequeue/internal/pgtest"
	"github.com/simplequeue/simplequeue/migrate"
)

func TestUpTwice(t *testing.T) {
	t.Parallel()
	conn := connect(t, pgtest.EmptyDatabase(t))
	wantVersion(t, conn, "simplequeue", 0)
	up(t, conn, "simplequeue")
	before := value(t, conn, "SELECT string_agg(m::text, ';' ORDER BY version) FROM simplequeue.schema_migration AS m")
	up(t, conn, "simplequeue")
	wantVersion(t, conn, "simplequeue", migrate.Latest())
	if after := value(t, conn, "SELECT string_agg(m::text, ';' ORDER BY version) FROM simplequeue.schema_migration AS m"); after != before {
		t.Errorf("the second Up changed schema_migration from %s to %s", before, after)
	}
}

func TestUpLeavesNoSessionState(t *testing.T) {
	t.Parallel()
	conn := connect(t, pgtest.EmptyDatabase(t))
	const settings = "SELECT string_agg(name || '=' || setting, ';' ORDER BY name) FROM pg_settings WHERE source = 'session'"
	const prepared = "SELECT count(*) FROM pg_prepared_statements WHERE statement !~ 'pg_prepared_statements|pg_settings'"
	before := value(t, conn, "SELECT coalesce(("+settings+"), '')")
	up(t, conn, "simplequeue")
	if err := migrate.Check(t.Context(), conn, "simplequeue"); err != nil && !*update {
		t.Error(err)
	}
	if got := value(t, conn, "SELECT coalesce(("+settings+"), '')"); got != before {
		t.Errorf("session settings %q, before %q", got, before)
	}
	if got := value(t, conn, prepared); got != "0" {
		t.Errorf("%s prepared statements are left", got)
	}
}

func TestUpWithAnySettings(t *testing.T) {
	t.Parallel()
	for _, settings := range [][]string{
		{"default_transaction_isolation", "serializable"},
		{"default_transaction_isolation", "repeatable read"},
		{"default_transaction_read_only", "on"},
		{"standard_conforming_strings", "off"},
		{"search_path", ""},
		{"quote_all_identifiers", "on"},
		{"intervalstyle", "sql_standard", "datestyle", "German", "bytea_output", "escape", "timezone", "Asia/Kolkata"},
	} {
		t.Run(strings.Join(settings, " "), func(t *testing.T) {
			t.Parallel()
			conn := connect(t, pgtest.EmptyDatabase(t), settings...)
			up(t, conn, `back\slash "Q"`)
			wantVersion(t, conn, `back\slash "Q"`, migrate.Latest())
			wantGolden(t, conn, `back\slash "Q"`)
		})
	}
}

// TestHostileSearchPath puts a schema in front in which everything that the
// migrations call or make exists already, and does harm.
func TestHostileSearchPath(t *testing.T) {
	t.Parallel()
	url := pgtest.EmptyDatabase(t)
	conn := connect(t, url)
	exec(t, conn, `
		CREATE SCHEMA evil;
		CREATE FUNCTION evil.harm() RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'evil was called'; END $$;
		CREATE FUNCTION evil.pg_advisory_xact_lock(bigint) RETURNS text LANGUAGE sql AS 'SELECT evil.harm()';
		CREATE FUNCTION evil.clock_timestamp() RETURNS text LANGUAGE sql AS 'SELECT evil.harm()';
		CREATE FUNCTION evil.format_type(oid, integer) RETURNS text LANGUAGE sql AS 'SELECT evil.harm()';
		CREATE FUNCTION evil.quote_ident(text) RETURNS text LANGUAGE sql AS 'SELECT evil.harm()';
		CREATE FUNCTION evil.same(name, text) RETURNS boolean LANGUAGE sql AS 'SELECT evil.harm() IS NULL';
		CREATE OPERATOR evil.= (LEFTARG = name, RIGHTARG = text, FUNCTION = evil.same);
		CREATE FUNCTION evil.same(oid, oid) RETURNS boolean LANGUAGE sql AS 'SELECT evil.harm() IS NULL';
		CREATE OPERATOR evil.= (LEFTARG = oid, RIGHTARG = oid, FUNCTION = evil.same);
		CREATE TABLE evil.schema_migration (version integer);
		INSERT INTO evil.schema_migration VALUES (999);
		CREATE TABLE evil.pg_namespace (oid integer, nspname text);
		CREATE TABLE evil.pg_class (oid integer);
		CREATE TABLE evil.job_queue (id integer);
		CREATE TABLE evil.job_running (id integer);
		CREATE TYPE evil.uuid AS ENUM ('evil');
		CREATE TYPE evil.jsonb AS ENUM ('evil');
		CREATE TYPE evil.text AS ENUM ('evil');`)
	hostile := connect(t, url, "search_path", "evil, pg_catalog")
	// Prove that the trap works before relying on it.
	if _, err := hostile.PgConn().Exec(t.Context(), "SELECT quote_ident('x')").ReadAll(); err == nil {
		t.Fatal("the search path is not hostile")
	}
	up(t, hostile, "simplequeue")
	wantVersion(t, hostile, "simplequeue", migrate.Latest())
	wantGolden(t, hostile, "simplequeue")
}

func TestSchemasSideBySide(t *testing.T) {
	t.Parallel()
	conn := connect(t, pgtest.EmptyDatabase(t))
	names := []string{"one", "two", `He said "Hi" There`, "{schema_name}", "select", "job", "größe"}
	for _, name := range names {
		up(t, conn, name)
	}
	exec(t, conn, "DROP SCHEMA one CASCADE")
	wantVersion(t, conn, "one", 0)
	for _, name := range names[1:] {
		wantVersion(t, conn, name, migrate.Latest())
		wantGolden(t, conn, name)
	}
}

// TestPlaceholders uses both placeholders where they may stand, under a name
// that needs every kind of escape.
func TestPlaceholders(t *testing.T) {
	t.Parallel()
	const name = `it's 100% \ "odd"; --`
	runner := newRunner(t, fstest.MapFS{"sql/0001_odd.sql": {Data: []byte(`
CREATE TABLE {schema}.t (s text DEFAULT '{schema_name}');
INSERT INTO {schema}.t DEFAULT VALUES;
CREATE FUNCTION {schema}.make(child text) RETURNS text LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	EXECUTE format('CREATE TABLE %I.%I (LIKE %1$I.t)', '{schema_name}', child);
	RETURN '{schema_name}';
END
$$;`)}})
	conn := connect(t, pgtest.EmptyDatabase(t), "standard_conforming_strings", "off")
	if err := runner.Up(t.Context(), conn, name); err != nil {
		t.Fatal(err)
	}
	if got := value(t, conn, "SELECT s FROM "+quoted(name)+".t"); got != name {
		t.Errorf("the literal reads %q", got)
	}
	// A body is read again, with the setting of the session that calls it.
	exec(t, conn, "SET standard_conforming_strings = on")
	if got := value(t, conn, "SELECT "+quoted(name)+".make('child')"); got != name {
		t.Errorf("the function returns %q", got)
	}
}

func TestNewerDatabaseIsLeftAlone(t *testing.T) {
	t.Parallel()
	conn := connect(t, pgtest.EmptyDatabase(t))
	up(t, conn, "simplequeue")
	newer := migrate.Latest() + 7
	if _, err := conn.Exec(t.Context(), "INSERT INTO simplequeue.schema_migration VALUES ($1, 'from the future', now(), '')", newer); err != nil {
		t.Fatal(err)
	}
	exec(t, conn, "DROP TABLE simplequeue.job_lease") // the future may well do this
	up(t, conn, "simplequeue")
	wantVersion(t, conn, "simplequeue", newer)
	var wrong *migrate.VersionError
	if err := migrate.Check(t.Context(), conn, "simplequeue"); !errors.As(err, &wrong) || wrong.Current != newer || wrong.Latest != migrate.Latest() {
		t.Errorf("Check: %v, want a VersionError", err)
	}
}

// TestUpWithFewRights lets a role migrate that may create nothing in the
// database but has a schema of its own, then one that may only read.
func TestUpWithFewRights(t *testing.T) {
	t.Parallel()
	conn := connect(t, pgtest.EmptyDatabase(t))
	role := value(t, conn, "SELECT 'few_rights_' || replace(gen_random_uuid()::text, '-', '')")
	exec(t, conn, "CREATE ROLE "+role)
	t.Cleanup(func() {
		ctx := context.Background()
		if _, err := conn.PgConn().Exec(ctx, "RESET ROLE; DROP OWNED BY "+role+" CASCADE; DROP ROLE "+role).ReadAll(); err != nil {
			t.Error(err)
		}
	})
	exec(t, conn, `CREATE SCHEMA theirs AUTHORIZATION `+role+`; SET ROLE `+role)
	up(t, conn, "theirs")

	exec(t, conn, `RESET ROLE`)
	up(t, conn, "ours")
	exec(t, conn, `GRANT USAGE ON SCHEMA ours TO `+role+`; GRANT SELECT ON ours.schema_migration TO `+role+`; SET ROLE `+role)
	up(t, conn, "ours")

	err := migrate.Up(t.Context(), conn, "nobody's")
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.Code != "42501" {
		t.Errorf("got %v, want insufficient_privilege", err)
	}
	if status := conn.PgConn().TxStatus(); status != 'I' {
		t.Errorf("transaction status %c after the error", status)
	}
}

func TestUpRefusesAnOpenTransaction(t *testing.T) {
	t.Parallel()
	conn := connect(t, pgtest.EmptyDatabase(t))
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := migrate.Up(t.Context(), conn, "simplequeue"); err == nil || !strings.Contains(err.Error(), "inside a transaction") {
		t.Errorf("got %v", err)
	}
	if status := conn.PgConn().TxStatus(); status != 'T' {
		t.Errorf("the caller's transaction has status %c", status)
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestFailingMigration(t *testing.T) {
	t.Parallel()
	conn := connect(t, pgtest.EmptyDatabase(t))
	files := fstest.MapFS{
		"sql/0001_good.sql": {Data: []byte("CREATE TABLE {schema}.good ();")},
		"sql/0002_bad.sql":  {Data: []byte("CREATE TABLE {schema}.bad ();\n\nSELECT no_such_column;\n")},
	}
	err := newRunner(t, files).Up(t.Context(), conn, "q")
	if err == nil || !strings.Contains(err.Error(), `migrate schema "q": migration 0002_bad line 3: ERROR: column "no_such_column"`) {
		t.Errorf("got %v, want the schema, the file and the line", err)
	}
	wantVersion(t, conn, "q", 1)
	if got := value(t, conn, "SELECT to_regclass('q.bad') IS NULL"); got != "true" {
		t.Error("a failed migration left a table")
	}
	files["sql/0002_bad.sql"].Data = []byte("CREATE TABLE {schema}.bad ();")
	if err := newRunner(t, files).Up(t.Context(), conn, "q"); err != nil {
		t.Error(err)
	}
	wantVersion(t, conn, "q", 2)
}
