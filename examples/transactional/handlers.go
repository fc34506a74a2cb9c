package main

import (
	"context"
	"fmt"
	"io"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
)

// setStateSQL moves an order on, and finds no row when that was done before.
const setStateSQL = `
UPDATE simplequeue_shop.orders
SET state = $3
WHERE id = $1 AND state = $2`

// invoiceHandler writes the invoice, asks for the mail that brings it and
// completes its job, in one transaction: a worker that dies at any moment has
// done all of it or nothing. An order that has been invoiced is left alone, for
// somebody may ask for its invoice twice.
func invoiceHandler(pool *pgxpool.Pool) simplequeue.Handler {
	return simplequeue.Typed(invoices, func(ctx context.Context, job *simplequeue.Job, p orderJob) error {
		return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			tag, err := tx.Exec(ctx, setStateSQL, p.Order, "placed", "invoiced")
			if err != nil {
				return err
			}
			if tag.RowsAffected() == 1 {
				q := simplequeue.FromContext(ctx)
				if _, err := q.InsertTx(ctx, tx, simplequeue.NewJob{Queue: mails, Payload: p}); err != nil {
					return err
				}
			}
			return job.CompleteTx(ctx, tx)
		})
	})
}

// mailHandler sends the mail. A mail server takes part in no transaction, so
// a mail may go out twice: it carries the job's id, by which the receiver can
// tell.
func mailHandler(pool *pgxpool.Pool, outbox io.Writer) simplequeue.Handler {
	return simplequeue.Typed(mails, func(ctx context.Context, job *simplequeue.Job, p orderJob) error {
		_, err := fmt.Fprintf(outbox, "  mail %s: the invoice of order %d\n", job.ID, p.Order)
		if err != nil {
			return err
		}
		_, err = pool.Exec(ctx, setStateSQL, p.Order, "invoiced", "mailed")
		return err
	})
}
