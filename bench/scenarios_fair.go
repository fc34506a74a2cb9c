package main

import (
	"context"
	"fmt"
	"time"
)

var fairScenarios = []scenario{
	{name: "fair", needs: []feature{fairness}, baseline: "drain", run: fair},
}

// smallKeys have smallJobs jobs each.
const smallKeys, smallJobs = 100, 10

// fair: a backlog of one fairness key is worked off. When that has begun, a few
// jobs come of each of many other keys: how long until they have run, and how
// long when they are alone. Their latency counts, and the rate of all.
func fair(ctx context.Context, t *trial) error {
	t.shape = func(_ int, job *Job) { job.FairKey = "large" }
	if err := t.beginWith(ctx, t.jobs, 0); err != nil {
		return err
	}
	return t.withWorkers(ctx, func(ctx context.Context) error {
		if err := t.until(ctx, func() (bool, error) { return t.ledger.done.Load() > 0, nil }); err != nil {
			return err
		}
		small, beside, err := t.runSmall(ctx)
		if err != nil {
			return err
		}
		t.extra["backlog_left_percent"] = 100 * float64(t.ledger.ahead()) / float64(t.jobs)
		if err := t.settle(ctx); err != nil {
			return err
		}
		if err := t.end(ctx); err != nil {
			return err
		}
		_, alone, err := t.runSmall(ctx)
		if err != nil {
			return err
		}
		t.latency, t.probes = true, small
		t.extra["small_done_ms"], t.extra["small_done_alone_ms"] = milliseconds(beside), milliseconds(alone)
		t.extra["small_done_times_alone"] = beside.Seconds() / alone.Seconds()
		return t.settle(ctx)
	})
}

// runSmall inserts jobs of small keys in one call and waits until they have run.
// It returns their numbers, and the time from their commit to the start of the
// last.
func (t *trial) runSmall(ctx context.Context) (small []int, took time.Duration, err error) {
	t.shape = func(n int, job *Job) {
		job.FairKey = fmt.Sprintf("small-%02d", len(small)%smallKeys)
		small = append(small, n)
	}
	if err := t.insert(ctx, smallKeys*smallJobs); err != nil {
		return nil, 0, err
	}
	ran := 0 // of them, one after the other
	err = t.until(ctx, func() (bool, error) {
		for ran < len(small) && t.ledger.entry(small[ran]).attempt.Load() < 0 {
			ran++
		}
		return ran == len(small), nil
	})
	if err != nil {
		return nil, 0, err
	}
	all := t.ledger.latencies(small, time.Time{}, time.Time{})
	return small, all[len(all)-1], nil
}
