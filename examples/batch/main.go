// Batch writes measurements to a table as they come in through a queue, many in
// one statement: a job for each, and a handler that gets up to a hundred of them.
// One statement and one transaction do for all, and complete their jobs with
// them; a measurement that makes no sense fails alone.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgserver"
	"github.com/simplequeue/simplequeue/migrate"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "batch:", err)
		os.Exit(1)
	}
}

// Measurement is what a job carries.
type Measurement struct {
	Sensor string
	Kelvin float64
}

const (
	size = 100
	wait = 50 * time.Millisecond
)

// measurements writes those of a batch.
func measurements(pool *pgxpool.Pool, wrote func(n int)) simplequeue.Handler {
	return simplequeue.Batch("measurements", size, wait, func(ctx context.Context, jobs []*simplequeue.Job) error {
		errs := make(simplequeue.BatchErrors, len(jobs))
		var sensors []string
		var kelvins []float64
		var good []*simplequeue.Job
		for i, job := range jobs {
			var m Measurement
			if errs[i] = job.Decode(&m); errs[i] == nil && m.Kelvin < 0 {
				errs[i] = simplequeue.Unprocessable(fmt.Errorf("%g K is colder than can be", m.Kelvin))
			}
			if errs[i] == nil {
				sensors, kelvins, good = append(sensors, m.Sensor), append(kelvins, m.Kelvin), append(good, job)
			}
		}
		err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "INSERT INTO measurement (sensor, kelvin) SELECT m.sensor, m.kelvin FROM unnest($1::text[], $2::float8[]) AS m(sensor, kelvin)", sensors, kelvins)
			for _, job := range good {
				if err == nil {
					err = job.CompleteTx(ctx, tx)
				}
			}
			return err
		})
		if err != nil {
			return err // of all of them: nothing was written
		}
		wrote(len(good))
		return errs
	})
}

func run(ctx context.Context, stdout io.Writer) (err error) {
	// The server that DATABASE_URL names, or one of our own for this run.
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
	if _, err := pool.Exec(ctx, "CREATE TABLE measurement (sensor text, kelvin float8)"); err != nil {
		return err
	}

	const many = 1000
	written := make(chan int, many)
	q, err := simplequeue.New(pool, simplequeue.Options{
		Handlers: []simplequeue.Handler{measurements(pool, func(n int) { written <- n })},
		Queues:   map[string]simplequeue.QueueOptions{"measurements": {Permits: 2 * size}}, // one batch gathers while another is written
	})
	if err != nil {
		return err
	}
	jobs := make([]simplequeue.NewJob, many)
	for i := range jobs {
		m := Measurement{Sensor: fmt.Sprint("sensor ", i%7), Kelvin: float64(i)}
		if i == 500 {
			m.Kelvin = -1
		}
		jobs[i] = simplequeue.NewJob{Queue: "measurements", Payload: m}
	}
	if _, err := q.InsertMany(ctx, jobs); err != nil {
		return err
	}
	working, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- q.Run(working) }()
	rows := 0
	for rows < many-1 {
		select {
		case n := <-written:
			rows += n
		case err := <-done:
			stop()
			return err
		}
	}
	stop() // Run writes what the jobs have become
	if err := <-done; err != nil {
		return err
	}
	dead, err := q.List(ctx, simplequeue.Filter{States: []simplequeue.State{simplequeue.StateUnprocessable}})
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%d measurements written in batches of up to %d\n", rows, size)
	for _, job := range dead {
		fmt.Fprintln(stdout, "refused:", job.LastError())
	}
	return nil
}
