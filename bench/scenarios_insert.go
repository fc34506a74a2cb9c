package main

import (
	"context"
	"slices"
	"sync"
	"time"
)

var insertScenarios = []scenario{
	{name: "insert", run: insert},
	{name: "insert1-8", setup: insertConns(8), run: insertSingly(8)},
	{name: "insert1-64", setup: insertConns(64), run: insertSingly(64)},
}

// insert: one caller inserts all jobs in bulk.
func insert(ctx context.Context, t *trial) error {
	if err := t.begin(ctx, t.ledger.committed.Load, 0); err != nil {
		return err
	}
	if err := t.insertAll(ctx, t.jobs); err != nil {
		return err
	}
	if err := t.end(ctx); err != nil {
		return err
	}
	return t.withWorkers(ctx, t.settle)
}

// insertConns gives every caller a connection, should the contestant want one.
func insertConns(callers int) func(*config, *Setup) {
	return func(_ *config, s *Setup) { s.Conns = callers + 4 }
}

// insertSingly: callers each insert one job after the other, each job in a
// commit of its own as far as they can tell.
func insertSingly(callers int) func(context.Context, *trial) error {
	return func(ctx context.Context, t *trial) error {
		d := seconds(t.seconds)
		var mu sync.Mutex
		var took []time.Duration
		tasks := make([]func(context.Context) error, callers)
		for i := range tasks {
			tasks[i] = func(ctx context.Context) error {
				var own []time.Duration
				for ctx.Err() == nil {
					begin := time.Now()
					if _, err := t.insertOne(ctx, ""); err != nil {
						return err
					}
					own = append(own, time.Since(begin))
				}
				mu.Lock()
				defer mu.Unlock()
				took = append(took, own...)
				return nil
			}
		}
		err := alongside(ctx, func(ctx context.Context) error {
			if err := wait(ctx, min(2*time.Second, d/10)); err != nil {
				return err
			}
			if err := t.begin(ctx, t.ledger.committed.Load, d); err != nil {
				return err
			}
			if err := wait(ctx, d); err != nil {
				return err
			}
			return t.end(ctx)
		}, tasks...)
		if err != nil {
			return err
		}
		slices.Sort(took)
		if len(took) > 0 {
			t.extra["insert_call_p50_ms"], t.extra["insert_call_p99_ms"] = *percentile(took, 50), *percentile(took, 99)
		}
		return t.withWorkers(ctx, t.settle)
	}
}
