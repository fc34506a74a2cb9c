// Redrive repairs a queue whose jobs have failed: it asks why one of them is not
// running, lists the dead letters page by page, drains the queue, corrects what
// waits, redrives what has died and resumes.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgserver"
	"github.com/simplequeue/simplequeue/migrate"
)

const mails = "mails"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "redrive:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, stdout io.Writer) (err error) {
	// The server that DATABASE_URL names, or one of our own for this run. A
	// program of yours just connects.
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

	var relay atomic.Bool // the mail relay answers
	send := simplequeue.Typed(mails, func(_ context.Context, _ *simplequeue.Job, _ string) error {
		if !relay.Load() {
			return errors.New("no answer from the relay")
		}
		return nil
	})
	q, err := simplequeue.New(pool, simplequeue.Options{Handlers: []simplequeue.Handler{send}, MaxAttempts: 1})
	if err != nil {
		return err
	}
	working, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- q.Run(working) }()
	defer func() { stop(); err = errors.Join(err, <-done) }()

	return repair(ctx, stdout, q, func() { relay.Store(true) })
}

// repair lets jobs fail and gets them to run.
func repair(ctx context.Context, stdout io.Writer, q *simplequeue.SimpleQueue, mend func()) error {
	var jobs []simplequeue.NewJob
	for i := range 250 {
		jobs = append(jobs, simplequeue.NewJob{Queue: mails, Payload: fmt.Sprintf("customer %d", i)})
	}
	inserted, err := q.InsertMany(ctx, jobs)
	if err != nil {
		return err
	}
	if err := await(ctx, q, simplequeue.StateFailed, len(jobs)); err != nil {
		return err
	}
	holds, err := q.Why(ctx, inserted[0].ID)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "Why is the first mail not sent? %s\n", holds[0].Code)

	failed := simplequeue.Filter{Queue: mails, States: []simplequeue.State{simplequeue.StateFailed}}
	for cursor, n := "", 1; ; n++ {
		page, err := q.Page(ctx, failed, cursor)
		if err != nil {
			return err
		}
		fmt.Fprintf(stdout, "Page %d: %d mails, the first of which failed with %q.\n", n, len(page.Jobs), page.Jobs[0].LastError())
		if cursor = page.Next; cursor == "" {
			break
		}
	}

	// Nothing of the queue runs while it is being repaired.
	if err := q.Drain(ctx, mails, "the relay is being mended"); err != nil {
		return err
	}
	wrong, err := q.Insert(ctx, simplequeue.NewJob{Queue: mails, Payload: "custommer"})
	if err != nil {
		return err
	}
	if err := q.Change(ctx, wrong.ID, simplequeue.Change{Payload: "customer"}); err != nil {
		return err
	}
	first := simplequeue.Filter{IDs: []uuid.UUID{inserted[0].ID}}
	redriven, err := q.Redrive(ctx, first, simplequeue.RedriveOptions{})
	if err != nil {
		return err
	}
	all, err := q.Redrive(ctx, failed, simplequeue.RedriveOptions{Rate: 10_000, MaxAttempts: 3})
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "Redriven: %d, then %d.\n", len(redriven.IDs), len(all.IDs))
	mend()
	if err := q.Resume(ctx, mails); err != nil {
		return err
	}
	if err := await(ctx, q, simplequeue.StateCompleted, len(jobs)+1); err != nil {
		return err
	}
	fmt.Fprintln(stdout, "All mails are sent.")
	return nil
}

// await waits until so many mails are in a state.
func await(ctx context.Context, q *simplequeue.SimpleQueue, state simplequeue.State, n int) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		counts, err := q.Count(ctx, simplequeue.Filter{Queue: mails, States: []simplequeue.State{state}})
		if err != nil || counts[state] == int64(n) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}
