package simplequeue

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/simplequeue/simplequeue/internal/store"
)

// A held job is inserted, with its place in an order and its unique key taken,
// and runs once it is committed; it is gone if that comes too late.

// reasonHeld is why such a job waits.
const reasonHeld = "held"

const maxHold = 7 * 24 * time.Hour

// hold notes until when those of the added jobs are held that are.
func (q *SimpleQueue) hold(ctx context.Context, tx store.Querier, b *batch, added []int) error {
	if !b.held {
		return nil
	}
	var h store.HeldJobs
	for _, at := range added {
		r := &b.jobs[at]
		if r.waitsFor != reasonHeld {
			continue
		}
		h.IDs, h.HoldsUS = append(h.IDs, r.id.String()), append(h.HoldsUS, positive(r.job.Hold))
		h.RunAts, h.DelaysUS = append(h.RunAts, nonZero(r.job.RunAt)), append(h.DelaysUS, positive(r.job.Delay))
		h.Gated = append(h.Gated, len(r.gates) > 0)
	}
	if len(h.IDs) == 0 {
		return nil
	}
	return q.db.Hold(ctx, tx, &h)
}

// CommitHeld commits jobs that were inserted with [NewJob.Hold]: they run at
// their time, or now if that has come. It returns, in the order given, the ids of
// exactly those that it has committed. Any other id is of a job whose hold is
// over, that was committed or cancelled before, or that never was.
func (q *SimpleQueue) CommitHeld(ctx context.Context, ids ...uuid.UUID) ([]uuid.UUID, error) {
	var done *letGo
	err := q.db.CallerTx(ctx, func(tx pgx.Tx) (err error) {
		done, err = q.letGo(ctx, pgxQuerier{tx}, ids)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("simplequeue: commit held jobs: %w", err)
	}
	q.wakes.jobs(done.lanes, len(done.ids))
	if done.gated {
		q.wakes.gates()
	}
	if e := q.engine.Load(); e != nil {
		e.promoter.hint(0) // some may have a time of their own
	}
	return done.ids, nil
}

// CommitHeldTx is CommitHeld inside the caller's transaction: the jobs are
// committed when that commits, and the holds go on if it does not. Until then
// they do not expire. At REPEATABLE READ and SERIALIZABLE a job that another
// transaction has just committed or that has expired is an error 40001.
func (q *SimpleQueue) CommitHeldTx(ctx context.Context, tx pgx.Tx, ids ...uuid.UUID) ([]uuid.UUID, error) {
	return q.commitWithin(ctx, pgxQuerier{tx}, ids)
}

// CommitHeldSQLTx is CommitHeldTx for database/sql.
func (q *SimpleQueue) CommitHeldSQLTx(ctx context.Context, tx *sql.Tx, ids ...uuid.UUID) ([]uuid.UUID, error) {
	return q.commitWithin(ctx, sqlQuerier{tx}, ids)
}

func (q *SimpleQueue) commitWithin(ctx context.Context, tx store.Querier, ids []uuid.UUID) ([]uuid.UUID, error) {
	done, err := q.letGo(ctx, tx, ids)
	if err == nil && !q.opts.PollOnly && len(done.ids) > 0 {
		err = q.db.NotifyTx(ctx, tx, q.wakes.channel, encodeInserted(done.lanes, done.gated))
	}
	if err != nil {
		return nil, fmt.Errorf("simplequeue: commit held jobs: %w", err)
	}
	return done.ids, nil
}

// letGo is what a commit of held jobs has let go.
type letGo struct {
	ids   []uuid.UUID
	lanes []store.Lane // of those without gates, without repetition
	gated bool
}

func (q *SimpleQueue) letGo(ctx context.Context, tx store.Querier, ids []uuid.UUID) (*letGo, error) {
	done := &letGo{}
	if len(ids) == 0 {
		return done, nil
	}
	texts := make([]string, len(ids))
	for i, id := range ids {
		texts[i] = id.String()
	}
	committed, err := q.db.CommitHeld(ctx, tx, texts)
	if err != nil {
		return nil, err
	}
	mine, lanes := map[string]bool{}, map[store.Lane]bool{}
	for _, c := range committed {
		mine[c.ID] = true
		if c.Gated {
			done.gated = true
		} else if !lanes[c.Lane] {
			lanes[c.Lane] = true
			done.lanes = append(done.lanes, c.Lane)
		}
	}
	for i, id := range ids {
		if mine[texts[i]] {
			delete(mine, texts[i])
			done.ids = append(done.ids, id)
		}
	}
	return done, nil
}
