package store

import (
	"context"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// A cancel visits the tables in the direction in which jobs move, each in a
// statement with a snapshot of its own: a job that moved on while one statement
// waited for its row is met by the next. Rows are locked in the order of their
// ids, in which a change takes them too.
var cancelLive = `
WITH locked AS MATERIALIZED (
    SELECT l.id
    FROM {schema}.{table} AS l
    WHERE l.id = ANY ($1::text[]::uuid[])
    ORDER BY l.id
    FOR UPDATE
), gone AS (
    DELETE FROM {schema}.{table} AS t
    WHERE t.id = ANY (ARRAY(SELECT l.id FROM locked AS l))
    RETURNING {t.job}
), finished AS (
    INSERT INTO {schema}.job_finished ({job}, state, reason)
    SELECT {g.job}, 'cancelled', nullif($2::text, '')
    FROM gone AS g
), ` + Release("gone", "true") + `, ` + ReleaseGates("gone", "true", "false") + `
SELECT g.id, coalesce(g.props ? 'gates', false), coalesce(g.props ? 'awaited', false) FROM gone AS g`

var (
	cancelWaiting = Define(in("job_waiting", cancelLive))
	cancelQueued  = Define(in("job_queue", cancelLive))
)

// The lock makes a settle and a cancel of one job take turns: whichever is
// second sees what the first did. What is locked is stepped over, for it may be
// locked by a handler's transaction, for as long as that goes on; a settle is
// over soon, so the caller looks again.
var cancelRunning = Define(cancelOfRunning(`
    ORDER BY r.claim_id
    FOR UPDATE SKIP LOCKED`))

// Without the lock: of a job that stays locked. A settle that is on its way does
// not see it; then the reaper finds the request and a job that is still live.
var cancelLocked = Define(cancelOfRunning(""))

// The first request for a claim stands. One for an earlier claim of the same
// number, from before a failover, is not for this one, and makes way.
func cancelOfRunning(lock string) string {
	return `
WITH running AS MATERIALIZED (
    SELECT r.id, r.claim_id, r.claim_nonce
    FROM {schema}.job_running AS r
    WHERE r.id = ANY ($1::text[]::uuid[])` + lock + `
), asked AS (
    INSERT INTO {schema}.job_cancel AS c (claim_id, claim_nonce, job_id, reason)
    SELECT r.claim_id, r.claim_nonce, r.id, $2::text
    FROM running AS r
    ON CONFLICT (claim_id) DO UPDATE
    SET claim_nonce = excluded.claim_nonce, job_id = excluded.job_id, reason = excluded.reason, requested_at = excluded.requested_at
    WHERE c.claim_nonce <> excluded.claim_nonce
)
SELECT r.id FROM running AS r`
}

// Cancelled tells, by id, what a cancel did.
type Cancelled struct {
	Ended map[[16]byte]bool // waiting or pending before, ended now
	Gated bool              // some of these had gates, which may be open now
	Asked map[[16]byte]bool // running, and asked to stop

	Awaited []uuid.UUID // of Ended, those that somebody may be waiting for
}

// CancelLocked asks jobs to stop whose rows stay locked, and returns those that
// still run.
func (db *DB) CancelLocked(ctx context.Context, limit time.Duration, ids [][16]byte, reason string) (asked map[[16]byte]bool, err error) {
	asked = map[[16]byte]bool{}
	return asked, db.Tx(ctx, limit, Step{Statement: cancelLocked, Args: []any{uuids(ids), reason}, Scan: idsInto(asked)})
}

func idsInto(set map[[16]byte]bool) func(pgx.Rows) error {
	return func(row pgx.Rows) error {
		var id [16]byte
		if err := row.Scan(&id); err != nil {
			return err
		}
		set[id] = true
		return nil
	}
}

// Live says which live jobs are meant.
type Live struct{ Waiting, Pending, Running bool }

// Cancel ends the waiting and pending jobs among ids and asks the running ones
// to stop, as far as such are meant. Ids in neither set were none of these, or
// moved against the flow.
func (db *DB) Cancel(ctx context.Context, limit time.Duration, ids [][16]byte, within Live, reason string) (Cancelled, error) {
	return afterDeadlock(db, func() (Cancelled, error) { return db.cancel(ctx, limit, ids, within, reason) })
}

func (db *DB) cancel(ctx context.Context, limit time.Duration, ids [][16]byte, within Live, reason string) (Cancelled, error) {
	c := Cancelled{Ended: map[[16]byte]bool{}, Asked: map[[16]byte]bool{}}
	args := []any{uuids(ids), reason}
	ended := func(row pgx.Rows) error {
		var id [16]byte
		var gated, awaited bool
		if err := row.Scan(&id, &gated, &awaited); err != nil {
			return err
		}
		c.Ended[id], c.Gated = true, c.Gated || gated
		if awaited {
			c.Awaited = append(c.Awaited, id)
		}
		return nil
	}
	var steps []Step
	if within.Waiting {
		steps = append(steps, Step{Statement: cancelWaiting, Args: args, Scan: ended})
	}
	if within.Pending {
		steps = append(steps, Step{Statement: cancelQueued, Args: args, Scan: ended})
	}
	if within.Running {
		steps = append(steps, Step{Statement: cancelRunning, Args: args, Scan: idsInto(c.Asked)})
	}
	err := db.Tx(ctx, limit, steps...)
	return c, err
}
