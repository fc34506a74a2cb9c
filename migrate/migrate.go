// Package migrate brings the schema of a queue to the version this library
// needs, and tells whether it still looks the way the library left it.
//
// The migrations are numbered SQL files inside the library. [Up] applies those
// that the database lacks, each in one transaction that first takes an advisory
// lock and then looks at the version again: any number of processes may call Up
// when they start, and may be killed while they do; one of them does the work.
// Applied versions are rows of the table schema_migration in the same schema,
// so that a dump carries them.
//
// Up needs a single connection, sets nothing that outlives its transactions and
// prepares no statements: it works in a pool of one and behind PgBouncer in
// transaction mode. It depends neither on search_path nor on the default
// isolation level.
//
// A database that is newer than the library is left alone. Migrations only go
// up.
package migrate

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/simplequeue/simplequeue/backoff"
)

const (
	// lockTimeout is how long a migration waits for a lock on a table. While it
	// waits, everyone who needs the table queues up behind it.
	lockTimeout = 3 * time.Second
	// lockAttempts is how often a migration is tried that meets locked tables.
	lockAttempts = 20
	// rollbackTimeout bounds the ROLLBACK that follows an error.
	rollbackTimeout = 5 * time.Second
)

// Up brings schema to the newest version this library knows, [Latest], and
// creates the schema if there is none. Where there is nothing to do it writes
// nothing and takes no lock: a role that may only read the table
// schema_migration can call it then. A newer database is left alone.
//
// It waits for other migrations of the schema until ctx ends. A migration
// that finds a table locked for more than three seconds steps back, lets
// others pass and tries again, up to twenty times.
//
// An error leaves the schema at the last version that was completed; calling
// Up again goes on from there. A name that [ValidateSchema] refuses is a
// [*SchemaError]; PostgreSQL's errors are *pgconn.PgError. The connection must
// not be inside a transaction. As always with pgx, it is closed if ctx ends
// while a statement runs.
func Up(ctx context.Context, conn *pgx.Conn, schema string) error {
	return embedded.up(ctx, conn, schema)
}

// Version returns the version of schema, 0 where it does not exist or was
// never migrated. It can be larger than [Latest].
func Version(ctx context.Context, conn *pgx.Conn, schema string) (current int, err error) {
	return embedded.version(ctx, conn, schema)
}

// Latest returns the newest version this library knows.
func Latest() int {
	return embedded.latest()
}

// A migrator applies a list of migrations.
type migrator struct {
	migrations  []migration
	lockTimeout time.Duration
	retry       backoff.Policy
}

func newMigrator(migrations []migration) *migrator {
	return &migrator{
		migrations:  migrations,
		lockTimeout: lockTimeout,
		retry:       backoff.Exponential{Base: 500 * time.Millisecond, Cap: 10 * time.Second},
	}
}

func (m *migrator) latest() int {
	return len(m.migrations) // load has checked that the numbers have no gap
}

func (m *migrator) up(ctx context.Context, conn *pgx.Conn, schema string) error {
	version, err := m.version(ctx, conn, schema)
	if err != nil {
		return err
	}
	for attempt := 1; version < m.latest(); {
		reached, err := m.step(ctx, conn, schema)
		switch {
		case err == nil:
			version, attempt = reached, 1
		case !isLockError(err) || attempt == lockAttempts:
			return fmt.Errorf("migrate schema %q: %w", schema, err)
		default:
			if err := wait(ctx, m.retry.Delay(attempt)); err != nil {
				return fmt.Errorf("migrate schema %q: %w", schema, err)
			}
			attempt++
		}
	}
	return nil
}

// step applies the first migration that is missing, if one still is when the
// lock has been taken, and returns the version it leaves.
func (m *migrator) step(ctx context.Context, conn *pgx.Conn, schema string) (version int, err error) {
	err = inTx(ctx, conn, beginTx, func() error {
		// The wait for the lock is bounded by ctx alone: another process may be
		// in the middle of a long migration.
		if _, err := query(ctx, conn, "SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0"); err != nil {
			return err
		}
		if _, err := query(ctx, conn, lockSQL(schema)); err != nil {
			return fmt.Errorf("wait for other migrations: %w", err)
		}
		current, err := recordedVersion(ctx, conn, schema)
		if err != nil {
			return err
		}
		if version = current; version >= m.latest() {
			return nil
		}
		if _, err := query(ctx, conn, fmt.Sprintf("SET LOCAL lock_timeout = %d", m.lockTimeout.Milliseconds())); err != nil {
			return err
		}
		if _, err := query(ctx, conn, render(prepareSQL, schema)); err != nil {
			return fmt.Errorf("prepare the schema: %w", err)
		}
		next := m.migrations[version]
		if _, err := query(ctx, conn, next.applySQL(schema)); err != nil {
			return fmt.Errorf("migration %04d_%s%s: %w", next.version, next.name, next.errorLine(err, schema), err)
		}
		version = next.version
		return nil
	})
	return version, err
}

func (m *migrator) version(ctx context.Context, conn *pgx.Conn, schema string) (version int, err error) {
	if err := ValidateSchema(schema); err != nil {
		return 0, err
	}
	err = inTx(ctx, conn, beginReadTx, func() (err error) {
		version, err = recordedVersion(ctx, conn, schema)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("read the version of schema %q: %w", schema, err)
	}
	return version, nil
}

// beginReadTx starts a transaction that only reads, of one snapshot, that ctx
// alone bounds, and in which the catalog prints things the same way whatever has been set.
const beginReadTx = `BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
SET LOCAL statement_timeout = 0;
SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL standard_conforming_strings = on;
SET LOCAL quote_all_identifiers = off;
SET LOCAL datestyle = 'ISO, YMD';
SET LOCAL intervalstyle = 'postgres';
SET LOCAL timezone = 'UTC';
SET LOCAL bytea_output = 'hex';
SET LOCAL extra_float_digits = 1;
`

const hasVersionsSQL = `
SELECT EXISTS (
    SELECT
    FROM pg_class AS c
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = '{schema_name}'
      AND c.relname = 'schema_migration'
)`

const versionSQL = `
SELECT coalesce(max(version), 0)
FROM {schema}.schema_migration`

// recordedVersion reads the version inside a transaction made by inTx.
func recordedVersion(ctx context.Context, conn *pgx.Conn, schema string) (int, error) {
	rows, err := query(ctx, conn, render(hasVersionsSQL, schema))
	if err != nil {
		return 0, err
	}
	if string(rows[0][0]) != "t" {
		return 0, nil
	}
	if rows, err = query(ctx, conn, render(versionSQL, schema)); err != nil {
		return 0, err
	}
	return strconv.Atoi(string(rows[0][0]))
}

// inTx runs fn in a transaction started by begin, and commits if fn succeeds.
func inTx(ctx context.Context, conn *pgx.Conn, begin string, fn func() error) error {
	if status := conn.PgConn().TxStatus(); status != 'I' && !conn.IsClosed() {
		return errors.New("the connection is inside a transaction: pass one that is not")
	}
	_, err := query(ctx, conn, begin)
	if err == nil {
		err = fn()
	}
	if err == nil {
		if _, err = query(ctx, conn, "COMMIT"); err == nil {
			return nil
		}
	}
	if !conn.IsClosed() && conn.PgConn().TxStatus() != 'I' {
		// ctx may have ended, and the lock must go all the same.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollbackTimeout)
		defer cancel()
		if _, rollbackErr := query(ctx, conn, "ROLLBACK"); rollbackErr != nil {
			return errors.Join(err, rollbackErr)
		}
	}
	return err
}

// query runs statements by the simple protocol, which prepares nothing, and
// returns the rows of the last one as text.
func query(ctx context.Context, conn *pgx.Conn, sql string) ([][][]byte, error) {
	results, err := conn.PgConn().Exec(ctx, sql).ReadAll()
	if err != nil {
		return nil, err
	}
	if len(results) == 0 {
		return nil, nil
	}
	return results[len(results)-1].Rows, nil
}

// isLockError reports whether another session's locks were in the way.
func isLockError(err error) bool {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		return false
	}
	return pgErr.Code == "55P03" || pgErr.Code == "40P01" // lock_not_available, deadlock_detected
}

// errorLine tells the line of the file that err points at, if it points at one.
func (m migration) errorLine(err error, schema string) string {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		return ""
	}
	// Positions count characters from 1 and include the head.
	before := int(pgErr.Position) - 1 - utf8.RuneCountInString(render(m.head(), schema))
	text := []rune(render(m.text, schema))
	if before < 0 || before > len(text) {
		return ""
	}
	return fmt.Sprintf(" line %d", 1+strings.Count(string(text[:before]), "\n"))
}

// wait returns after d, or with the reason why ctx ended.
func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
