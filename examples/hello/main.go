// Hello is the smallest complete program: it finds or starts a PostgreSQL,
// makes the tables, inserts one job, runs it and stops.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgserver"
	"github.com/simplequeue/simplequeue/migrate"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "hello:", err)
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

	working, done := context.WithCancel(ctx)
	defer done()
	greet := simplequeue.Typed("greetings", func(_ context.Context, job *simplequeue.Job, name string) error {
		fmt.Fprintf(stdout, "Hello, %s! This is job %s, attempt %d.\n", name, job.ID, job.Attempt)
		done() // ends Run, which still waits for this job
		return nil
	})
	q, err := simplequeue.New(pool, simplequeue.Options{Handlers: []simplequeue.Handler{greet}})
	if err != nil {
		return err
	}
	inserted, err := q.Insert(ctx, simplequeue.NewJob{Queue: "greetings", Payload: "World"})
	if err != nil {
		return err
	}
	if err := q.Run(working); err != nil {
		return err
	}

	job, err := q.Get(ctx, inserted.ID)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "The job is %s.\n", job.State)
	return nil
}
