package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

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
	results, err := p.within(ctx, jobs, back, dwell)
	switch {
	case errors.Is(err, errRolledBack):
		for i := range all {
			all[i].outcome = rolledBack
		}
		must(p.witness.answers(ctx, all))
	case errors.Is(err, errCommitUnknown):
		must(p.witness.answers(ctx, all)) // in doubt
	default:
		p.conclude(ctx, all, results, err)
	}
}

var (
	errRolledBack    = errors.New("rolled back")
	errCommitUnknown = errors.New("outcome of the commit unknown")
)

func (p *producer) within(ctx context.Context, jobs []simplequeue.NewJob, back bool, dwell time.Duration) ([]simplequeue.Inserted, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tx, err := p.pool.Begin(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	results, err := p.queue.InsertManyTx(ctx, tx, jobs)
	if err != nil {
		return nil, err
	}
	pause(ctx, dwell)
	if back {
		if err := tx.Rollback(ctx); err != nil {
			return nil, err // the connection is gone, and the transaction with it
		}
		return nil, errRolledBack
	}
	err = tx.Commit(ctx)
	var answer *pgconn.PgError
	switch {
	case err == nil:
		return results, nil
	case errors.Is(err, pgx.ErrTxCommitRollback) || errors.As(err, &answer) && answer.Severity == "ERROR":
		return nil, err
	}
	return nil, errCommitUnknown
}
