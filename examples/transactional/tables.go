package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/jackc/pgx/v5/pgxpool"
)

const ordersSQL = `
SELECT o.id::text, o.item, o.state
FROM simplequeue_shop.orders AS o
ORDER BY o.id`

const jobsSQL = `
SELECT j.payload ->> 'order', j.queue, j.state, coalesce(parent.queue, '-')
FROM simplequeue.job AS j
LEFT JOIN simplequeue.job AS parent ON parent.id = (j.props ->> 'parent_id')::uuid
WHERE j.queue IN ('invoices', 'mails')
ORDER BY (j.payload ->> 'order')::bigint, j.created_at, j.id`

// printTables prints the orders and their jobs.
func printTables(ctx context.Context, pool *pgxpool.Pool, w io.Writer, title string) error {
	fmt.Fprintf(w, "%s\n", title)
	table := tabwriter.NewWriter(w, 0, 0, 0, ' ', 0)
	fmt.Fprintln(table, "  ORDER\t  ITEM\t  STATE")
	if err := printRows(ctx, pool, table, ordersSQL); err != nil {
		return err
	}
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(table, "  ORDER\t  JOB IN QUEUE\t  STATE\t  INSERTED BY")
	if err := printRows(ctx, pool, table, jobsSQL); err != nil {
		return err
	}
	return table.Flush()
}

func printRows(ctx context.Context, pool *pgxpool.Pool, w io.Writer, query string) error {
	rows, err := pool.Query(ctx, query)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		values, err := rows.Values()
		if err != nil {
			return err
		}
		for i, v := range values {
			if i > 0 {
				fmt.Fprint(w, "\t")
			}
			fmt.Fprintf(w, "  %v", v)
		}
		fmt.Fprintln(w)
	}
	return rows.Err()
}
