package migrate

import (
	"bufio"
	"context"
	_ "embed"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
)

// goldenCatalog is what catalog finds after all migrations, written by
// go test ./migrate -update.
//
//go:embed catalog.txt
var goldenCatalog string

// VersionError says that a schema is at another version than the library's.
type VersionError struct {
	Schema  string
	Current int // the database's version, 0 where there is no schema
	Latest  int // the library's
}

// Error names both versions and the way out.
func (e *VersionError) Error() string {
	if e.Current > e.Latest {
		return fmt.Sprintf("schema %q is at version %d and this library knows %d: use the newer library that migrated it", e.Schema, e.Current, e.Latest)
	}
	return fmt.Sprintf("schema %q is at version %d and this library needs %d: run the migrations", e.Schema, e.Current, e.Latest)
}

// DriftError says that a schema no longer looks the way the migrations left
// it. Things are named by kind and name, such as "index job_queue_lane" or
// "column job_queue.seq", without the schema, and sorted.
type DriftError struct {
	Schema     string
	Version    int
	Missing    []string // made by the migrations, now gone
	Unexpected []string // not made by the migrations
	Changed    []string // defined otherwise; with both definitions
}

// Error names each thing and the way out.
func (e *DriftError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "schema %q differs from version %d of the migrations:", e.Schema, e.Version)
	for _, part := range []struct {
		label string
		names []string
		fix   string
	}{
		{"missing", e.Missing, "create it as the text of the migrations does"},
		{"unexpected", e.Unexpected, "move it to another schema or drop it"},
		{"changed", e.Changed, "alter it back"},
	} {
		if len(part.names) > 0 {
			fmt.Fprintf(&b, " %s: %s (%s);", part.label, strings.Join(part.names, ", "), part.fix)
		}
	}
	return strings.TrimSuffix(b.String(), ";")
}

// Check compares the live schema with what the migrations of this library make:
// tables, columns, indexes, constraints, triggers, sequences, types, functions
// and the columns of views, and the recorded checksums of the migrations. It
// leaves out partitions by day, which come and go while the queue runs, and storage
// parameters, comments and grants, which are the operator's.
//
// It returns nil where they agree, a [*DriftError] where they do not, and a
// [*VersionError] where the schema is older or newer than the library, and there
// is nothing to compare. It only reads the catalog and schema_migration.
func Check(ctx context.Context, conn *pgx.Conn, schema string) error {
	return embedded.check(ctx, conn, schema, parseCatalog(goldenCatalog))
}

func (m *migrator) check(ctx context.Context, conn *pgx.Conn, schema string, want []fact) error {
	version, err := m.version(ctx, conn, schema)
	if err != nil {
		return err
	}
	if version != m.latest() {
		return &VersionError{Schema: schema, Current: version, Latest: m.latest()}
	}

	var have []fact
	err = inTx(ctx, conn, beginReadTx, func() (err error) {
		if have, err = m.catalog(ctx, conn, schema); err != nil {
			return err
		}
		applied, err := recordedMigrations(ctx, conn, schema)
		have = append(have, applied...)
		return err
	})
	if err != nil {
		return fmt.Errorf("check schema %q: %w", schema, err)
	}
	for _, mig := range m.migrations {
		want = append(want, migrationFact(strconv.Itoa(mig.version), mig.checksum))
	}

	drift := compare(have, want)
	if drift == nil {
		return nil
	}
	drift.Schema, drift.Version = schema, version
	return drift
}

const recordedMigrationsSQL = `
SELECT version, checksum
FROM {schema}.schema_migration
ORDER BY version`

func recordedMigrations(ctx context.Context, conn *pgx.Conn, schema string) ([]fact, error) {
	rows, err := query(ctx, conn, render(recordedMigrationsSQL, schema))
	if err != nil {
		return nil, err
	}
	var facts []fact
	for _, row := range rows {
		facts = append(facts, migrationFact(string(row[0]), string(row[1])))
	}
	return facts, nil
}

func migrationFact(version, checksum string) fact {
	return fact{name: "migration " + version, def: "checksum " + checksum}
}

// compare returns nil if both lists say the same. Names keep their order.
func compare(have, want []fact) *DriftError {
	live := make(map[string]string, len(have))
	for _, f := range have {
		live[f.name] = f.def
	}
	var drift DriftError
	known := make(map[string]bool, len(want))
	for _, f := range want {
		known[f.name] = true
		switch def, ok := live[f.name]; {
		case !ok:
			drift.Missing = append(drift.Missing, f.name)
		case def != f.def:
			drift.Changed = append(drift.Changed, fmt.Sprintf("%s is %q, want %q", f.name, def, f.def))
		}
	}
	for _, f := range have {
		if !known[f.name] {
			drift.Unexpected = append(drift.Unexpected, f.name)
		}
	}
	if drift.Missing == nil && drift.Unexpected == nil && drift.Changed == nil {
		return nil
	}
	return &drift
}

// formatCatalog writes facts as lines of name and definition with a tab between.
func formatCatalog(facts []fact) string {
	var b strings.Builder
	b.WriteString("# What the migrations make. Written by go test ./migrate -update; do not edit.\n")
	for _, f := range facts {
		fmt.Fprintf(&b, "%s\t%s\n", f.name, f.def)
	}
	return b.String()
}

// parseCatalog is the inverse of formatCatalog.
func parseCatalog(text string) []fact {
	var facts []fact
	lines := bufio.NewScanner(strings.NewReader(text))
	lines.Buffer(nil, len(text)+1)
	for lines.Scan() {
		if name, def, ok := strings.Cut(lines.Text(), "\t"); ok {
			facts = append(facts, fact{name, def})
		}
	}
	return facts
}
