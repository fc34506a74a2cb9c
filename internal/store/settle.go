package store

import "fmt"

// Every statement here moves jobs out of job_running and matches both parts of
// the fence, claim_id and claim_nonce. A claim that no longer exists moves
// nothing; the caller learns which claims were moved from the rows returned.
//
// The claims come as arrays sorted by claim_id. The rows are found by claim_id =
// ANY, an index scan whatever the statistics say, where a join with the arrays
// would be planned by them, badly when the plan was made on an empty table. The
// place of a row's claim in the arrays is width_bucket's answer, a binary search.

// The tables are those of one slot of the ring: the claims of a batch that are in
// another have a statement of their own.
const fenced = `r.claim_id = ANY ($1::bigint[])
      AND r.claim_nonce = ($2::bigint[])[width_bucket(r.claim_id, $1::bigint[])]`

// DeleteClaims ends the claims in $1 whose nonces are in $2, as r.
const DeleteClaims = `DELETE FROM {schema}.job_running_{slot} AS r
    WHERE ` + fenced

// Of is what the array in a parameter says of the claim r.
func Of(parameter int, sort string) string {
	return fmt.Sprintf("($%d::%s[])[width_bucket(r.claim_id, $1::bigint[])]", parameter, sort)
}

// CancelRequested joins to the claim m the request to cancel it, as c, if there
// is one and cond holds.
func CancelRequested(cond string) string {
	return `LEFT JOIN LATERAL (
        SELECT r.claim_id, r.reason
        FROM {schema}.job_cancel AS r
        WHERE ` + cond + ` AND r.claim_id = m.claim_id AND r.claim_nonce = m.claim_nonce
        LIMIT 1
    ) AS c ON true`
}

// Settle is a batch of outcomes of one sort, by column. Which columns a
// statement reads, its comment says.
type Settle struct {
	Slot     int // of all the claims
	ClaimIDs []int64
	Nonces   []int64
	Lanes    []int16  // give back: the lane to enter
	Reasons  []string // why the job waits or ended
	Texts    []*string
	Stacks   []*string
	States   []string
	RunAtUS  []*int64 // absolute, microseconds since 1970
	AfterUS  []*int64 // relative
	Fates    []string // of gates
	Keep     []int64  // seconds in the archive or the DLQ; -1 for ever, -2 not at all
	Results  []string // JSON text
}

// LockClaims locks the rows first, in one order, so that the statement after it
// has a snapshot that sees every cancel request made before the lock.
var LockClaims = Define(`
SELECT r.claim_id
FROM {schema}.job_running_{slot} AS r
WHERE ` + fenced + `
ORDER BY r.claim_id
FOR UPDATE`)

// settleWaiting moves jobs to job_waiting: retries, with their error recorded,
// reschedules, deferrals and parked jobs. A job that was asked to stop goes to
// job_finished as cancelled instead. Which counter moves, the reason tells: a
// retry has used its attempt; a reschedule gives it back and counts; a deferral
// and a parked job give it back. A job that its worker let go of, one way or
// another, has not crashed in a row; only one that never ran keeps the count.
var settleWaiting = Define(`
WITH moved AS (
    ` + DeleteClaims + `
    RETURNING {r.job}, r.claim_id, r.claim_nonce, r.claimed_at, r.worker_id,
              ` + Of(3, "text") + ` AS reason,
              ` + Of(4, "text") + ` AS error,
              ` + Of(5, "text") + ` AS stack,
              ` + Of(6, "bigint") + ` AS run_at_us,
              ` + Of(7, "bigint") + ` AS after_us
), judged AS MATERIALIZED (
    SELECT m.claim_id, m.claimed_at, m.worker_id, m.reason, m.run_at_us, m.after_us,
           m.id, m.created_at, m.max_attempts, m.payload_bytes, m.priority, m.queue, m.kind,
           m.unique_scope, m.unique_key, m.fingerprint, m.payload, m.raw, m.props, m.attempt AS this_attempt,
           CASE WHEN m.reason = 'retry' THEN m.attempt ELSE m.attempt - 1 END AS attempt,
           m.reprocess_count + CASE WHEN m.reason IN ('rescheduled', 'gated') THEN 1 ELSE 0 END AS reprocess_count,
           CASE WHEN m.reason IN ('retry', 'rescheduled', 'gated') THEN 0 ELSE m.crash_count END AS crash_count,
           CASE WHEN m.error IS NULL THEN m.errors
                ELSE {schema}.append_error(m.errors, m.attempt, m.reason, m.error, m.stack) END AS errors,
           c.claim_id IS NOT NULL AS cancelled, c.reason AS cancel_reason
    FROM moved AS m
    ` + CancelRequested("true") + `
), waiting AS (
    INSERT INTO {schema}.job_waiting ({job}, run_at, reason)
    SELECT {j.job},
           CASE WHEN j.reason IN ('unknown_kind', 'gated') THEN 'infinity'::timestamptz
                WHEN j.run_at_us IS NOT NULL THEN 'epoch'::timestamptz + j.run_at_us * interval '1 microsecond'
                ELSE clock_timestamp() + coalesce(j.after_us, 0) * interval '1 microsecond' END,
           j.reason
    FROM judged AS j
    WHERE NOT j.cancelled
), finished AS (
    INSERT INTO {schema}.job_finished ({job}, started_at, worker_id, state, reason)
    SELECT j.id, j.created_at, j.this_attempt, j.max_attempts, j.reprocess_count, j.crash_count, j.payload_bytes,
           j.priority, j.queue, j.kind, j.unique_scope, j.unique_key, j.fingerprint, j.payload, j.raw, j.errors, j.props,
           j.claimed_at, j.worker_id, 'cancelled', coalesce(nullif(j.cancel_reason, ''), 'cancelled while running')
    FROM judged AS j
    WHERE j.cancelled
), ` + Release("judged", "h.cancelled") + `
SELECT j.claim_id FROM judged AS j`)

// SettleWaiting reads ClaimIDs, Nonces, Reasons, Texts, Stacks, RunAtUS, AfterUS.
func SettleWaiting(s *Settle) Step {
	return Step{Statement: settleWaiting, Slot: s.Slot, Args: []any{
		s.ClaimIDs, s.Nonces, s.Reasons, s.Texts, s.Stacks, s.RunAtUS, s.AfterUS,
	}}
}

// settleGiveBack moves jobs back to the queue as if they had never been claimed:
// in the lane given (the front lane, or the suspects'), at their old place.
// Jobs that were asked to stop end as cancelled.
var settleGiveBack = Define(`
WITH moved AS (
    ` + DeleteClaims + `
    RETURNING {r.job}, r.claim_id, r.claim_nonce, r.claimed_at, r.worker_id, r.seq,
              ` + Of(3, "smallint") + ` AS lane
), judged AS MATERIALIZED (
    SELECT {m.job}, m.claim_id, m.claimed_at, m.worker_id, m.seq, m.lane,
           c.claim_id IS NOT NULL AS cancelled, c.reason AS cancel_reason
    FROM moved AS m
    ` + CancelRequested("true") + `
), queued AS (
    INSERT INTO {schema}.job_queue ({job}, seq, lane)
    SELECT j.id, j.created_at, j.attempt - 1, j.max_attempts, j.reprocess_count, j.crash_count, j.payload_bytes,
           j.priority, j.queue, j.kind, j.unique_scope, j.unique_key, j.fingerprint, j.payload, j.raw, j.errors, j.props,
           j.seq, j.lane
    FROM judged AS j
    WHERE NOT j.cancelled
), finished AS (
    INSERT INTO {schema}.job_finished ({job}, started_at, worker_id, state, reason)
    SELECT {j.job}, j.claimed_at, j.worker_id, 'cancelled', coalesce(nullif(j.cancel_reason, ''), 'cancelled while running')
    FROM judged AS j
    WHERE j.cancelled
), ` + Release("judged", "h.cancelled") + `
SELECT j.claim_id FROM judged AS j`)

// SettleGiveBack reads ClaimIDs, Nonces and Lanes.
func SettleGiveBack(s *Settle) Step {
	return Step{Statement: settleGiveBack, Slot: s.Slot, Args: []any{s.ClaimIDs, s.Nonces, s.Lanes}}
}

// settleAside moves ended jobs to job_finished, where the janitor finds them:
// the way of an outcome that cannot go to the archive or the DLQ directly. One
// that was asked to stop and has not completed ends as cancelled.
var settleAside = Define(`
WITH moved AS (
    ` + DeleteClaims + `
    RETURNING {r.job}, r.claim_id, r.claim_nonce, r.claimed_at, r.worker_id,
              ` + Of(3, "text") + ` AS state,
              ` + Of(4, "text") + ` AS reason,
              ` + Of(5, "text") + ` AS error,
              ` + Of(6, "text") + ` AS stack
), finished AS (
    INSERT INTO {schema}.job_finished ({job}, started_at, worker_id, state, reason)
    SELECT m.id, m.created_at, m.attempt, m.max_attempts, m.reprocess_count + CASE WHEN m.state = 'bad_job' THEN 1 ELSE 0 END,
           m.crash_count, m.payload_bytes,
           m.priority, m.queue, m.kind, m.unique_scope, m.unique_key, m.fingerprint, m.payload, m.raw,
           CASE WHEN m.error IS NULL THEN m.errors
                ELSE {schema}.append_error(m.errors, m.attempt, m.state, m.error, m.stack) END,
           m.props, m.claimed_at, m.worker_id,
           CASE WHEN c.claim_id IS NULL THEN m.state ELSE 'cancelled' END,
           CASE WHEN c.claim_id IS NULL THEN nullif(m.reason, '') ELSE coalesce(nullif(c.reason, ''), 'cancelled while running') END
    FROM moved AS m
    ` + CancelRequested("m.state <> 'completed'") + `
), ` + Release("moved", "true") + `
SELECT m.claim_id FROM moved AS m`)

// SettleAside reads ClaimIDs, Nonces, States, Reasons, Texts and Stacks.
func SettleAside(s *Settle) Step {
	return Step{Statement: settleAside, Slot: s.Slot, Args: []any{
		s.ClaimIDs, s.Nonces, s.States, s.Reasons, s.Texts, s.Stacks,
	}}
}

// settleResultsAside is settleAside for completed jobs that have a result.
var settleResultsAside = Define(`
WITH moved AS (
    ` + DeleteClaims + `
    RETURNING {r.job}, r.claim_id, r.claimed_at, r.worker_id,
              ` + Of(3, "text") + `::jsonb AS result
), finished AS (
    INSERT INTO {schema}.job_finished ({job}, started_at, worker_id, state, result)
    SELECT {m.job}, m.claimed_at, m.worker_id, 'completed', m.result
    FROM moved AS m
), ` + Release("moved", "true") + `
SELECT m.claim_id FROM moved AS m`)

// SettleResultsAside reads ClaimIDs, Nonces and Results.
func SettleResultsAside(s *Settle) Step {
	return Step{Statement: settleResultsAside, Slot: s.Slot, Args: []any{s.ClaimIDs, s.Nonces, s.Results}}
}

// forgetLeases drops the leases of claims that have ended.
var forgetLeases = Define(`
DELETE FROM {schema}.job_lease AS l
WHERE l.claim_id = ANY ($1::bigint[])
  AND l.claim_nonce = ($2::bigint[])[width_bucket(l.claim_id, $1::bigint[])]`)

// ForgetLeases reads ClaimIDs and Nonces.
func ForgetLeases(s *Settle) Step {
	return Step{Statement: forgetLeases, Args: []any{s.ClaimIDs, s.Nonces}}
}

// Release are the CTEs that free what jobs hold beside their rows when they
// end, key, fingerprint and slot: those of the CTE from for which cond, over the alias h, is true. Each
// row is found by an index, without a join that statistics could turn round.
// Rows of job_unique are never updated, so a row found by its ctid is that row.
func Release(from, cond string) string {
	return `released AS (
    DELETE FROM {schema}.job_unique
    WHERE ctid = ANY (ARRAY(
        SELECT held.ctid
        FROM ` + from + ` AS h
        CROSS JOIN LATERAL (
            SELECT u.ctid
            FROM {schema}.job_unique AS u
            WHERE u.scope = h.unique_scope AND u.key = h.unique_key AND u.job_id = h.id
            LIMIT 1
        ) AS held
        WHERE h.unique_key IS NOT NULL AND ` + cond + `
    ))
), unmarked AS (
    DELETE FROM {schema}.job_fingerprint
    WHERE job_id = ANY (ARRAY(
        SELECT h.id
        FROM ` + from + ` AS h
        WHERE h.fingerprint IS NOT NULL AND ` + cond + `
    ))
), unslotted AS (
    UPDATE {schema}.job_slot
    SET job_id = NULL, seq = DEFAULT
    WHERE job_id = ANY (ARRAY(
        SELECT h.id
        FROM ` + from + ` AS h
        WHERE h.props ? 'bounded' AND ` + cond + `
    ))
)`
}
