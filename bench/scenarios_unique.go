package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

var uniqueScenarios = []scenario{
	{name: "unique", needs: []feature{keys}, baseline: "steady", run: unique},
}

// duplicatePercent is how many inserts have a key that is held.
const duplicatePercent = 30

// unique: steady, each job with a unique key. Some keys are those of jobs that
// are due in an hour, and so held all the time: it is certain which inserts have
// to be refused.
func unique(ctx context.Context, t *trial) error {
	if t.uniqueKeys < t.batch {
		// Not every contestant takes a key twice in one call.
		return fmt.Errorf("-unique-keys must be at least -batch, %d, not %d", t.batch, t.uniqueKeys)
	}
	if err := t.holdKeys(ctx); err != nil {
		return err
	}
	if err := t.vacuum(ctx); err != nil {
		return err
	}
	t.ledger.duplicate = func(n int) bool { return scatter(n, 0, 100) < duplicatePercent }
	t.shape = func(n int, job *Job) {
		if t.ledger.duplicate(n) {
			job.setKey(uniqueKey(n % t.uniqueKeys))
		} else {
			job.setKey(uniqueKey(t.uniqueKeys + n))
		}
	}
	if err := steady(ctx, t); err != nil {
		return err
	}
	all := float64(t.ledger.next)
	t.extra["refused_percent"] = 100 * (all - float64(t.ledger.committed.Load())) / all
	return nil
}

// holdKeys inserts the jobs that hold keys. They are not in the ledger, and none
// may run.
func (t *trial) holdKeys(ctx context.Context) error {
	for from := 0; from < t.uniqueKeys; from += t.call {
		jobs := make([]Job, min(t.call, t.uniqueKeys-from))
		for i := range jobs {
			jobs[i] = t.job(-1 - from - i)
			jobs[i].Delay = time.Hour + time.Duration(from+i)*time.Millisecond
			jobs[i].setKey(uniqueKey(from + i))
		}
		inserted, err := t.contestant.(keyInserter).InsertKeyed(ctx, jobs)
		if err != nil {
			return fmt.Errorf("insert what holds keys: %w", err)
		}
		if slices.Contains(inserted, false) {
			return errors.New("insert what holds keys: a key was held already")
		}
	}
	return nil
}

// uniqueKey is the i-th of keys that come in no order.
func uniqueKey(i int) string { return fmt.Sprintf("%016x", uint64(i)*0x9e3779b97f4a7c15) }
