// Transactional inserts jobs in the transaction that writes the rows they are
// about: an order and its job are there together or not at all. It does so with
// pgx and with database/sql, and once more inside a handler, which writes its
// result and the next job and completes its own in one transaction.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgserver"
	"github.com/simplequeue/simplequeue/migrate"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "transactional:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, stdout io.Writer) (err error) {
	server, err := pgserver.Start(ctx, pgserver.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()
	pool, err := pgxpool.New(ctx, server.URL())
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := migrate.UpPool(ctx, pool, "simplequeue"); err != nil {
		return err
	}
	if err := createShop(ctx, pool); err != nil {
		return err
	}

	q, err := simplequeue.New(pool, simplequeue.Options{
		Handlers: []simplequeue.Handler{invoiceHandler(pool), mailHandler(pool, stdout)},
		Queues:   map[string]simplequeue.QueueOptions{mails: {Permits: 1}}, // one writes to stdout at a time
	})
	if err != nil {
		return err
	}

	fmt.Fprintln(stdout, "Three orders, each inserted with its job in one transaction:")
	if err := placeOrder(ctx, pool, q, "a teapot", nil); err != nil {
		return err
	}
	fmt.Fprintln(stdout, "  a teapot    by pgx, committed")

	err = placeOrder(ctx, pool, q, "a saucer", errOutOfStock)
	if !errors.Is(err, errOutOfStock) {
		return fmt.Errorf("the order that should fail: %w", err)
	}
	fmt.Fprintln(stdout, "  a saucer    by pgx, rolled back:", err)

	db := stdlib.OpenDBFromPool(pool)
	defer func() { err = errors.Join(err, db.Close()) }()
	if err := placeOrderSQL(ctx, db, q, "a kettle"); err != nil {
		return err
	}
	fmt.Fprintln(stdout, "  a kettle    by database/sql, committed")
	fmt.Fprintln(stdout)

	if err := printTables(ctx, pool, stdout, "Before the workers start"); err != nil {
		return err
	}
	if err := work(ctx, q); err != nil {
		return err
	}
	fmt.Fprintln(stdout)
	return printTables(ctx, pool, stdout, "When all is done")
}

// work runs q until no order has anything left to do.
func work(ctx context.Context, q *simplequeue.SimpleQueue) error {
	working, done := context.WithCancel(ctx)
	defer done()
	idle := make(chan error, 1)
	go func() {
		idle <- waitIdle(working, q)
		done()
	}()
	err := q.Run(working)
	done()
	if idleErr := <-idle; err == nil {
		err = idleErr
	}
	return err
}

// waitIdle returns when both queues are empty. Invoices are counted first: an
// invoice inserts its mail before it is done.
func waitIdle(ctx context.Context, q *simplequeue.SimpleQueue) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		left := int64(0)
		for _, queue := range []string{invoices, mails} {
			states, err := q.Count(ctx, simplequeue.Filter{Queue: queue})
			if err != nil {
				return err
			}
			for state, n := range states {
				if !state.Terminal() {
					left += n
				}
			}
		}
		if left == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
