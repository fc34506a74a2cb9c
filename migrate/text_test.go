package migrate_test

import (
	"errors"
	"os"
	osexec "os/exec"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"github.com/simplequeue/simplequeue/internal/pgtest"
	"github.com/simplequeue/simplequeue/migrate"
)

// TestSchemaFile keeps schema.sql at the root the text of the migrations.
func TestSchemaFile(t *testing.T) {
	t.Parallel()
	const file = "../schema.sql"
	want := migrate.SQL("simplequeue")
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, strings.ReplaceAll(string(got), "\r\n", "\n")); diff != "" {
		t.Errorf("schema.sql is not the text of the migrations, run go test ./migrate -update (-want +got):\n%s", diff)
	}
}

// TestTextEqualsUp runs the text as other tools do and compares the outcome.
func TestTextEqualsUp(t *testing.T) {
	t.Parallel()
	for _, schema := range []string{"simplequeue", `He said "Hi"`} {
		t.Run(schema, func(t *testing.T) {
			t.Parallel()
			url := pgtest.EmptyDatabase(t)
			conn := connect(t, url)
			if psql, err := osexec.LookPath("psql"); err == nil {
				cmd := osexec.CommandContext(t.Context(), psql, "-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", "-", url)
				cmd.Stdin = strings.NewReader(migrate.SQL(schema))
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Fatalf("psql: %v\n%s", err, out)
				}
			} else {
				t.Log("no psql on PATH: sending the text in one message instead")
				exec(t, conn, migrate.SQL(schema))
			}
			wantVersion(t, conn, schema, migrate.Latest())
			wantGolden(t, conn, schema)

			const rows = ".schema_migration AS m ORDER BY version) AS s"
			columns := "SELECT string_agg(s::text, ';') FROM (SELECT version, name, checksum FROM "
			byText := value(t, conn, columns+quoted(schema)+rows)
			up(t, conn, schema)
			up(t, conn, "by up")
			if byUp := value(t, conn, columns+`"by up"`+rows); byUp != byText {
				t.Errorf("the text records %s, Up records %s", byText, byUp)
			}
			if err := migrate.Check(t.Context(), conn, schema); err != nil && !*update {
				t.Error(err)
			}
		})
	}
}

// TestTextRunTwice changes nothing the second time.
func TestTextRunTwice(t *testing.T) {
	t.Parallel()
	conn := connect(t, pgtest.EmptyDatabase(t))
	exec(t, conn, migrate.SQL("q"))
	if _, err := conn.PgConn().Exec(t.Context(), migrate.SQL("q")).ReadAll(); err == nil || !strings.Contains(err.Error(), "schema_migration_pkey") {
		t.Errorf("got %v, want a refusal by the version row", err)
	}
	exec(t, conn, "ROLLBACK")
	wantVersion(t, conn, "q", migrate.Latest())
}

func TestValidateSchema(t *testing.T) {
	t.Parallel()
	for _, name := range []string{
		"", strings.Repeat("x", 64), strings.Repeat("ö", 32), "a\x00b", "a\nb", "\xff", "pg_queue", "a$$b", "a$tag$b",
	} {
		err := migrate.ValidateSchema(name)
		var refused *migrate.SchemaError
		if !errors.As(err, &refused) || refused.Schema != name {
			t.Errorf("%q: got %v, want a SchemaError", name, err)
		}
		if err := migrate.Up(t.Context(), nil, name); !errors.As(err, &refused) {
			t.Errorf("Up of %q: got %v, want a SchemaError", name, err)
		}
		if err := migrate.Check(t.Context(), nil, name); !errors.As(err, &refused) {
			t.Errorf("Check of %q: got %v, want a SchemaError", name, err)
		}
	}
	for _, name := range []string{"simplequeue", "Simple Queue", `a"b`, "it's", "select", "a$b", "PG_x", "größe", strings.Repeat("x", 63)} {
		if err := migrate.ValidateSchema(name); err != nil {
			t.Error(err)
		}
	}
}

func TestSQLPanicsOnBadName(t *testing.T) {
	t.Parallel()
	defer func() {
		if _, ok := recover().(*migrate.SchemaError); !ok {
			t.Error("want a panic with a SchemaError")
		}
	}()
	_ = migrate.SQL("")
}

func TestFileNames(t *testing.T) {
	t.Parallel()
	for name, paths := range map[string][]string{
		"none":       {},
		"gap":        {"sql/0001_a.sql", "sql/0003_b.sql"},
		"twice":      {"sql/0001_a.sql", "sql/0001_b.sql"},
		"from two":   {"sql/0002_a.sql"},
		"odd name":   {"sql/1_a.sql"},
		"upper case": {"sql/0001_A.sql"},
	} {
		files := fstest.MapFS{}
		for _, p := range paths {
			files[p] = &fstest.MapFile{Data: []byte("SELECT 1;")}
		}
		if _, err := migrate.NewRunner(files); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	unix := newRunner(t, fstest.MapFS{"sql/0001_a.sql": {Data: []byte("SELECT 1;\n")}}).SQL("q")
	windows := newRunner(t, fstest.MapFS{"sql/0001_a.sql": {Data: []byte("SELECT 1;\r\n")}}).SQL("q")
	if unix != windows {
		t.Error("line ends change the text or the checksum")
	}
}

// TestFiles reads the library's own files for what would break the promises
// of this package.
func TestFiles(t *testing.T) {
	t.Parallel()
	forbidden := map[string]*regexp.Regexp{
		"ends the transaction of the migration": regexp.MustCompile(`(?im)^\s*(BEGIN|COMMIT|ROLLBACK|START TRANSACTION)\s*;`),
		"cannot run inside a transaction":       regexp.MustCompile(`(?i)\bCONCURRENTLY\b`),
		"is not ASCII":                          regexp.MustCompile(`[^\x00-\x7F]`),
		"has a block comment":                   regexp.MustCompile(`/\*`),
	}
	for name, text := range migrate.Embedded.Texts() {
		for what, pattern := range forbidden {
			if found := pattern.FindString(text); found != "" {
				t.Errorf("migration %s: %q %s", name, found, what)
			}
		}
	}
}
