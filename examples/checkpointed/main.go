// Checkpointed imports a thousand readings in one job that is interrupted twice,
// by an error and by a stop of the program, and goes on each time where it was.
// Each chunk of rows is written in one transaction with the checkpoint that says
// so, and the last one with the completion of the job: every reading is imported
// once, whatever happens in between.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgserver"
	"github.com/simplequeue/simplequeue/migrate"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "checkpointed:", err)
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
	if _, err := pool.Exec(ctx, createReadingsSQL); err != nil {
		return err
	}

	// The first program is stopped while the job runs, the second one ends it.
	first, stopFirst := context.WithCancel(ctx)
	defer stopFirst()
	q, err := newQueue(&importer{pool: pool, stdout: stdout, failAt: 300, at: map[int]func(){600: stopFirst}})
	if err != nil {
		return err
	}
	inserted, err := q.Insert(ctx, simplequeue.NewJob{Queue: imports, Payload: progress{}})
	if err != nil {
		return err
	}
	if err := q.Run(first); err != nil {
		return err
	}
	fmt.Fprintln(stdout, "the program is stopped and started again")

	second, stopSecond := context.WithCancel(ctx)
	defer stopSecond()
	if q, err = newQueue(&importer{pool: pool, stdout: stdout}); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() {
		ended <- printEnd(second, q, inserted.ID, stdout)
		stopSecond()
	}()
	return errors.Join(q.Run(second), <-ended)
}

func newQueue(i *importer) (*simplequeue.SimpleQueue, error) {
	return simplequeue.New(i.pool, simplequeue.Options{
		Handlers: []simplequeue.Handler{simplequeue.Typed(imports, i.run)},
		LogSink:  simplequeue.LogTable(),
		Logger:   slog.New(slog.DiscardHandler),
		Stop:     simplequeue.StopTimeouts{Drain: -1}, // the job need not finish
	})
}

// printEnd waits for the end of the job and prints its result and its log.
func printEnd(ctx context.Context, q *simplequeue.SimpleQueue, id uuid.UUID, stdout io.Writer) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		job, err := q.Get(ctx, id)
		if err != nil {
			return err
		}
		if job.State.Terminal() {
			s, err := simplequeue.ResultOf[summary](job)
			if err != nil {
				return err
			}
			fmt.Fprintf(stdout, "%s: %d readings, the largest is %d\n", job.State, s.Readings, s.Largest)
			return printLog(ctx, q, id, stdout)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// printLog prints what the job's handlers have logged, once the last line of it
// has been written.
func printLog(ctx context.Context, q *simplequeue.SimpleQueue, id uuid.UUID, stdout io.Writer) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		var text string
		whole := false
		for line, err := range q.JobLog(ctx, id) {
			if err != nil {
				return err
			}
			text += fmt.Sprintf("  attempt %d: %s %s\n", line.Attempt, line.Message, line.Attrs)
			whole = line.Message == lastLine
		}
		if whole {
			_, err := fmt.Fprint(stdout, "the job's log:\n", text)
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
