package simplequeue

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/simplequeue/simplequeue/internal/store"
)

// workLimit is how long a statement of a handler may take.
const workLimit = 10 * time.Second

// Checkpoint replaces the job's payload, in the database and in j: what the next
// attempt of the job is given, after a retry, a reschedule, a stop or a crash.
// payload and raw are as in [NewJob]; a part that is nil is none from then on.
// It changes nothing else about the job: not its attempt, nor when it runs.
//
// It returns [ErrLeaseLost] when the job is no longer this attempt's, and an
// [*InvalidValueError] for what cannot be stored; after these and any other
// error the job in j is as it was. An error of the connection leaves it open
// whether the payload was stored; it may be stored again.
func (j *Job) Checkpoint(ctx context.Context, payload any, raw []byte) error {
	return j.checkpoint(payload, raw, func(r *running, s store.Step) error { return r.change(ctx, s) })
}

// CheckpointTx is Checkpoint inside the caller's transaction: the payload is
// replaced when that commits. j shows it at once, also if the transaction is
// rolled back afterwards. Until it ends, the job's other checkpoints and steps
// wait, for ten seconds at most; and so does its outcome, for as long as it takes.
func (j *Job) CheckpointTx(ctx context.Context, tx pgx.Tx, payload any, raw []byte) error {
	return j.checkpoint(payload, raw, func(r *running, s store.Step) error { return r.changeWithin(ctx, pgxQuerier{tx}, s) })
}

// CheckpointSQLTx is CheckpointTx for database/sql, with any PostgreSQL driver.
func (j *Job) CheckpointSQLTx(ctx context.Context, tx *sql.Tx, payload any, raw []byte) error {
	return j.checkpoint(payload, raw, func(r *running, s store.Step) error { return r.changeWithin(ctx, sqlQuerier{tx}, s) })
}

func (j *Job) checkpoint(payload any, raw []byte, write func(*running, store.Step) error) error {
	if j.run == nil {
		return errNotRunning
	}
	var text *string
	size, sent := len(raw), len(raw)
	if given(payload) {
		encoded, printed, err := encodeValue("payload", payload, j.maxBytes())
		if err != nil {
			return err
		}
		s := string(encoded)
		text = &s
		size, sent = size+printed, sent+len(s)
	}
	if size > j.maxBytes() {
		return tooLarge("payload", int64(size), sent, j.maxBytes())
	}
	r := j.run
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := write(r, store.Checkpoint(r.fence(), text, raw, size, size > inlinePayload)); err != nil {
		return fmt.Errorf("simplequeue: checkpoint: %w", err)
	}
	j.Payload, j.Raw = nil, raw
	if text != nil {
		j.Payload = json.RawMessage(*text)
	}
	return nil
}

// errNotRunning is what a job returns that no handler runs.
var errNotRunning = fmt.Errorf("%w: no handler runs this job here", ErrLeaseLost)

func (r *running) fence() store.Claim {
	return store.Claim{ID: r.claim.id, Nonce: r.claim.nonce, JobID: r.claim.job.ID}
}

// keeper is the part of the store that holds what handlers keep with their jobs.
type keeper interface {
	Changed(ctx context.Context, limit time.Duration, s store.Step) (held bool, err error)
	ChangedWithin(ctx context.Context, tx store.Querier, s store.Step) (held bool, err error)
	Unseen(ctx context.Context, limit time.Duration, tx store.Querier, c store.Claim) error
	Steps(ctx context.Context, limit time.Duration, id [16]byte) (object []byte, err error)
}

// change writes the job under its fence.
func (r *running) change(ctx context.Context, s store.Step) error {
	held, err := r.queue.kept.Changed(ctx, workLimit, s)
	if err == nil && !held {
		err = ErrLeaseLost
	}
	return err
}

// changeWithin is change in a transaction, by several steps of which the last one
// tells. Errors of the database come back as they are.
func (r *running) changeWithin(ctx context.Context, tx store.Querier, steps ...store.Step) error {
	// From now on whoever takes an outcome of this claim waits for the
	// transaction; if one was taken before, it is too late for this.
	r.claim.entering.Add(1)
	defer r.claim.entering.Add(-1)
	r.claim.inTx.Store(true)
	if r.claim.settled.Load() {
		return ErrLeaseLost
	}
	held, err := false, error(nil)
	for _, s := range steps {
		if held, err = r.queue.kept.ChangedWithin(ctx, tx, s); err != nil {
			break
		}
	}
	if err == nil && !held {
		if err = r.queue.beside().Unseen(ctx, workLimit, tx, r.fence()); err == nil {
			err = ErrLeaseLost
		}
	}
	return err
}

// beside is kept for what looks from beside a transaction of the caller's: that
// may hold the last connection of the caller's pool, so it is on the engine's
// where there is one.
func (q *SimpleQueue) beside() keeper {
	if e := q.engine.Load(); e != nil {
		return e.db
	}
	return q.kept
}
