package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// OutcomeColumns are what job_outcome keeps of a job that has ended.
const OutcomeColumns = `id, created_at, started_at, worker_id, attempt, max_attempts, reprocess_count, crash_count,
         priority, state, queue, kind, unique_key, fingerprint, reason, errors, props, result`

// settleOutcome ends jobs of which nothing is kept but what whoever waits for
// them is to be told. One that was asked to stop and has not completed ends as
// cancelled.
var settleOutcome = Define(`
WITH moved AS (
    ` + DeleteClaims + `
    RETURNING {r.job}, r.claim_id, r.claim_nonce, r.claimed_at, r.worker_id,
              ` + Of(3, "text") + ` AS state,
              ` + Of(4, "text") + ` AS reason,
              ` + Of(5, "text") + ` AS error,
              ` + Of(6, "text") + ` AS stack,
              nullif(` + Of(7, "text") + `, '')::jsonb AS result
), told AS (
    INSERT INTO {schema}.job_outcome
        (` + OutcomeColumns + `)
    SELECT m.id, m.created_at, m.claimed_at, m.worker_id, m.attempt, m.max_attempts,
           m.reprocess_count + CASE WHEN m.state = 'bad_job' THEN 1 ELSE 0 END, m.crash_count, m.priority,
           CASE WHEN c.claim_id IS NULL THEN m.state ELSE 'cancelled' END,
           m.queue, m.kind, m.unique_key, m.fingerprint,
           CASE WHEN c.claim_id IS NULL THEN nullif(m.reason, '') ELSE coalesce(nullif(c.reason, ''), 'cancelled while running') END,
           CASE WHEN m.error IS NULL THEN m.errors
                ELSE {schema}.append_error(m.errors, m.attempt, m.state, m.error, m.stack) END,
           m.props, m.result
    FROM moved AS m
    ` + CancelRequested("m.state <> 'completed'") + `
), ` + Release("moved", "true") + `, unpacked AS (
    DELETE FROM {schema}.job_payload
    WHERE id = ANY (ARRAY(SELECT m.id FROM moved AS m WHERE m.payload_bytes > 0))
)
SELECT m.claim_id FROM moved AS m`)

// SettleOutcome reads ClaimIDs, Nonces, States, Reasons, Texts, Stacks and
// Results, which are empty for none.
func SettleOutcome(s *Settle) Step {
	return Step{Statement: settleOutcome, Slot: s.Slot, Args: []any{
		s.ClaimIDs, s.Nonces, s.States, s.Reasons, s.Texts, s.Stacks, s.Results,
	}}
}

// A job that has moved on to job_outcome is in no other table, as one statement
// sees it.
var outcomes = Define(`
SELECT j.id, j.queue, j.kind, j.state, j.reason, j.priority, j.attempt, j.max_attempts,
       j.reprocess_count, j.crash_count, j.unique_key, j.fingerprint, j.created_at, nullif(j.run_at, 'infinity'),
       j.started_at, j.finished_at, j.worker_id, NULL::jsonb, NULL::bytea, j.errors, j.props, j.result, NULL::uuid
FROM {schema}.job AS j
WHERE j.id = ANY ($1::text[]::uuid[])
UNION ALL
SELECT o.id, o.queue, o.kind, o.state, o.reason, o.priority, o.attempt, o.max_attempts,
       o.reprocess_count, o.crash_count, o.unique_key, o.fingerprint, o.created_at, NULL::timestamptz,
       o.started_at, o.finished_at, o.worker_id, NULL::jsonb, NULL::bytea, o.errors, o.props, o.result, NULL::uuid
FROM {schema}.job_outcome AS o
WHERE o.id = ANY ($1::text[]::uuid[])`)

// Outcomes returns the jobs that are anywhere, without their payloads, in one
// look.
func (db *DB) Outcomes(ctx context.Context, limit time.Duration, ids [][16]byte) (map[[16]byte]*Info, error) {
	found := make(map[[16]byte]*Info, len(ids))
	err := db.Tx(ctx, limit, Step{Statement: outcomes, Args: []any{uuids(ids)}, Scan: func(row pgx.Rows) error {
		i := &Info{}
		if err := i.scan(row); err != nil {
			return err
		}
		found[i.ID] = i
		return nil
	}})
	return found, err
}
