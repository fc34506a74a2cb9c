package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// Claim is the fence of one running job.
type Claim struct {
	ID, Nonce int64
	JobID     [16]byte
}

// Slot is the place in the ring of the claim's table.
func (c Claim) Slot() int { return Slot(Chunk(c.ID)) }

const held = `r.claim_id = $1::bigint AND r.claim_nonce = $2::bigint`

// A checkpoint is an update of the running row; only it and saveStep update one.
// Whatever moves the job on takes the payload from there, so nothing else
// has to know; the claim, the attempt and the lane are not touched, so the job
// is no more claimable than before; and the fence is that of every other write.
// The row stays locked until the transaction ends, the caller's if it is in one:
// heartbeats and claims do not look at that lock, the reaper and cancels step
// over it, and the engine waits for it before it settles the job.
//
// A payload above the bound is stored apart, and so is one beside steps. What is
// left of one that was stored apart goes.
var checkpoint = Define(`
WITH saved AS (
    UPDATE {schema}.job_running_{slot} AS r
    SET payload = CASE WHEN a.apart THEN NULL ELSE $4::text::jsonb END,
        raw = CASE WHEN a.apart THEN NULL ELSE $5::bytea END,
        payload_bytes = CASE WHEN a.apart THEN greatest($6::integer, 1) ELSE 0 END
    FROM (
        SELECT $7::boolean OR EXISTS (
            SELECT FROM {schema}.job_payload AS p WHERE p.id = $3::text::uuid AND p.steps IS NOT NULL
        ) AS apart
    ) AS a
    WHERE ` + held + `
    RETURNING r.id, a.apart
), kept AS (
    INSERT INTO {schema}.job_payload (id, payload, raw)
    SELECT s.id, $4::text::jsonb, $5::bytea
    FROM saved AS s
    WHERE s.apart
    ON CONFLICT (id) DO UPDATE SET payload = excluded.payload, raw = excluded.raw
), dropped AS (
    DELETE FROM {schema}.job_payload
    WHERE id = ANY (ARRAY(SELECT s.id FROM saved AS s WHERE NOT s.apart))
)
SELECT s.id FROM saved AS s`)

// Checkpoint is the step that replaces both parts of a running job's payload,
// nil for none. It returns a row if the claim still holds.
func Checkpoint(c Claim, payload *string, raw []byte, size int, apart bool) Step {
	return Step{Statement: checkpoint, Slot: c.Slot(), Args: []any{c.ID, c.Nonce, uuidText(c.JobID), payload, raw, size, apart}}
}

// A step is saved beside the payload, which moves there with the first one. The
// lock on the running row keeps the reaper and a later claim away meanwhile.
var saveStep = Define(`
WITH held AS MATERIALIZED (
    SELECT r.id, r.payload, r.raw
    FROM {schema}.job_running_{slot} AS r
    WHERE ` + held + `
    FOR UPDATE
), apart AS (
    UPDATE {schema}.job_running_{slot} AS r
    SET payload = NULL, raw = NULL, payload_bytes = greatest($5::integer, 1)
    WHERE ` + held + ` AND r.payload_bytes = 0
)
INSERT INTO {schema}.job_payload AS p (id, payload, raw, steps)
SELECT h.id, h.payload, h.raw, jsonb_build_object($3::text, $4::text::jsonb)
FROM held AS h
ON CONFLICT (id) DO UPDATE SET steps = coalesce(p.steps, '{}'::jsonb) || excluded.steps
RETURNING p.id`)

// SaveStep is the step that stores what a named step of a running job has
// returned; size is that of the job's payload. It returns a row if the claim
// still holds.
func SaveStep(c Claim, name, value string, size int) Step {
	return Step{Statement: saveStep, Slot: c.Slot(), Args: []any{c.ID, c.Nonce, name, value, size}}
}

var steps = Define(`
SELECT p.steps
FROM {schema}.job_payload AS p
WHERE p.id = $1::text::uuid`)

// Steps returns what the steps of a job have returned, as a JSON object, or nil.
func (db *DB) Steps(ctx context.Context, limit time.Duration, id [16]byte) (object []byte, err error) {
	err = db.Tx(ctx, limit, Step{Statement: steps, Args: []any{uuidText(id)}, Scan: func(row pgx.Rows) error {
		return row.Scan(&object)
	}})
	return object, err
}

// Changed runs a step of a running job and reports whether the claim still held.
func (db *DB) Changed(ctx context.Context, limit time.Duration, s Step) (held bool, err error) {
	s.Scan = func(pgx.Rows) error { held = true; return nil }
	err = db.Tx(ctx, limit, s)
	return held && err == nil, err
}

// ChangedWithin is Changed in the caller's transaction.
func (s *Schema) ChangedWithin(ctx context.Context, tx Querier, step Step) (held bool, err error) {
	rows, err := tx.Query(ctx, s.text(step), step.Args...)
	if err != nil {
		return false, err
	}
	defer rows.Close()
	for rows.Next() {
		held = true
	}
	return held, rows.Err()
}

var (
	// As everybody else sees it: free, or locked by a transaction.
	claimFree = Define(`
SELECT r.claim_id
FROM {schema}.job_running_{slot} AS r
WHERE ` + held + `
FOR UPDATE SKIP LOCKED`)
	snapshotTooOld = Define(`SELECT {schema}.snapshot_too_old()`)
)

// Unseen explains why a step within a transaction met no claim. The rows of
// job_running may have been moved since the transaction took its snapshot: then
// the transaction fails with 40001, as one does that has to be repeated. No
// error: the claim is gone, or locked.
func (db *DB) Unseen(ctx context.Context, limit time.Duration, tx Querier, c Claim) error {
	free, err := db.Changed(ctx, limit, Step{Statement: claimFree, Slot: c.Slot(), Args: []any{c.ID, c.Nonce}})
	if err != nil || !free {
		return err
	}
	_, err = db.ChangedWithin(ctx, tx, Step{Statement: snapshotTooOld})
	return err
}
