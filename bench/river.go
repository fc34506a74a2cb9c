package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
	"github.com/riverqueue/river/rivertype"
)

var (
	riverWorkers  = flag.Int("river-workers", 2000, "river: MaxWorkers of all processes together")
	riverCooldown = flag.Duration("river-cooldown", 2*time.Millisecond, "river: FetchCooldown")
	riverPoll     = flag.Duration("river-poll", 20*time.Millisecond, "river: FetchPollInterval; with many queues its default, 1 s")
)

func init() { contestants["river"] = func(s Setup) Contestant { return &riverQueue{setup: s} } }

// riverQueue is River on its pgx driver, the faster of its PostgreSQL drivers.
type riverQueue struct {
	setup    Setup
	pool     *pgxpool.Pool
	inserter *river.Client[pgx.Tx]
}

// Kind makes a payload River's job arguments.
func (Payload) Kind() string { return "bench" }

// MaxWorkers is how many jobs a fetch takes at most, and River says of
// FetchCooldown that throughput is limited by it: many workers and the shortest
// waits that still leave fetches large give the most jobs a second. A job's
// timeout costs a timer, so there is none. The completer that writes outcomes in
// batches is River's default and has no settings.
func (r *riverQueue) config() *river.Config {
	queues := map[string]river.QueueConfig{}
	for _, name := range r.setup.Queues {
		queues[name] = river.QueueConfig{MaxWorkers: r.workers()}
	}
	return &river.Config{
		Queues:        queues,
		FetchCooldown: *riverCooldown, FetchPollInterval: r.poll(),
		JobTimeout:  -1,
		MaxAttempts: maxTries, RetryPolicy: riverRetry{},
		Logger: slog.New(slog.DiscardHandler),
	}
}

func (r *riverQueue) workers() int { return r.setup.share(*riverWorkers) }

// poll is River's default where every queue polls by itself.
func (r *riverQueue) poll() time.Duration {
	if len(r.setup.Queues) > 1 {
		return river.FetchPollIntervalDefault
	}
	return *riverPoll
}

type riverRetry struct{}

func (riverRetry) NextRetry(*rivertype.JobRow) time.Time { return time.Now().Add(time.Second) }

func (r *riverQueue) About() About {
	return About{
		Version: moduleVersion("github.com/riverqueue/river"),
		Settings: fmt.Sprintf("riverpgxv5 InsertManyFast MaxWorkers=%d FetchCooldown=%v FetchPollInterval=%v JobTimeout=-1",
			r.workers(), *riverCooldown, r.poll()),
		Schema:      "public",
		AtLeastOnce: true,
	}
}

func (r *riverQueue) Lacks(f feature) string {
	switch f {
	case priorities:
		return "it has four priorities, not ten"
	case order:
		return "its sequences are part of River Pro"
	case fairness:
		return "it has no shares of keys within a queue"
	}
	return ""
}

// Open makes the client that inserts. It notifies workers of a queue once a
// FetchCooldown at most, so that it has the workers' short one.
func (r *riverQueue) Open(ctx context.Context) (err error) {
	if r.pool, err = openPool(ctx, r.setup, nil); err != nil {
		return err
	}
	r.inserter, err = river.NewClient(riverpgxv5.New(r.pool), &river.Config{
		FetchCooldown: *riverCooldown, MaxAttempts: maxTries, Logger: slog.New(slog.DiscardHandler),
	})
	return err
}

func (r *riverQueue) Migrate(ctx context.Context) error {
	migrator, err := rivermigrate.New(riverpgxv5.New(r.pool), &rivermigrate.Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	_, err = migrator.Migrate(ctx, rivermigrate.DirectionUp, nil)
	return err
}

func riverOptions(j Job) *river.InsertOpts {
	o := &river.InsertOpts{Queue: j.Queue}
	if j.Delay > 0 {
		o.ScheduledAt = time.Now().Add(j.Delay)
	}
	if j.Key != "" {
		// The states of a live job. By default a completed job holds its key too.
		o.UniqueOpts = river.UniqueOpts{ByArgs: true, ByState: []rivertype.JobState{
			rivertype.JobStateAvailable, rivertype.JobStatePending, rivertype.JobStateRetryable,
			rivertype.JobStateRunning, rivertype.JobStateScheduled,
		}}
	}
	return o
}

func riverParams(jobs []Job) []river.InsertManyParams {
	list := make([]river.InsertManyParams, len(jobs))
	for i := range jobs {
		list[i] = river.InsertManyParams{Args: jobs[i].Payload, InsertOpts: riverOptions(jobs[i])}
	}
	return list
}

// Insert uses COPY, which River calls InsertManyFast.
func (r *riverQueue) Insert(ctx context.Context, jobs []Job) error {
	_, err := r.inserter.InsertManyFast(ctx, riverParams(jobs))
	return err
}

// InsertKeyed uses InsertMany: with InsertManyFast one duplicate fails all. Two
// calls whose keys cross can deadlock. The server refuses one of them whole, and
// that one is made again, as a program with such keys has to do it.
func (r *riverQueue) InsertKeyed(ctx context.Context, jobs []Job) ([]bool, error) {
	results, err := r.inserter.InsertMany(ctx, riverParams(jobs))
	for isDeadlock(err) {
		results, err = r.inserter.InsertMany(ctx, riverParams(jobs))
	}
	inserted := make([]bool, len(results))
	for i, in := range results {
		inserted[i] = !in.UniqueSkippedAsDuplicate
	}
	return inserted, err
}

func isDeadlock(err error) bool {
	var server *pgconn.PgError
	return errors.As(err, &server) && server.Code == "40P01"
}

func (r *riverQueue) InsertOne(ctx context.Context, job Job) (bool, error) {
	in, err := r.inserter.Insert(ctx, job.Payload, riverOptions(job))
	return err == nil && !in.UniqueSkippedAsDuplicate, err
}

func (r *riverQueue) InsertTx(ctx context.Context, tx pgx.Tx, job Job) error {
	_, err := r.inserter.InsertTx(ctx, tx, job.Payload, riverOptions(job))
	return err
}

func (r *riverQueue) FillHistory(ctx context.Context, n int) error {
	_, err := r.pool.Exec(ctx, `
INSERT INTO river_job (args, attempt, attempted_at, finalized_at, kind, max_attempts, queue, state)
SELECT jsonb_build_object('n', -n, 'text', $3::text), 1, now(), now(), 'bench', 25, $2, 'completed'
FROM generate_series(1, $1::bigint) AS n`, n, benchQueue, filler[:textBytes(n, smallPayload)])
	return err
}

func (r *riverQueue) Run(ctx context.Context, work Work) error {
	config := r.config()
	config.Workers = river.NewWorkers()
	river.AddWorker(config.Workers, river.WorkFunc(func(ctx context.Context, job *river.Job[Payload]) error {
		return work(ctx, job.Args, job.Attempt)
	}))
	client, err := river.NewClient(riverpgxv5.New(r.pool), config)
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
    WHERE state IN ('available', 'running', 'retryable', 'scheduled', 'pending')
      AND scheduled_at < now() + interval '30 minutes')`).Scan(&settled)
	return settled, err
}

func (r *riverQueue) Close() {
	if r.pool != nil {
		r.pool.Close()
	}
}
