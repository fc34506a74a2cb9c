package simplequeue

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/simplequeue/simplequeue/internal/store"
)

// Unlimited, as the limit of a queue, is none.
const Unlimited = -1

const (
	maxQueueLimit = 1_000_000
	boundTries    = 3
	boundLimit    = 30 * time.Second
)

// SetQueueLimit limits the live jobs of a queue, waiting, pending and running
// together: 1 to 1,000,000, or [Unlimited], which every queue is at first. The
// limit is kept in the database and holds for every process, at once, until it
// is changed. An insert that would go over it fails with [ErrQueueFull].
//
// Where there are more live jobs than a lowered limit allows, none is inserted
// until there are fewer, but for inserts that were under way, and those in
// REPEATABLE READ transactions that had begun. Where there were more than a
// thousand too many, a janitor, which every worker has, has to sweep after that.
// Not counted are jobs inserted while the queue had no limit, or by transactions
// that had begun then, and those that [SimpleQueue.Redrive] and
// [SimpleQueue.Replay] bring back.
//
// A transaction that is the first to insert into a priority of the queue is
// waited for, as long as ctx allows. Errors: an [*InvalidOptionError] for the
// queue's name or the limit, and those of the database.
func (q *SimpleQueue) SetQueueLimit(ctx context.Context, queue string, limit int) error {
	if problem := queueNameProblem(queue); problem != "" {
		return &InvalidOptionError{"queue", queue, problem}
	}
	if limit != Unlimited && (limit < 1 || limit > maxQueueLimit) {
		return &InvalidOptionError{"limit", limit, fmt.Sprintf("must be 1 to %d, or Unlimited", maxQueueLimit)}
	}
	var most *int
	if limit != Unlimited {
		most = &limit
	}
	retry := newRetry()
	for {
		err := q.db.SetQueueLimit(ctx, boundLimit, queue, most)
		if err == nil {
			q.bounds.set(queue, most != nil)
			return nil
		}
		if store.Code(err) != "55P03" || retry.wait(ctx) != nil {
			return fmt.Errorf("simplequeue: set limit of queue %q: %w", queue, err)
		}
	}
}

// bounds is what this process knows of the queues that have a limit. The
// database has the last word: an insert that knows too little is refused before
// it has done anything, and one that knows of a limit that is gone finds none.
type bounds struct {
	learned atomic.Bool // all that there were
	queues  atomic.Pointer[map[string]bool]
	mu      sync.Mutex // of writers
}

func (b *bounds) has(queue string) bool {
	m := b.queues.Load()
	return m != nil && (*m)[queue]
}

func (b *bounds) set(queue string, bounded bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	m := map[string]bool{}
	if old := b.queues.Load(); old != nil {
		m = maps.Clone(*old)
	}
	delete(m, queue)
	if bounded {
		m[queue] = true
	}
	b.queues.Store(&m)
}

// learn asks for all limits unless that was done before: an insert in a caller's
// transaction that is refused could not be repeated.
func (b *bounds) learn(ctx context.Context, db *store.DB, tx store.Querier) error {
	if b.learned.Load() {
		return nil
	}
	queues, err := db.BoundQueues(ctx, tx)
	if err != nil {
		return fmt.Errorf("simplequeue: insert: %w", err)
	}
	m := make(map[string]bool, len(queues))
	for _, q := range queues {
		m[q] = true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.queues.Store(&m)
	b.learned.Store(true)
	return nil
}

// doubt makes the next insert in a caller's transaction ask again.
func (b *bounds) doubt() { b.learned.Store(false) }

// unaware reports whether an insert was refused because one of its queues may
// have got a limit that was not known here, and is now.
func (q *SimpleQueue) unaware(ctx context.Context, err error, jobs []NewJob) bool {
	if store.Code(err) != "40001" {
		return false
	}
	q.bounds.doubt()
	if pgx.BeginFunc(ctx, q.pool, func(tx pgx.Tx) error { return q.bounds.learn(ctx, q.db, pgxQuerier{tx}) }) != nil {
		return false
	}
	return slices.ContainsFunc(jobs, func(j NewJob) bool { return q.bounds.has(j.Queue) })
}

// takeSlots takes a slot for each job that was inserted into a queue with a
// limit.
func (q *SimpleQueue) takeSlots(ctx context.Context, tx store.Querier, b *batch) error {
	if !b.bounded {
		return nil
	}
	var queues, ids []string
	for i := range b.jobs {
		if b.jobs[i].bounded && !b.results[i].Duplicate {
			queues, ids = append(queues, b.jobs[i].job.Queue), append(ids, b.jobs[i].id.String())
		}
	}
	if len(ids) == 0 {
		return nil
	}
	full, limit, unbounded, err := q.db.TakeSlots(ctx, tx, queues, ids)
	if err != nil {
		return err
	}
	for _, queue := range unbounded {
		q.bounds.set(queue, false)
	}
	if full != "" {
		return &QueueFullError{Queue: full, Limit: limit}
	}
	return nil
}

// insertBounded inserts into queues with a limit, in a caller's transaction,
// which goes on as if nothing had been tried where one is full.
func (q *SimpleQueue) insertBounded(ctx context.Context, tx store.Querier, b *batch, channel string) error {
	if err := exhaust(tx.Query(ctx, "SAVEPOINT simplequeue_insert")); err != nil {
		return err
	}
	err := q.insertRows(ctx, tx, b, channel, contentionRounds)
	if errors.Is(err, ErrQueueFull) {
		if err := exhaust(tx.Query(ctx, "ROLLBACK TO SAVEPOINT simplequeue_insert")); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	if err := exhaust(tx.Query(ctx, "RELEASE SAVEPOINT simplequeue_insert")); err != nil {
		return err
	}
	return err
}

// insertError says where an error comes from that does not say so itself.
func insertError(err error) error {
	var invalid *InvalidJobError
	if err == nil || errors.Is(err, ErrQueueFull) || errors.As(err, &invalid) {
		return err
	}
	return fmt.Errorf("simplequeue: insert: %w", err)
}
