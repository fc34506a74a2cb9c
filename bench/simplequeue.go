package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/migrate"
)

var simplequeuePermits = flag.Int("simplequeue-permits", 1000, "simplequeue: GlobalPermits and QueuePermits")

func init() { contestants["simplequeue"] = func() Contestant { return &simpleQueue{} } }

type simpleQueue struct {
	pool     *pgxpool.Pool
	inserter *simplequeue.SimpleQueue
}

const benchQueue = "bench"

func (s *simpleQueue) Version() string {
	return moduleVersion("github.com/simplequeue/simplequeue")
}

func (s *simpleQueue) Settings() string {
	return fmt.Sprintf("GlobalPermits=%d QueuePermits=%[1]d", *simplequeuePermits)
}

func (s *simpleQueue) options() simplequeue.Options {
	return simplequeue.Options{
		GlobalPermits: *simplequeuePermits, QueuePermits: *simplequeuePermits,
		Logger: slog.New(slog.DiscardHandler),
	}
}

func (s *simpleQueue) Prepare(ctx context.Context, url string) (err error) {
	if s.pool, err = pgxpool.New(ctx, url); err != nil {
		return err
	}
	if err := migrate.UpPool(ctx, s.pool, "simplequeue"); err != nil {
		return err
	}
	s.inserter, err = simplequeue.New(s.pool, s.options())
	return err
}

func (s *simpleQueue) Insert(ctx context.Context, jobs []Payload) error {
	list := make([]simplequeue.NewJob, len(jobs))
	for i := range jobs {
		list[i] = simplequeue.NewJob{Queue: benchQueue, Payload: jobs[i]}
	}
	_, err := s.inserter.InsertMany(ctx, list)
	return err
}

func (s *simpleQueue) Run(ctx context.Context, handled func(Payload)) error {
	o := s.options()
	o.Handlers = []simplequeue.Handler{
		simplequeue.Typed(benchQueue, func(_ context.Context, _ *simplequeue.Job, p Payload) error {
			handled(p)
			return nil
		}),
	}
	worker, err := simplequeue.New(s.pool, o)
	if err != nil {
		return err
	}
	return worker.Run(ctx)
}

func (s *simpleQueue) Settled(ctx context.Context) (settled bool, err error) {
	err = s.pool.QueryRow(ctx, `
SELECT NOT EXISTS (SELECT FROM simplequeue.job_queue)
   AND NOT EXISTS (SELECT FROM simplequeue.job_waiting)
   AND NOT EXISTS (SELECT FROM simplequeue.job_running)
   AND NOT EXISTS (SELECT FROM simplequeue.job_finished)`).Scan(&settled)
	return settled, err
}

func (s *simpleQueue) Close() {
	if s.pool != nil {
		s.pool.Close()
	}
}
