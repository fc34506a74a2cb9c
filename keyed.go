package simplequeue

import (
	"context"
	"errors"
	"fmt"
	"slices"

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
// statements can, and start again after a deadlock; and so does one with an id
// that another process has committed meanwhile.
func (q *SimpleQueue) insertKeyed(ctx context.Context, b *batch) error {
	for try := 1; ; try++ {
		err := q.tryKeyed(ctx, b)
		again := store.Code(err) == "40P01" || errors.Is(err, ErrUniqueContention) ||
			store.Code(err) == "23505" && slices.ContainsFunc(b.jobs, func(r ready) bool { return r.chosen })
		if !again || try == keyedTries {
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
	defer func() {
		if conn.Conn().IsClosed() {
			q.groups.undecided(conn.Conn(), b)
		}
	}()
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.ReadCommitted})
	if err != nil {
		return fmt.Errorf("simplequeue: insert: %w", err)
	}
	if err := q.insertRows(ctx, pgxQuerier{tx}, b, "", 1); err != nil {
		_ = tx.Rollback(ctx)
		return insertError(err)
	}
	if err := tx.Commit(ctx); err != nil {
		return b.doubt(fmt.Errorf("simplequeue: commit of insert: %w", err))
	}
	return nil
}

// insertRows inserts jobs that may hold keys. Which of them lost their key shows
// after the statement; who holds it only a new statement can see. Those that were
// inserted line up before others of the list change them.
func (q *SimpleQueue) insertRows(ctx context.Context, tx store.Querier, b *batch, channel string, rounds int) error {
	open := make([]int, len(b.jobs))
	for i := range open {
		open[i] = i
	}
	if b.gated && len(b.jobs) > 1 {
		rounds = 1 // what a later round inserts would stand behind the rest of the list
	}
	for range rounds {
		added, lost, err := q.insertRound(ctx, tx, b, open)
		if err != nil {
			return err
		}
		if err := q.lineUp(ctx, tx, b, added); err != nil {
			return err
		}
		if err := q.hold(ctx, tx, b, added); err != nil {
			return err
		}
		if open, err = q.meetHolders(ctx, tx, b, lost); err != nil {
			return err
		}
		if len(open) == 0 {
			if err := q.takeSlots(ctx, tx, b); err != nil {
				return err
			}
			if note := b.wake(); channel != "" && note != "" {
				return q.db.NotifyTx(ctx, tx, channel, note)
			}
			return nil
		}
	}
	return fmt.Errorf("%w (%q)", ErrUniqueContention, b.jobs[open[0]].key)
}

// insertRound tries to insert the jobs at the given positions and returns those
// that it has inserted, and those that lost their key.
func (q *SimpleQueue) insertRound(ctx context.Context, tx store.Querier, b *batch, open []int) (added, lost []int, err error) {
	for len(open) > 0 {
		chunk := open[:min(insertChunk, len(open))]
		open = open[len(chunk):]
		fates, err := q.db.InsertKeyed(ctx, tx, b.columns(chunk))
		if err != nil {
			return nil, nil, err
		}
		for i, f := range fates {
			at := chunk[i]
			switch {
			case f.Inserted:
				b.results[at].Duplicate = false
				b.jobs[at].later = f.Later
				added = append(added, at)
			case f.IDKnown:
				b.results[at].Duplicate = true
			default:
				b.jobs[at].key = f.Key
				lost = append(lost, at)
			}
		}
	}
	return added, lost, nil
}

// meetHolders fills in what has become of the lost jobs beside the holders of
// their keys, and returns the jobs whose key is free again.
func (q *SimpleQueue) meetHolders(ctx context.Context, tx store.Querier, b *batch, lost []int) (open []int, err error) {
	var chosen []string
	var skip, change []int
	for _, at := range lost {
		if b.jobs[at].chosen {
			chosen = append(chosen, b.jobs[at].id.String())
		}
		if b.jobs[at].job.Unique.OnConflict == ConflictSkip {
			skip = append(skip, at)
		} else {
			change = append(change, at)
		}
	}
	if len(chosen) > 0 {
		if err := q.db.ForgetChosen(ctx, tx, chosen); err != nil {
			return nil, err
		}
	}
	if open, err = q.lookUpHolders(ctx, tx, b, skip); err != nil {
		return nil, err
	}
	free, err := q.changeHolders(ctx, tx, b, change)
	open = append(open, free...)
	slices.Sort(open)
	return open, err
}

func (q *SimpleQueue) lookUpHolders(ctx context.Context, tx store.Querier, b *batch, lost []int) (open []int, err error) {
	if len(lost) == 0 {
		return nil, nil
	}
	var scopes, keys []string
	for _, at := range lost {
		scopes, keys = append(scopes, b.jobs[at].scope()), append(keys, b.jobs[at].key)
	}
	holders, err := q.db.Holders(ctx, tx, scopes, keys)
	if err != nil {
		return nil, err
	}
	for i, at := range lost {
		if text, held := holders[i]; !held {
			open = append(open, at)
		} else if b.results[at], err = duplicateOf(text); err != nil {
			return nil, err
		}
	}
	return open, nil
}

// changeHolders changes the holders as the lost jobs say, in their order.
func (q *SimpleQueue) changeHolders(ctx context.Context, tx store.Querier, b *batch, lost []int) (open []int, err error) {
	if len(lost) == 0 {
		return nil, nil
	}
	for len(lost) > 0 {
		chunk := lost[:min(insertChunk, len(lost))]
		lost = lost[len(chunk):]
		met, err := q.db.TakeOver(ctx, tx, b.changes(chunk))
		if err != nil {
			return nil, err
		}
		for i, m := range met {
			at := chunk[i]
			if m.Holder == "" {
				open = append(open, at)
				continue
			}
			if b.results[at], err = duplicateOf(m.Holder); err != nil {
				return nil, err
			}
			b.results[at].Replaced, b.jobs[at].later = m.Replaced, m.Later
		}
	}
	return open, nil
}

func duplicateOf(holder string) (Inserted, error) {
	id, err := uuid.Parse(holder)
	if err != nil {
		return Inserted{}, fmt.Errorf("holder of a unique key: %w", err)
	}
	return Inserted{ID: id, Duplicate: true}, nil
}
