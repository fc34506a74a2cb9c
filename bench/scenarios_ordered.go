package main

import (
	"context"
	"fmt"
)

var orderedScenarios = []scenario{
	{name: "ordered", needs: []feature{order}, baseline: "steady", run: ordered},
}

// ordered: steady, each job with one of many order keys. Some jobs come while
// another of their key is in the queue and have to wait for it.
func ordered(ctx context.Context, t *trial) error {
	t.ledger.orderKey = func(n int) int { return scatter(n, 0, t.orderKeys) }
	t.shape = func(n int, job *Job) { job.OrderKey = fmt.Sprintf("key-%06d", t.ledger.orderKey(n)) }
	if err := steady(ctx, t); err != nil {
		return err
	}
	_, behind := t.ledger.runOrder()
	t.extra["behind_another_percent"] = 100 * float64(behind) / float64(max(1, t.ledger.done.Load()))
	return nil
}
