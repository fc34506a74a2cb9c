package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// maxReported is how many rows of the dead letter queue are printed.
const maxReported = 40

const statesSQL = `
SELECT state, count(*)
FROM simplequeue.job
GROUP BY 1
ORDER BY 1`

const deadLettersSQL = `
SELECT coalesce(payload ->> 'name', queue), state, coalesce(errors -> -1 ->> 'error', reason, ''), count(*) OVER ()
FROM simplequeue.job_queue_dlq
WHERE queue = ANY ($1)
ORDER BY finished_at DESC, id
LIMIT $2`

// report prints what the database holds now and where the pictures are.
func report(ctx context.Context, pool *pgxpool.Pool, c *config, sheet uuid.UUID, temporary bool, w io.Writer) error {
	fmt.Fprintln(w, "\nJobs in the database, by state")
	if err := reportStates(ctx, pool, w); err != nil {
		return err
	}
	if err := reportDeadLetters(ctx, pool, w); err != nil {
		return err
	}
	fmt.Fprintf(w, "\nThumbnails     %s\n", c.out)
	if err := reportSheet(ctx, pool, sheet, w); err != nil {
		return err
	}
	if temporary {
		fmt.Fprintln(w, "\nThe database was temporary: it is removed now, and another run starts from the beginning.")
	}
	return nil
}

func reportStates(ctx context.Context, pool *pgxpool.Pool, w io.Writer) error {
	rows, err := pool.Query(ctx, statesSQL)
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	var state string
	var n int64
	if _, err := pgx.ForEachRow(rows, []any{&state, &n}, func() error {
		_, err := fmt.Fprintf(table, "  %s\t%d\n", state, n)
		return err
	}); err != nil {
		return err
	}
	return table.Flush()
}

func reportDeadLetters(ctx context.Context, pool *pgxpool.Pool, w io.Writer) error {
	rows, err := pool.Query(ctx, deadLettersSQL, []string{thumbnails, sheets}, maxReported)
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	var name, state, reason string
	var shown, total int64
	if _, err := pgx.ForEachRow(rows, []any{&name, &state, &reason, &total}, func() error {
		if shown == 0 {
			fmt.Fprintln(table, "\nDead letter queue, newest first")
			fmt.Fprintln(table, "  FILE\tSTATE\tREASON")
		}
		shown++
		_, err := fmt.Fprintf(table, "  %s\t%s\t%s\n", oneLine(name), state, oneLine(reason))
		return err
	}); err != nil {
		return err
	}
	if total > shown {
		fmt.Fprintf(table, "  and %d more\n", total-shown)
	}
	return table.Flush()
}

const sheetSQL = `
SELECT payload, state, coalesce(errors -> -1 ->> 'error', reason, '')
FROM simplequeue.job
WHERE id = $1`

func reportSheet(ctx context.Context, pool *pgxpool.Pool, sheet uuid.UUID, w io.Writer) error {
	var p sheetJob
	var state, reason string
	if err := pool.QueryRow(ctx, sheetSQL, sheet).Scan(&p, &state, &reason); err != nil {
		return err
	}
	if _, err := os.Stat(p.path()); state != "completed" || err != nil {
		_, err := fmt.Fprintf(w, "Contact sheet  none: %s, %s\n", state, oneLine(reason))
		return err
	}
	_, err := fmt.Fprintf(w, "Contact sheet  %s\n", p.path())
	return err
}

// oneLine makes a text fit for a row of a table.
func oneLine(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	if letters := []rune(text); len(letters) > 120 {
		return string(letters[:119]) + "…"
	}
	return text
}

// count is a number with its noun.
func count(n int, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return fmt.Sprintf("%d %s", n, noun)
}
