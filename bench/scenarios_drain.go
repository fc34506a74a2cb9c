package main

import (
	"context"
	"time"
)

var drainScenarios = []scenario{
	{name: "drain", run: drain},
	{name: "backlog", run: backlog},
	{name: "payload-4k", setup: payloadBytes(4 << 10), run: payload(10)},
	{name: "payload-64k", setup: payloadBytes(64 << 10), run: payload(100)},
}

// drain: a backlog is there; from the start of the workers until the last job is
// settled.
func drain(ctx context.Context, t *trial) error {
	if err := t.beginWith(ctx, t.jobs, 0); err != nil {
		return err
	}
	return t.withWorkers(ctx, func(ctx context.Context) error {
		if err := t.settle(ctx); err != nil {
			return err
		}
		return t.end(ctx)
	})
}

// beginWith begins to measure what becomes of a backlog of n jobs.
func (t *trial) beginWith(ctx context.Context, n int, expected time.Duration) error {
	if err := t.insertAll(ctx, n); err != nil {
		return err
	}
	if err := t.vacuum(ctx); err != nil {
		return err
	}
	return t.begin(ctx, t.ledger.done.Load, expected)
}

// backlog: the first seconds of a backlog so large that it is nowhere near its
// end.
func backlog(ctx context.Context, t *trial) error {
	if err := t.beginWith(ctx, t.backlog, seconds(t.backlogSeconds)); err != nil {
		return err
	}
	return t.withWorkers(ctx, func(ctx context.Context) error {
		if err := wait(ctx, seconds(t.backlogSeconds)); err != nil {
			return err
		}
		if err := t.end(ctx); err != nil {
			return err
		}
		return t.settle(ctx)
	})
}

func payloadBytes(n int) func(*config, *Setup) {
	return func(_ *config, s *Setup) { s.Bytes = n }
}

// payload: one part in fewer of the jobs, with large payloads, are inserted in
// small bulks, then worked off. The rate is that of both together.
func payload(fewer int) func(context.Context, *trial) error {
	return func(ctx context.Context, t *trial) error {
		jobs := max(1, t.jobs/fewer)
		if err := t.begin(ctx, t.ledger.done.Load, 0); err != nil {
			return err
		}
		begin := time.Now()
		for left := jobs; left > 0; {
			n := min(left, max(1, t.call/fewer))
			if err := t.insert(ctx, n); err != nil {
				return err
			}
			left -= n
		}
		inserted := time.Now()
		t.extra["insert_jobs_per_s"] = float64(jobs) / inserted.Sub(begin).Seconds()
		return t.withWorkers(ctx, func(ctx context.Context) error {
			if err := t.settle(ctx); err != nil {
				return err
			}
			t.extra["drain_jobs_per_s"] = float64(jobs) / time.Since(inserted).Seconds()
			return t.end(ctx)
		})
	}
}
