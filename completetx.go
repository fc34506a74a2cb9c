package simplequeue

import (
	"context"
	"database/sql"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/simplequeue/simplequeue/internal/store"
	"github.com/simplequeue/simplequeue/janitor"
)

// CompleteTx completes the job in the caller's transaction, with the result that
// has been set: whatever else the transaction writes and the completion of the
// job happen together, once, or not at all. It works at every isolation level,
// however long the transaction goes on; the job's lease is kept meanwhile.
//
// The handler commits the transaction and returns nil. When it returns, the
// engine looks: if the transaction has committed the job has completed, whatever
// the handler returned; if it was rolled back, nil is a failed attempt with
// [ErrNotCommitted], and an error is what it always is; if it is still open the
// engine waits for its end. After an error of the transaction, 40001 for
// example, the handler may begin another and call CompleteTx again.
//
// It returns [ErrLeaseLost] when the job is no longer this attempt's: roll back
// then. Errors of the database come back as they are, and as after any other
// statement the transaction is aborted.
func (j *Job) CompleteTx(ctx context.Context, tx pgx.Tx) error {
	return j.completeWithin(ctx, pgxQuerier{tx})
}

// CompleteSQLTx is CompleteTx for database/sql, with any PostgreSQL driver.
func (j *Job) CompleteSQLTx(ctx context.Context, tx *sql.Tx) error {
	return j.completeWithin(ctx, sqlQuerier{tx})
}

func (j *Job) completeWithin(ctx context.Context, tx store.Querier) error {
	r := j.run
	if r == nil {
		return errNotRunning
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	keep := r.claim.keepArchive()
	// An outcome that stays for ten minutes goes by way of the janitor, which
	// sees it when the transaction has committed, however long that takes.
	direct := false
	if !r.claim.outcomeOnly(StateCompleted) {
		// A transaction that has written to the archive may go on without learning
		// of partitions made since: it keeps its lock, and PostgreSQL reads what
		// others have changed about a table when it locks it.
		since, made := r.queue.partitions.since(ctx, r.queue, keep)
		direct = made && since.Before(r.claim.claimedAt)
	}
	steps := []store.Step{completion(r.fence(), keep, j.result, direct)}
	if r.claim.job.ordered() {
		steps = append(opening(r.fence()), steps...)
	}
	if err := r.changeWithin(ctx, tx, steps...); err != nil {
		return fmt.Errorf("simplequeue: complete: %w", err)
	}
	r.claim.completing.Store(true)
	return nil
}

// completion is the step that completes one job: straight into the archive, or,
// where its partition could not be made, by way of the janitor. An insert that
// met no partition would abort the caller's transaction.
func completion(c store.Claim, keep int64, result string, partition bool) store.Step {
	s := &store.Settle{Slot: c.Slot(), ClaimIDs: []int64{c.ID}, Nonces: []int64{c.Nonce}, Keep: []int64{keep}, Results: []string{result}}
	switch {
	case partition && result != "":
		return janitor.ArchiveResults(s)
	case partition:
		return janitor.Archive(s)
	case result != "":
		return store.SettleResultsAside(s)
	}
	s.States, s.Reasons, s.Texts, s.Stacks = []string{string(StateCompleted)}, []string{""}, []*string{nil}, []*string{nil}
	return store.SettleAside(s)
}

// opening are the steps that open the order key of a job that completes. Like
// the engine's they come before the job goes, under the lock on its row.
func opening(c store.Claim) []store.Step {
	s := &store.Settle{
		Slot: c.Slot(), ClaimIDs: []int64{c.ID}, Nonces: []int64{c.Nonce},
		Fates: []string{store.GateEnd}, RunAtUS: []*int64{nil}, AfterUS: []*int64{nil},
	}
	return []store.Step{
		{Statement: store.LockClaims, Slot: s.Slot, Args: []any{s.ClaimIDs, s.Nonces}},
		store.FreeGates(s),
	}
}

// madePartitions remembers which partitions of the archive need not be asked
// for: those of today and tomorrow, by how long jobs are kept.
type madePartitions struct {
	mu sync.Mutex
	at map[int64]made
}

// made says when partitions were asked for last, and since when those of the day
// have been there all the time.
type made struct{ asked, since time.Time }

const (
	partitionsLast = time.Hour
	partitionsMade = 24 * time.Hour // each time for so long at least
	prepareLimit   = 2 * time.Second
	maxRetentions  = 1000 // remembered at once
)

// prepare asks for the partitions that the queues' retentions need before there
// are claims, so that what jobs complete in transactions can use them.
func (m *madePartitions) prepare(ctx context.Context, q *SimpleQueue) {
	ctx, stop := context.WithTimeout(ctx, prepareLimit)
	defer stop()
	m.since(ctx, q, keepSeconds(q.opts.Retention.Archive))
	for _, o := range q.opts.Queues {
		m.since(ctx, q, keepSeconds(o.Retention.or(q.opts.Retention).Archive))
	}
}

// since makes sure, outside the caller's transaction, that there is a partition
// for a job completed now, and tells since when there has been one all the time.
func (m *madePartitions) since(ctx context.Context, q *SimpleQueue, keep int64) (since time.Time, made bool) {
	if keep == janitor.Forever || keep == janitor.Nothing {
		return time.Time{}, true
	}
	m.mu.Lock()
	p := m.at[keep]
	m.mu.Unlock()
	if asked := time.Now(); asked.Sub(p.asked) >= partitionsLast {
		e := q.engine.Load()
		if e == nil || e.janitor.MakePartitions(ctx, []int64{keep}, nil) != nil {
			return time.Time{}, false
		}
		if asked.Sub(p.asked) >= partitionsMade {
			p.since = time.Now()
		}
		p.asked = asked
		m.remember(keep, p)
	}
	return p.since, true
}

func (m *madePartitions) remember(keep int64, p made) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.at == nil || len(m.at) >= maxRetentions {
		m.at = map[int64]made{}
	}
	m.at[keep] = p
}
