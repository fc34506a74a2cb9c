package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
)

var (
	riverWorkers  = flag.Int("river-workers", 2000, "river: MaxWorkers")
	riverCooldown = flag.Duration("river-cooldown", 2*time.Millisecond, "river: FetchCooldown")
	riverPoll     = flag.Duration("river-poll", 20*time.Millisecond, "river: FetchPollInterval")
)

func init() { contestants["river"] = func() Contestant { return &riverQueue{} } }

type riverQueue struct {
	pool     *pgxpool.Pool
	inserter *river.Client[pgx.Tx]
}

// Kind makes a payload River's job arguments.
func (Payload) Kind() string { return "bench" }

func (r *riverQueue) Version() string { return moduleVersion("github.com/riverqueue/river") }

func (r *riverQueue) Settings() string {
	return fmt.Sprintf("riverpgxv5 InsertManyFast MaxWorkers=%d FetchCooldown=%v FetchPollInterval=%v JobTimeout=-1",
		*riverWorkers, *riverCooldown, *riverPoll)
}

func (r *riverQueue) Prepare(ctx context.Context, url string) (err error) {
	if r.pool, err = pgxpool.New(ctx, url); err != nil {
		return err
	}
	driver := riverpgxv5.New(r.pool)
	migrator, err := rivermigrate.New(driver, &rivermigrate.Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	if _, err := migrator.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
		return err
	}
	r.inserter, err = river.NewClient(driver, &river.Config{Logger: slog.New(slog.DiscardHandler)})
	return err
}

func (r *riverQueue) Insert(ctx context.Context, jobs []Payload) error {
	list := make([]river.InsertManyParams, len(jobs))
	for i := range jobs {
		list[i] = river.InsertManyParams{Args: jobs[i]}
	}
	_, err := r.inserter.InsertManyFast(ctx, list)
	return err
}

func (r *riverQueue) Run(ctx context.Context, handled func(Payload)) error {
	workers := river.NewWorkers()
	river.AddWorker(workers, river.WorkFunc(func(_ context.Context, job *river.Job[Payload]) error {
		handled(job.Args)
		return nil
	}))
	client, err := river.NewClient(riverpgxv5.New(r.pool), &river.Config{
		Queues:        map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: *riverWorkers}},
		Workers:       workers,
		FetchCooldown: *riverCooldown, FetchPollInterval: *riverPoll,
		JobTimeout: -1,
		Logger:     slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	if err := client.Start(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	<-ctx.Done()
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	return client.Stop(stopping)
}

func (r *riverQueue) Settled(ctx context.Context) (settled bool, err error) {
	err = r.pool.QueryRow(ctx, `
SELECT NOT EXISTS (
    SELECT FROM river_job
    WHERE state IN ('available', 'running', 'retryable', 'scheduled', 'pending'))`).Scan(&settled)
	return settled, err
}

func (r *riverQueue) Close() {
	if r.pool != nil {
		r.pool.Close()
	}
}
