package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/simplequeue/simplequeue"
)

// Jobs inserted in a transaction of the caller's, of which a third is rolled
// back; some have unique keys.
var transactional = register(workload{name: "transactional", every: 120 * time.Millisecond, handle: handleWork})

func init() { transactional.produce = produceTransactional }

func produceTransactional(ctx context.Context, p *producer, r *rand.Rand) {
	jobs := make([]simplequeue.NewJob, 1+r.IntN(3))
	for i := range jobs {
		jobs[i] = simplequeue.NewJob{}
		if r.IntN(4) == 0 && i == 0 {
			jobs[i].UniqueKey = []string{"a", "b", "c"}[r.IntN(3)]
		}
	}
	back, dwell := r.IntN(3) == 0, time.Duration(r.IntN(30))*time.Millisecond
	all := p.announce(ctx, transactional, jobs)
	var results []simplequeue.Inserted
	err := p.transact(ctx, back, func(ctx context.Context, tx pgx.Tx) (err error) {
		if results, err = p.queue.InsertManyTx(ctx, tx, jobs); err == nil {
			pause(ctx, dwell)
		}
		return err
	})
	switch {
	case errors.Is(err, errRolledBack):
		p.became(ctx, all, rolledBack)
	case errors.Is(err, errCommitUnknown):
		p.became(ctx, all, inDoubt)
	default:
		p.conclude(ctx, all, results, err)
	}
}
