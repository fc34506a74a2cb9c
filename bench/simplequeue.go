package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/backoff"
	"github.com/simplequeue/simplequeue/janitor"
	"github.com/simplequeue/simplequeue/migrate"
)

var simplequeuePermits = flag.Int("simplequeue-permits", 2000, "simplequeue: GlobalPermits and QueuePermits of all processes together")

func init() {
	contestants["simplequeue"] = func(s Setup) Contestant { return &simpleQueue{setup: s} }
}

type simpleQueue struct {
	setup Setup
	pool  *pgxpool.Pool
	queue *simplequeue.SimpleQueue // inserts, and works once it runs
	work  atomic.Pointer[Work]     // set by Run
}

func (s *simpleQueue) permits() int { return s.setup.share(*simplequeuePermits) }

// Claims take as many jobs as permits are free, a thousand at most: with two
// thousand permits one claim can be on its way while the jobs of another run. It
// is what River's workers are set to. All else is as it comes.
func (s *simpleQueue) options() simplequeue.Options {
	return simplequeue.Options{
		GlobalPermits: s.permits(), QueuePermits: s.permits(),
		MaxAttempts: maxTries, Backoff: backoff.Constant(time.Second),
		Logger: slog.New(slog.DiscardHandler),
	}
}

func (s *simpleQueue) About() About {
	return About{
		Version:   moduleVersion("github.com/simplequeue/simplequeue"),
		Settings:  fmt.Sprintf("GlobalPermits=%d QueuePermits=%[1]d", s.permits()),
		Schema:    "simplequeue",
		Archive:   "^job_queue_(archive|dlq)",
		Heartbeat: `INSERT INTO \S*job_lease`, HeartbeatEvery: 5 * time.Second,
	}
}

func (s *simpleQueue) Lacks(feature) string { return "" }

func (s *simpleQueue) Open(ctx context.Context) (err error) {
	if s.pool, err = openPool(ctx, s.setup, nil); err != nil {
		return err
	}
	handler := simplequeue.Typed(s.setup.Queues[0], func(ctx context.Context, job *simplequeue.Job, p Payload) error {
		return (*s.work.Load())(ctx, p, job.Attempt)
	})
	o := s.options()
	o.Handlers = []simplequeue.Handler{simplequeue.ServeQueues(handler, s.setup.Queues...)}
	s.queue, err = simplequeue.New(s.pool, o)
	return err
}

func (s *simpleQueue) Migrate(ctx context.Context) error { return migrateSimplequeue(ctx, s.pool) }

// migrateSimplequeue makes the tables, and the partitions that finished jobs
// need.
func migrateSimplequeue(ctx context.Context, pool *pgxpool.Pool) error {
	if err := migrate.UpPool(ctx, pool, "simplequeue"); err != nil {
		return err
	}
	j, err := janitor.New(pool, janitor.Options{Schema: "simplequeue"})
	if err != nil {
		return err
	}
	return j.MakePartitions(ctx, []int64{7 * 24 * 3600}, nil)
}

func newSimplequeueJob(j Job) simplequeue.NewJob {
	return simplequeue.NewJob{
		Queue: j.Queue, Payload: j.Payload, Priority: j.Priority, Delay: j.Delay,
		UniqueKey: j.Key, OrderKey: j.OrderKey, FairnessKey: j.FairKey,
	}
}

// Insert uses COPY from 200 jobs without keys on.
func (s *simpleQueue) Insert(ctx context.Context, jobs []Job) error {
	_, err := s.InsertKeyed(ctx, jobs)
	return err
}

func (s *simpleQueue) InsertKeyed(ctx context.Context, jobs []Job) ([]bool, error) {
	list := make([]simplequeue.NewJob, len(jobs))
	for i := range jobs {
		list[i] = newSimplequeueJob(jobs[i])
	}
	results, err := s.queue.InsertMany(ctx, list)
	inserted := make([]bool, len(results))
	for i := range results {
		inserted[i] = !results[i].Duplicate
	}
	return inserted, err
}

func (s *simpleQueue) InsertOne(ctx context.Context, job Job) (bool, error) {
	in, err := s.queue.Insert(ctx, newSimplequeueJob(job))
	return !in.Duplicate, err
}

func (s *simpleQueue) InsertTx(ctx context.Context, tx pgx.Tx, job Job) error {
	_, err := s.queue.InsertTx(ctx, tx, newSimplequeueJob(job))
	return err
}

func (s *simpleQueue) FillHistory(ctx context.Context, n int) error {
	_, err := s.pool.Exec(ctx, `
INSERT INTO simplequeue.job_queue_archive
    (id, created_at, started_at, finished_at, worker_id, expires_on, attempt, max_attempts, reprocess_count, crash_count,
     priority, state, queue, kind, payload)
SELECT gen_random_uuid(), now(), now(), now(), '00000000-0000-0000-0000-000000000000', (now() AT TIME ZONE 'UTC')::date + 7, 1, 3, 0, 0,
       0, 'completed', $2, '', jsonb_build_object('n', -n, 'text', $3::text)
FROM generate_series(1, $1::bigint) AS n`, n, benchQueue, filler[:textBytes(n, smallPayload)])
	return err
}

// Run uses a Work per attempt; the handler decodes the payload.
func (s *simpleQueue) Run(ctx context.Context, work Work) error {
	s.work.Store(&work)
	return s.queue.Run(ctx)
}

func (s *simpleQueue) Counters() map[string]float64 {
	stats := s.queue.Stats()
	return map[string]float64{"claims": float64(stats.Claims), "claimed": float64(stats.Claimed)}
}

func (s *simpleQueue) Settled(ctx context.Context) (settled bool, err error) {
	err = s.pool.QueryRow(ctx, `
SELECT NOT EXISTS (SELECT FROM simplequeue.job_queue)
   AND NOT EXISTS (SELECT FROM simplequeue.job_waiting WHERE run_at < now() + interval '30 minutes')
   AND NOT EXISTS (SELECT FROM simplequeue.job_running)
   AND NOT EXISTS (SELECT FROM simplequeue.job_finished)`).Scan(&settled)
	return settled, err
}

func (s *simpleQueue) Close() {
	if s.pool != nil {
		s.pool.Close()
	}
}
