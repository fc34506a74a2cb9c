package migrate

import (
	"context"
	"io/fs"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/simplequeue/simplequeue/backoff"
)

// The tests live in package migrate_test, because pgtest imports migrate. This
// is what they see of the inside.

// Runner is a migrator over any files.
type Runner struct{ m *migrator }

// Embedded runs the library's own migrations.
var Embedded = Runner{embedded}

// NewRunner reads migrations from fsys. It gives way to locks sooner than the
// real one.
func NewRunner(fsys fs.FS) (Runner, error) {
	all, err := load(fsys)
	m := newMigrator(all)
	m.lockTimeout = 50 * time.Millisecond
	m.retry = backoff.Constant(20 * time.Millisecond)
	return Runner{m}, err
}

func (r Runner) Up(ctx context.Context, conn *pgx.Conn, schema string) error {
	return r.m.up(ctx, conn, schema)
}

func (r Runner) SQL(schema string) string { return r.m.sql(schema) }

func (r Runner) Latest() int { return r.m.latest() }

// Texts returns the files with their placeholders.
func (r Runner) Texts() map[string]string {
	texts := make(map[string]string)
	for _, m := range r.m.migrations {
		texts[m.name] = m.text
	}
	return texts
}

// Catalog returns the live schema in the form of catalog.txt.
func (r Runner) Catalog(ctx context.Context, conn *pgx.Conn, schema string) (string, error) {
	var facts []fact
	err := inTx(ctx, conn, beginReadTx, func() (err error) {
		facts, err = r.m.catalog(ctx, conn, schema)
		return err
	})
	return formatCatalog(facts), err
}

// Check compares the live schema with a text in the form of catalog.txt.
func (r Runner) Check(ctx context.Context, conn *pgx.Conn, schema, golden string) error {
	return r.m.check(ctx, conn, schema, parseCatalog(golden))
}

var (
	GoldenCatalog = goldenCatalog
	DollarQuoted  = dollarQuoted
	SchemaNeutral = schemaNeutral
	LockKey       = lockKey
)
