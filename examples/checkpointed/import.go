package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
)

const (
	imports  = "imports"
	chunk    = 100
	lastLine = "all imported"
)

// progress is the payload: how far the import has come.
type progress struct {
	Next int `json:"next"`
}

// summary is the result.
type summary struct {
	Readings int `json:"readings"`
	Largest  int `json:"largest"`
}

const createReadingsSQL = `
CREATE SCHEMA IF NOT EXISTS simplequeue_import;
CREATE TABLE IF NOT EXISTS simplequeue_import.readings (
    n     integer NOT NULL PRIMARY KEY,
    value integer NOT NULL
)`

const insertReadingsSQL = `
INSERT INTO simplequeue_import.readings (n, value)
SELECT n, n * 7919 % 1000
FROM generate_series($1::integer, $2::integer) AS n`

const summarySQL = `SELECT count(*), max(value) FROM simplequeue_import.readings`

// importer runs the job. Its last two fields bring about what it is to survive.
type importer struct {
	pool   *pgxpool.Pool
	stdout io.Writer
	failAt int            // fails once, before this reading
	at     map[int]func() // what happens before a reading
}

func (i *importer) run(ctx context.Context, job *simplequeue.Job, p progress) error {
	log := simplequeue.Logger(ctx)
	// Asked once in the life of the job, however often that is interrupted.
	total, err := simplequeue.Step(ctx, job, "count", func(context.Context) (int, error) {
		fmt.Fprintln(i.stdout, "asking how many readings there are")
		return 1000, nil
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(i.stdout, "attempt %d begins at reading %d\n", job.Attempt, p.Next)
	log.Info("begins", "next", p.Next)
	for p.Next < total {
		if event := i.at[p.Next]; event != nil {
			event()
			<-ctx.Done()
			return context.Cause(ctx)
		}
		if p.Next == i.failAt && p.Next > 0 && job.Attempt == 1 {
			return simplequeue.RetryAfter(0, errors.New("the source is away"))
		}
		p.Next += chunk
		err := pgx.BeginFunc(ctx, i.pool, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, insertReadingsSQL, p.Next-chunk, p.Next-1); err != nil {
				return err
			}
			if p.Next < total {
				return job.CheckpointTx(ctx, tx, p, nil)
			}
			return complete(ctx, tx, job)
		})
		if err != nil {
			return err
		}
	}
	log.Info(lastLine)
	return nil
}

// complete completes the job with its result, in the transaction of the last
// chunk.
func complete(ctx context.Context, tx pgx.Tx, job *simplequeue.Job) error {
	var s summary
	if err := tx.QueryRow(ctx, summarySQL).Scan(&s.Readings, &s.Largest); err != nil {
		return err
	}
	if err := job.SetResult(s); err != nil {
		return err
	}
	return job.CompleteTx(ctx, tx)
}
