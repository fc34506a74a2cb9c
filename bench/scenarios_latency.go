package main

import (
	"context"
	"time"
)

var latencyScenarios = []scenario{
	{name: "latency", fixed: true, run: latency},
	{name: "latency-load", paced: true, run: latencyUnderLoad},
	{name: "late", needs: []feature{transactions}, paced: true, run: late},
	{name: "late-pinned", needs: []feature{transactions}, paced: true, run: latePinned},
}

// latency: one job every 20 ms, and nothing else.
func latency(ctx context.Context, t *trial) error {
	t.latency = true
	return t.withWorkers(ctx, func(ctx context.Context) error {
		err := t.load(ctx, seconds(t.seconds), func(ctx context.Context) error {
			return every(ctx, 20*time.Millisecond, func(int) error {
				_, err := t.insertOne(ctx, "")
				return err
			})
		})
		if err != nil {
			return err
		}
		return t.settle(ctx)
	})
}

// latencyUnderLoad: all jobs of a load that every contestant can carry.
func latencyUnderLoad(ctx context.Context, t *trial) error {
	t.latency = true
	return t.withWorkers(ctx, func(ctx context.Context) error {
		if err := t.load(ctx, seconds(t.seconds), t.pace); err != nil {
			return err
		}
		return t.settle(ctx)
	})
}

// late: under that load, jobs whose transactions commit long after they have
// inserted. Only their latency counts.
func late(ctx context.Context, t *trial) error { return t.late(ctx) }

// latePinned: late, while a snapshot keeps the server from cleaning up.
func latePinned(ctx context.Context, t *trial) error { return t.late(ctx, t.pin) }

func (t *trial) late(ctx context.Context, tasks ...func(context.Context) error) error {
	t.latency, t.probes = true, []int{}
	tasks = append(tasks, t.pace, t.insertLate)
	return t.withWorkers(ctx, func(ctx context.Context) error {
		if err := t.load(ctx, seconds(t.seconds), tasks...); err != nil {
			return err
		}
		if err := t.settle(ctx); err != nil {
			return err
		}
		if all := t.ledger.latencies(nil, t.measured.begun.at, t.measured.ended.at); len(all) > 0 {
			t.extra["all_jobs_p50_ms"], t.extra["all_jobs_p99_ms"] = *percentile(all, 50), *percentile(all, 99)
		}
		return nil
	})
}

// lateBy is how long a late job's transaction stays open.
const lateBy = 2 * time.Second

// insertLate inserts a job every two seconds and commits it two seconds later.
func (t *trial) insertLate(ctx context.Context) error {
	for ctx.Err() == nil {
		n, err := t.ledger.take(1)
		if err != nil {
			return err
		}
		tx, err := t.db.Begin(context.WithoutCancel(ctx))
		if err != nil {
			return err
		}
		if err := t.contestant.(txInserter).InsertTx(context.WithoutCancel(ctx), tx, t.job(n)); err != nil {
			return err
		}
		_ = wait(ctx, lateBy) // the last one commits early
		last := ctx.Err() != nil
		if err := tx.Commit(context.WithoutCancel(ctx)); err != nil {
			return err
		}
		t.ledger.commit(n, 1)
		if !last || len(t.probes) == 0 {
			t.probes = append(t.probes, n)
		}
	}
	return nil
}
