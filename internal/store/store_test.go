package store_test

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/simplequeue/simplequeue/internal/pgtest"
	"github.com/simplequeue/simplequeue/internal/store"
	_ "github.com/simplequeue/simplequeue/janitor" // they define statements of their own
	"github.com/simplequeue/simplequeue/migrate"
	_ "github.com/simplequeue/simplequeue/reaper"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// Every statement is one that PostgreSQL accepts against the schema as it is,
// with every parameter's type known, under any name of the schema.
func TestEveryStatementPrepares(t *testing.T) {
	t.Parallel()
	conn, err := pgx.Connect(t.Context(), pgtest.EmptyDatabase(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if n := len(store.All()); n < 25 {
		t.Fatalf("only %d statements are defined", n)
	}
	for _, name := range []string{pgtest.Schema, `odd "name"'s {job} {slot}`} {
		if err := migrate.Up(t.Context(), conn, name); err != nil {
			t.Fatal(err)
		}
		schema := store.NewSchema(name)
		for _, st := range store.All() {
			for slot, text := range schema.SQLs(st) {
				d, err := conn.Prepare(t.Context(), fmt.Sprint(name, st, slot), text)
				if err != nil {
					t.Errorf("%v:\n%s", err, text)
					continue
				}
				for i, oid := range d.ParamOIDs {
					if oid == 0 || oid == 705 { // unknown
						t.Errorf("parameter %d has no type:\n%s", i+1, text)
					}
				}
			}
		}
	}
}

var (
	star       = regexp.MustCompile(`(?i)(SELECT|RETURNING|,)\s+(\w+\.)?\*`)
	writes     = regexp.MustCompile(`(?i)(INSERT INTO|DELETE FROM|UPDATE|FROM|JOIN)\s+(job\w*|schema_migration)\b`)
	parameters = regexp.MustCompile(`\$\d+`)
)

// Rows move by the names of their columns, tables are named with their schema,
// and every parameter of a statement says its type.
func TestStatementsNameWhatTheyMove(t *testing.T) {
	t.Parallel()
	schema := store.NewSchema("s")
	for _, st := range store.All() {
		text := schema.SQL(st)
		if found := star.FindString(text); found != "" {
			t.Errorf("%q in:\n%s", found, text)
		}
		if found := writes.FindString(text); found != "" {
			t.Errorf("%q without a schema in:\n%s", found, text)
		}
		if strings.ContainsAny(text, "{}") && !strings.Contains(text, "'{") {
			t.Errorf("a placeholder is left in:\n%s", text)
		}
		for _, at := range parameters.FindAllStringIndex(text, -1) {
			// A cast follows, perhaps after the parentheses of an array.
			if !strings.HasPrefix(strings.TrimLeft(text[at[1]:], ")"), "::") {
				t.Errorf("parameter %s has no cast in:\n%s", text[at[0]:at[1]], text)
			}
		}
	}
}

var entersTable = regexp.MustCompile(`INSERT INTO "s"\.(job_(?:queue|waiting|running|finished|queue_archive|queue_dlq|outcome)(?:_\d)?)\s*\(([^)]*)\)`)

// Whatever moves a job from table to table takes its properties and its error
// history along, as they are: a newer program may have put into them what this
// one knows nothing of.
func TestEveryMoveTakesPropertiesAlong(t *testing.T) {
	t.Parallel()
	schema, moves := store.NewSchema("s"), 0
	for _, st := range store.All() {
		for _, text := range schema.SQLs(st) {
			if !strings.Contains(text, "DELETE FROM") {
				continue // a new job
			}
			for _, into := range entersTable.FindAllStringSubmatch(text, -1) {
				moves++
				for _, column := range []string{"errors", "props"} {
					if !regexp.MustCompile(`\b` + column + `\b`).MatchString(into[2]) {
						t.Errorf("a job enters %s without %s in:\n%s", into[1], column, text)
					}
				}
			}
		}
	}
	if moves < 50 {
		t.Errorf("only %d moves were found", moves)
	}
}

// What an error says about the statement decides whether it is tried again.
func TestWhatAnErrorSays(t *testing.T) {
	t.Parallel()
	server := func(code, severity string) error {
		return fmt.Errorf("wrapped: %w", &pgconn.PgError{Code: code, Severity: severity})
	}
	for _, c := range []struct {
		err                 error
		answered, transient bool
	}{
		{io.ErrUnexpectedEOF, false, true},
		{server("57P01", "FATAL"), false, true},
		{server("57P02", "PANIC"), false, true},
		{server("40P01", "ERROR"), true, true},
		{server("40001", "ERROR"), true, true},
		{server("53300", "ERROR"), true, true},
		{server("55P03", "ERROR"), true, true},
		{server("25006", "ERROR"), true, true},
		{server("57014", "ERROR"), true, true},
		{server("22P05", "ERROR"), true, false},
		{server("23505", "ERROR"), true, false},
		{server("42P01", "ERROR"), true, false},
	} {
		if got := store.Answered(c.err); got != c.answered {
			t.Errorf("Answered(%v) = %t", c.err, got)
		}
		if got := store.Transient(c.err); got != c.transient {
			t.Errorf("Transient(%v) = %t", c.err, got)
		}
	}
	if store.Code(errors.New("x")) != "" || store.Code(server("23514", "ERROR")) != "23514" {
		t.Error("Code is wrong")
	}
	if !store.NoPartition(server("23514", "ERROR")) || store.NoPartition(io.EOF) {
		t.Error("NoPartition is wrong")
	}
	for _, code := range []string{"42P01", "3F000"} {
		if !store.SchemaMissing(server(code, "ERROR")) {
			t.Errorf("SchemaMissing(%s) is false", code)
		}
	}
}
