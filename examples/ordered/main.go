// Ordered delivers webhooks: to each customer one at a time and in the order in
// which things happened, to different customers side by side. An endpoint that
// fails holds up its own customer's events and nobody else's; one that is gone
// for good keeps its customer's key closed until somebody releases it.
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

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/backoff"
	"github.com/simplequeue/simplequeue/internal/pgserver"
	"github.com/simplequeue/simplequeue/migrate"
)

const webhooks = "webhooks"

// Event is what a customer is told.
type Event struct {
	Customer string
	Number   int
	What     string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "ordered:", err)
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

	c := newCustomers(stdout)
	q, err := simplequeue.New(pool, simplequeue.Options{
		Handlers: []simplequeue.Handler{simplequeue.Typed(webhooks, c.deliver)},
		Queues: map[string]simplequeue.QueueOptions{webhooks: {
			BlockDead: true, // an event that cannot be delivered must not be skipped
			Backoff:   backoff.Constant(50 * time.Millisecond),
		}},
	})
	if err != nil {
		return err
	}
	if err := insert(ctx, q); err != nil {
		return err
	}

	working, done := context.WithCancel(ctx)
	defer done()
	ran := make(chan error, 1)
	go func() { ran <- q.Run(working) }()
	err = releaseBlocked(ctx, q, c, stdout)
	done()
	return errors.Join(err, <-ran)
}

// insert inserts five events for each of three customers.
func insert(ctx context.Context, q *simplequeue.SimpleQueue) error {
	what := []string{"order placed", "order paid", "order packed", "order sent", "order delivered"}
	for n := range what {
		var jobs []simplequeue.NewJob
		for _, customer := range []string{"ada", "grace", "edsger"} {
			jobs = append(jobs, simplequeue.NewJob{
				Queue: webhooks, OrderKey: customer, Payload: Event{Customer: customer, Number: n + 1, What: what[n]},
			})
		}
		if _, err := q.InsertMany(ctx, jobs); err != nil {
			return err
		}
	}
	return nil
}

// releaseBlocked does what an operator does: it looks for keys that an
// undeliverable event keeps closed, and opens them. It returns when every event
// has been dealt with.
func releaseBlocked(ctx context.Context, q *simplequeue.SimpleQueue, c *customers, stdout io.Writer) error {
	for {
		keys, err := q.BlockedKeys(ctx, webhooks)
		if err != nil {
			return err
		}
		for _, k := range keys {
			job, err := q.Get(ctx, k.JobID)
			if err != nil {
				return err
			}
			c.say(stdout, "%s is blocked by job %s: %s\n", k.OrderKey, job.State, job.LastError())
			if err := q.ReleaseKey(ctx, k.Queue, k.OrderKey); err != nil {
				return err
			}
		}
		counts, err := q.Count(ctx, simplequeue.Filter{Queue: webhooks, States: []simplequeue.State{
			simplequeue.StateWaiting, simplequeue.StatePending, simplequeue.StateRunning, simplequeue.StateCancelling,
		}})
		if err != nil || len(counts) == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
