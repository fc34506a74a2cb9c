package simplequeue

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/simplequeue/simplequeue/internal/store"
)

// How often an insert tries again where the holder of a key was gone when it was
// looked up: in a caller's transaction, and in one of its own.
const (
	contentionRounds = 3
	keyedTries       = 10
)

// insertKeyed starts again, with no key taken, where a holder was gone when it
// was looked up: one statement takes its keys in order, but a second one in the
// same transaction could meet others the wrong way round. Lists of several
// statements can, and start again after a deadlock.
func (q *SimpleQueue) insertKeyed(ctx context.Context, b *batch) error {
	for try := 1; ; try++ {
		err := q.tryKeyed(ctx, b)
		if store.Code(err) != "40P01" && !errors.Is(err, ErrUniqueContention) || try == keyedTries {
			return err
		}
		for i := range b.jobs {
			b.jobs[i].later, b.results[i] = false, Inserted{ID: b.jobs[i].id}
		}
	}
}

// tryKeyed needs the answer of one statement to write the next. Only its commit
// can leave a doubt.
func (q *SimpleQueue) tryKeyed(ctx context.Context, b *batch) error {
	conn, err := q.pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("simplequeue: no connection to insert on: %w", err)
	}
	defer conn.Release()
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.ReadCommitted})
	if err != nil {
		return fmt.Errorf("simplequeue: insert: %w", err)
	}
	if err := q.insertRows(ctx, pgxQuerier{tx}, b, "", 1); err != nil {
		_ = tx.Rollback(ctx)
		return fmt.Errorf("simplequeue: insert: %w", err)
	}
	if err := tx.Commit(ctx); err != nil {
		return b.doubt(fmt.Errorf("simplequeue: commit of insert: %w", err))
	}
	return nil
}

// insertRows inserts jobs that may hold keys. Which of them lost their key shows
// after the statement; who holds it only a new statement can see.
func (q *SimpleQueue) insertRows(ctx context.Context, tx store.Querier, b *batch, channel string, rounds int) error {
	open := make([]int, len(b.jobs))
	for i := range open {
		open[i] = i
	}
	for range rounds {
		lost, err := q.insertRound(ctx, tx, b, open)
		if err != nil {
			return err
		}
		if open, err = q.lookUpHolders(ctx, tx, b, lost); err != nil {
			return err
		}
		if len(open) == 0 {
			if lanes := b.runnable(); channel != "" && len(lanes) > 0 {
				return q.db.NotifyTx(ctx, tx, channel, encodeWake(lanes))
			}
			return nil
		}
	}
	return fmt.Errorf("%w (%q)", ErrUniqueContention, b.jobs[open[0]].job.UniqueKey)
}

// insertRound tries to insert the jobs at the given positions and returns those
// that lost their key.
func (q *SimpleQueue) insertRound(ctx context.Context, tx store.Querier, b *batch, open []int) (lost []int, err error) {
	for len(open) > 0 {
		chunk := open[:min(insertChunk, len(open))]
		open = open[len(chunk):]
		fates, err := q.db.InsertKeyed(ctx, tx, b.columns(chunk))
		if err != nil {
			return nil, err
		}
		for i, f := range fates {
			at := chunk[i]
			switch {
			case f.Inserted:
				b.results[at].Duplicate = false
				b.jobs[at].later = f.Later
			case f.IDKnown:
				b.results[at].Duplicate = true
			default:
				lost = append(lost, at)
			}
		}
	}
	return lost, nil
}

// lookUpHolders fills in who holds the keys of the lost jobs, and returns the
// jobs whose key is free again.
func (q *SimpleQueue) lookUpHolders(ctx context.Context, tx store.Querier, b *batch, lost []int) (open []int, err error) {
	if len(lost) == 0 {
		return nil, nil
	}
	var scopes, keys, chosen []string
	for _, at := range lost {
		scopes = append(scopes, b.jobs[at].scope())
		keys = append(keys, b.jobs[at].job.UniqueKey)
		if b.jobs[at].chosen {
			chosen = append(chosen, b.jobs[at].id.String())
		}
	}
	if len(chosen) > 0 {
		if err := q.db.ForgetChosen(ctx, tx, chosen); err != nil {
			return nil, err
		}
	}
	holders, err := q.db.Holders(ctx, tx, scopes, keys)
	if err != nil {
		return nil, err
	}
	for i, at := range lost {
		text, held := holders[i]
		if !held {
			open = append(open, at)
			continue
		}
		id, err := uuid.Parse(text)
		if err != nil {
			return nil, fmt.Errorf("holder of unique key %q: %w", keys[i], err)
		}
		b.results[at] = Inserted{ID: id, Duplicate: true}
	}
	return open, nil
}
