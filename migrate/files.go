package migrate

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"strconv"
	"strings"
)

//go:embed sql/*.sql
var sqlFiles embed.FS

// embedded are the library's own migrations. A wrong file name is a mistake of
// the library, found by any test, and not an error a user could handle.
var embedded = newMigrator(must(load(sqlFiles)))

var fileName = regexp.MustCompile(`^([0-9]{4})_([a-z0-9_]+)\.sql$`)

// A migration is one numbered file.
type migration struct {
	version  int
	name     string // the file's name without number and suffix
	text     string // with placeholders
	checksum string // SHA-256 of text, in hex
}

// load reads sql/NNNN_name.sql files. The numbers run from 1 without a gap.
func load(fsys fs.FS) ([]migration, error) {
	paths, err := fs.Glob(fsys, "sql/*.sql")
	if err != nil {
		return nil, err
	}
	if len(paths) == 0 {
		return nil, errors.New("no migration files")
	}
	var all []migration
	for i, p := range paths { // Glob sorts by name, hence by number
		match := fileName.FindStringSubmatch(path.Base(p))
		if match == nil {
			return nil, fmt.Errorf("migration file %s: want a name like 0001_initial.sql", p)
		}
		version, err := strconv.Atoi(match[1])
		if err != nil {
			return nil, err
		}
		if version != i+1 {
			return nil, fmt.Errorf("migration file %s: want number %04d next", p, i+1)
		}
		raw, err := fs.ReadFile(fsys, p)
		if err != nil {
			return nil, err
		}
		// A checkout may have changed the line ends; the text is still the same.
		text := strings.ReplaceAll(string(raw), "\r\n", "\n")
		sum := sha256.Sum256([]byte(text))
		all = append(all, migration{version: version, name: match[2], text: text, checksum: hex.EncodeToString(sum[:])})
	}
	return all, nil
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// beginTx starts the transaction of one migration whatever the role, the
// database or the caller has set: the isolation level, so that a statement
// after the lock sees what was committed while it waited; search_path, so that
// nobody's objects stand in for PostgreSQL's; the meaning of backslashes, so
// that quoting holds; how the settings of functions are stored, which is as
// they print; and no notices about what exists already.
const beginTx = `BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;
SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL standard_conforming_strings = on;
SET LOCAL quote_all_identifiers = off;
SET LOCAL client_min_messages = warning;
`

// lockSQL makes migrations of one schema take turns until they commit.
func lockSQL(schema string) string {
	return fmt.Sprintf("SELECT pg_advisory_xact_lock(%d);\n", lockKey(schema))
}

// prepareSQL makes what the first migration needs. CREATE SCHEMA IF NOT EXISTS
// would ask for the right to create schemas even where the schema exists, hence
// the look before. It also races with itself, hence the lock around it.
const prepareSQL = `DO $prepare$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_namespace WHERE nspname = '{schema_name}') THEN
        CREATE SCHEMA {schema};
    END IF;
    CREATE TABLE IF NOT EXISTS {schema}.schema_migration (
        version    integer     NOT NULL PRIMARY KEY,
        name       text        NOT NULL,
        applied_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        checksum   text        NOT NULL
    );
END
$prepare$;
`

// applySQL is a migration from the row that records it to its last statement.
// The row comes first: a text that is run a second time then fails at once.
func (m migration) applySQL(schema string) string {
	return render(m.head()+m.text, schema)
}

// head is the part of applySQL that stands before the text of the file.
func (m migration) head() string {
	return fmt.Sprintf("INSERT INTO {schema}.schema_migration (version, name, checksum)\nVALUES (%d, '%s', '%s');\n\n",
		m.version, m.name, m.checksum)
}

// SQL returns the text of all migrations for another tool: each in its own
// transaction, under the lock that [Up] takes, with the row that records it.
// Run on an empty database, for example by psql -f with ON_ERROR_STOP set, it
// leaves what Up leaves, and Up then has nothing to do. Each migration of it
// can also be cut out and run alone.
//
// SQL panics with a [*SchemaError] if [ValidateSchema] refuses the name.
func SQL(schema string) string {
	return embedded.sql(schema)
}

func (m *migrator) sql(schema string) string {
	if err := ValidateSchema(schema); err != nil {
		panic(err)
	}
	var b strings.Builder
	b.WriteString("-- The schema of simplequeue, all migrations in order.\n" +
		"-- Generated from the files in migrate/sql; do not edit.\n")
	for _, mig := range m.migrations {
		fmt.Fprintf(&b, "\n-- Migration %d: %s\n", mig.version, strings.ReplaceAll(mig.name, "_", " "))
		b.WriteString(beginTx)
		b.WriteString(lockSQL(schema))
		b.WriteString(render(prepareSQL, schema))
		b.WriteString(strings.TrimRight(mig.applySQL(schema), "\n"))
		b.WriteString("\n\nCOMMIT;\n")
	}
	return b.String()
}
