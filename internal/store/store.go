// Package store holds the SQL of the engine: each statement stands above the
// method that runs it. Statements are written against {schema}, which is
// {schema_text} inside a string; {job} stands for the columns that travel with a
// job from table to table, and {x.job} for the same columns qualified with x.
package store

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Statement is a statement of the engine, before the schema's name is filled in.
type Statement int

var statements []string

// Define registers a statement. It is called from package variables only.
func Define(text string) Statement {
	statements = append(statements, text)
	return Statement(len(statements) - 1)
}

// All returns every defined statement, for the test that prepares each one.
func All() []Statement {
	all := make([]Statement, len(statements))
	for i := range all {
		all[i] = Statement(i)
	}
	return all
}

// jobColumns travel with a job through every live table.
var jobColumns = []string{
	"id", "created_at", "attempt", "max_attempts", "reprocess_count", "crash_count", "payload_bytes",
	"priority", "queue", "kind", "unique_scope", "unique_key", "fingerprint", "payload", "raw", "errors", "props",
}

var jobRef = regexp.MustCompile(`\{(?:(\w+)\.)?job\}`)

// Schema fills the name of a schema into statements, each when it is first used:
// a program that only inserts needs few of them.
type Schema struct {
	name  string
	texts []atomic.Pointer[[]string] // by statement, and by slot where there is one for each
}

// NewSchema returns the statements for a schema.
func NewSchema(name string) *Schema {
	return &Schema{name: name, texts: make([]atomic.Pointer[[]string], len(statements))}
}

// expand fills in the schema's name last: it may look like a placeholder.
func (s *Schema) expand(text string) string {
	text = jobRef.ReplaceAllStringFunc(text, func(ref string) string {
		prefix := ""
		if q := jobRef.FindStringSubmatch(ref)[1]; q != "" {
			prefix = q + "."
		}
		return prefix + strings.Join(jobColumns, ", "+prefix)
	})
	name := pgx.Identifier{s.name}.Sanitize()
	return strings.NewReplacer("{schema}", name, "{schema_text}", strings.ReplaceAll(name, "'", "''")).Replace(text)
}

// Name is the schema's name.
func (s *Schema) Name() string { return s.name }

// SQL is the text of a statement in this schema.
func (s *Schema) SQL(st Statement) string { return s.SQLs(st)[0] }

// SQLs are the texts of a statement: one, or one for each table of a ring.
func (s *Schema) SQLs(st Statement) []string {
	if texts := s.texts[st].Load(); texts != nil {
		return *texts
	}
	texts := bySlot(statements[st])
	for slot, text := range texts {
		texts[slot] = s.expand(text)
	}
	s.texts[st].Store(&texts)
	return texts
}

// DB runs statements of one schema on a pool.
type DB struct {
	*Schema
	Pool   *pgxpool.Pool
	Within *Within // instead of Pool, if it is set
}

// Step is one statement of a transaction.
type Step struct {
	Statement Statement
	Text      string // instead of Statement: one that is built for the call
	Slot      int    // of the table in its ring, for a statement with a text for each
	Args      []any
	Scan      func(row pgx.Rows) error // called for each row; nil ignores them
}

// settings make the plans of the engine's own statements independent of
// statistics: each is an index probe per job by construction, and a plan made
// while a table was empty must still be one when it holds a million rows. The
// timeouts override those of the role, so that a statement never hangs and is
// never cut off early, and that the locks of a process that stands still between
// two statements are let go. All of them end with the transaction.
const settings = `SELECT
    set_config('statement_timeout', $1::bigint::text, true),
    set_config('lock_timeout', $1::bigint::text, true),
    set_config('idle_in_transaction_session_timeout', least($1::bigint, 5000)::text, true),
    set_config('enable_seqscan', 'off', true),
    set_config('enable_bitmapscan', 'off', true),
    set_config('enable_hashjoin', 'off', true),
    set_config('enable_mergejoin', 'off', true),
    set_config('jit', 'off', true),
    set_config('plan_cache_mode', 'force_generic_plan', true)`

// Tx runs the steps in one READ COMMITTED transaction, whatever the session's
// default is, in a single round trip. It takes at most limit, on the server and
// here.
func (db *DB) Tx(ctx context.Context, limit time.Duration, steps ...Step) error {
	if db.Within != nil {
		return db.stepsWithin(ctx, steps)
	}
	return db.onConn(ctx, limit, func(ctx context.Context, conn *pgxpool.Conn) error {
		var batch pgx.Batch
		batch.Queue("BEGIN ISOLATION LEVEL READ COMMITTED")
		batch.Queue(settings, limit.Milliseconds())
		for _, s := range steps {
			batch.Queue(db.text(s), s.Args...)
		}
		batch.Queue("COMMIT")
		return readBatch(conn.SendBatch(ctx, &batch), 2, steps)
	})
}

// LockTimeout sets for how many milliseconds a transaction waits for a lock.
var LockTimeout = Define(`SELECT set_config('lock_timeout', $1::bigint::text, true)`)

// TxImpatiently is Tx for a step that fails where it would have to wait for a
// lock for longer than patience: Tx waits where it prepares a statement for the
// first time, before the timeouts are set. The step and the COMMIT are one
// message, so that a process which freezes in between has no row locked.
func (db *DB) TxImpatiently(ctx context.Context, limit, patience time.Duration, step Step) error {
	if db.Within != nil {
		return db.stepsWithin(ctx, []Step{step})
	}
	return db.onConn(ctx, limit, func(ctx context.Context, conn *pgxpool.Conn) error {
		if _, err := conn.Exec(ctx, "BEGIN ISOLATION LEVEL READ COMMITTED"); err != nil {
			return err
		}
		if _, err := conn.Exec(ctx, settings, limit.Milliseconds()); err != nil {
			return err
		}
		if _, err := conn.Exec(ctx, db.SQL(LockTimeout), patience.Milliseconds()); err != nil {
			return err
		}
		var batch pgx.Batch
		batch.Queue(db.text(step), step.Args...)
		batch.Queue("COMMIT")
		return readBatch(conn.SendBatch(ctx, &batch), 0, []Step{step})
	})
}

// onConn runs a transaction on a connection of the pool. The server has limit for
// it; what it does not answer soon after that is given up here.
func (db *DB) onConn(ctx context.Context, limit time.Duration, f func(ctx context.Context, conn *pgxpool.Conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit+limit/4)
	defer cancel()
	conn, err := db.Pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("acquire connection: %w", err)
	}
	defer conn.Release()
	if err := f(ctx, conn); err != nil {
		abandon(ctx, conn.Conn(), err)
		return err
	}
	return nil
}

// afterDeadlock makes a call again, twice at most, that the server has ended with
// a deadlock. Calls of the library take the rows of jobs in one order; a list of
// inserts whose keys replace waiting and pending jobs takes them in the order of
// the keys.
func afterDeadlock[T any](db *DB, call func() (T, error)) (T, error) {
	done, err := call()
	for try := 1; try < 3 && Code(err) == "40P01" && db.Within == nil; try++ {
		done, err = call()
	}
	return done, err
}

func (s *Schema) text(step Step) string {
	if step.Text != "" {
		return s.expand(step.Text)
	}
	return s.SQLs(step.Statement)[step.Slot]
}

// readBatch reads the results of steps, of as many statements before them, and of
// the COMMIT.
func readBatch(results pgx.BatchResults, before int, steps []Step) (err error) {
	defer func() {
		if e := results.Close(); err == nil {
			err = e
		}
	}()
	for range before {
		if _, err := results.Exec(); err != nil {
			return err
		}
	}
	for _, s := range steps {
		if err := readStep(results, s); err != nil {
			return err
		}
	}
	tag, err := results.Exec()
	if err == nil && tag.String() == "ROLLBACK" {
		return errors.New("transaction was rolled back")
	}
	return err
}

func readStep(results pgx.BatchResults, s Step) error {
	rows, err := results.Query()
	if err != nil {
		return err
	}
	return scanStep(rows, s)
}

func scanStep(rows pgx.Rows, s Step) error {
	defer rows.Close()
	for rows.Next() {
		if s.Scan != nil {
			if err := s.Scan(rows); err != nil {
				return err
			}
		}
	}
	return rows.Err()
}

// abandon leaves a connection usable after a failed transaction, or closes it:
// one that a failover has turned read-only, or whose prepared statements are
// gone or stale, would go on failing for ever.
func abandon(ctx context.Context, conn *pgx.Conn, err error) {
	switch Code(err) {
	case "25006", "26000", "0A000":
		_ = conn.Close(ctx)
		return
	}
	if !conn.IsClosed() && conn.PgConn().TxStatus() != 'I' {
		_, _ = conn.Exec(ctx, "ROLLBACK")
	}
}

// Code is the SQLSTATE of err, or "".
func Code(err error) string {
	var pe *pgconn.PgError
	if errors.As(err, &pe) {
		return pe.Code
	}
	return ""
}

// Answered reports whether the server itself refused the statement, so that it
// surely had no effect. Any other error leaves that open.
func Answered(err error) bool {
	var pe *pgconn.PgError
	return errors.As(err, &pe) && pe.Severity != "FATAL" && pe.Severity != "PANIC"
}

// Transient reports whether the same statement may well succeed later: the
// database is away, overloaded, read-only or in someone's way.
func Transient(err error) bool {
	if !Answered(err) {
		return true
	}
	code := Code(err)
	switch code[:2] {
	case "08", "40", "53", "55", "57", "58", "XX":
		return true
	}
	switch code {
	case "25006", "25P02", "25P03", "26000", "0A000", "42501":
		return true
	}
	return false
}

// TookTooLong reports whether a statement was ended because its time was over: a
// smaller one may be in time.
func TookTooLong(err error) bool { return Code(err) == "57014" }

// Internal reports whether the server failed at a statement, such as at a page
// that is damaged: others may well go through.
func Internal(err error) bool { return strings.HasPrefix(Code(err), "XX") }

// HadToWait reports whether a statement was ended because it had to wait for too
// long, for a lock or for its turn.
func HadToWait(err error) bool { return TookTooLong(err) || Code(err) == "55P03" }

// NoPartition reports whether an insert met no partition for its row. A check
// constraint has the same code, and a name.
func NoPartition(err error) bool {
	var pe *pgconn.PgError
	return errors.As(err, &pe) && pe.Code == "23514" && pe.ConstraintName == ""
}

// SchemaMissing reports whether a table of the schema does not exist.
func SchemaMissing(err error) bool {
	switch Code(err) {
	case "42P01", "3F000", "42883", "42703":
		return true
	}
	return false
}

// in fills a table's name into the text of a statement that exists for several.
func in(table, text string) string { return strings.ReplaceAll(text, "{table}", table) }

// InTx runs f in a READ COMMITTED transaction with the engine's settings, for
// what needs the answer of one statement to write the next. Where f lets more
// than limit, or five seconds, pass between two, the server ends the session, and
// with it what the transaction has locked.
func (db *DB) InTx(ctx context.Context, limit time.Duration, f func(ctx context.Context, tx pgx.Tx) error) error {
	if db.Within != nil {
		return db.Within.Tx(ctx, func(tx pgx.Tx) error { return f(ctx, tx) })
	}
	ctx, cancel := context.WithTimeout(ctx, limit+limit/4)
	defer cancel()
	return pgx.BeginTxFunc(ctx, db.Pool, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, settings, limit.Milliseconds()); err != nil {
			return err
		}
		return f(ctx, tx)
	})
}

// NotSent reports whether a statement surely did not reach the server. That it
// is safe to retry pgx also says of a batch whose connection broke between
// sending and reading.
func NotSent(err error) bool {
	var connect *pgconn.ConnectError
	return errors.As(err, &connect)
}

// Unwritable reports whether the server takes no writes now, from anybody: it is
// a standby, or out of disk or memory.
func Unwritable(err error) bool {
	code := Code(err)
	return code == "25006" || code == "0A000" || strings.HasPrefix(code, "53")
}
