package store

// Every statement here moves jobs out of job_running and matches both parts of
// the fence, claim_id and claim_nonce. A claim that no longer exists moves
// nothing; the caller learns which claims were moved from the rows returned.

// Settle is a batch of outcomes of one sort, by column. Which columns a
// statement reads, its comment says.
type Settle struct {
	ClaimIDs []int64
	Nonces   []int64
	Lanes    []int16  // give back: the lane to enter
	Reasons  []string // why the job waits or ended
	Texts    []*string
	Stacks   []*string
	States   []string
	RunAtUS  []*int64 // absolute, microseconds since 1970
	AfterUS  []*int64 // relative
	Keep     []int64  // seconds in the archive or the DLQ; -1 for ever, -2 not at all
}

// LockClaims locks the rows first, in one order, so that the statement after it
// has a snapshot that sees every cancel request made before the lock.
var LockClaims = Define(`
SELECT r.claim_id
FROM unnest($1::bigint[], $2::bigint[]) AS s(claim_id, claim_nonce)
JOIN {schema}.job_running AS r ON r.claim_id = s.claim_id AND r.claim_nonce = s.claim_nonce
ORDER BY r.claim_id
FOR UPDATE OF r`)

// SettleWaiting moves jobs to job_waiting: retries, with their error recorded,
// reschedules, deferrals and parked jobs. A job that was asked to stop goes to
// job_finished as cancelled instead. Which counter moves, the reason tells: a
// retry has used its attempt; a reschedule gives it back and counts; a deferral
// and a parked job give it back. A job that its worker let go of, one way or
// another, has not crashed in a row; only one that never ran keeps the count.
var SettleWaiting = Define(`
WITH moved AS (
    DELETE FROM {schema}.job_running AS r
    USING unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::bigint[])
          AS s(claim_id, claim_nonce, reason, error, stack, run_at_us, after_us)
    WHERE r.claim_id = s.claim_id AND r.claim_nonce = s.claim_nonce
    RETURNING {r.job}, r.claim_id, r.claim_nonce, r.claimed_at, r.worker_id,
              s.reason, s.error, s.stack, s.run_at_us, s.after_us
), judged AS MATERIALIZED (
    SELECT m.claim_id, m.claimed_at, m.worker_id, m.reason, m.run_at_us, m.after_us,
           m.id, m.created_at, m.max_attempts, m.payload_bytes, m.priority, m.queue, m.kind,
           m.unique_scope, m.unique_key, m.fingerprint, m.payload, m.raw, m.props, m.attempt AS this_attempt,
           CASE WHEN m.reason = 'retry' THEN m.attempt ELSE m.attempt - 1 END AS attempt,
           m.reprocess_count + CASE WHEN m.reason = 'rescheduled' THEN 1 ELSE 0 END AS reprocess_count,
           CASE WHEN m.reason IN ('retry', 'rescheduled') THEN 0 ELSE m.crash_count END AS crash_count,
           CASE WHEN m.error IS NULL THEN m.errors
                ELSE {schema}.append_error(m.errors, m.attempt, m.reason, m.error, m.stack) END AS errors,
           c.claim_id IS NOT NULL AS cancelled, c.reason AS cancel_reason
    FROM moved AS m
    LEFT JOIN {schema}.job_cancel AS c ON c.claim_id = m.claim_id AND c.claim_nonce = m.claim_nonce
), waiting AS (
    INSERT INTO {schema}.job_waiting ({job}, run_at, reason)
    SELECT {j.job},
           CASE WHEN j.reason = 'unknown_kind' THEN 'infinity'::timestamptz
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
), released AS (
    DELETE FROM {schema}.job_unique AS u
    USING judged AS j
    WHERE j.cancelled AND u.scope = j.unique_scope AND u.key = j.unique_key AND u.job_id = j.id
), unmarked AS (
    DELETE FROM {schema}.job_fingerprint AS f
    USING judged AS j
    WHERE j.cancelled AND f.fingerprint = j.fingerprint AND f.job_id = j.id
)
SELECT j.claim_id FROM judged AS j`)

// SettleGiveBack moves jobs back to the queue as if they had never been claimed:
// in the lane given (the front lane, or the suspects'), at their old place.
// Jobs that were asked to stop end as cancelled.
var SettleGiveBack = Define(`
WITH moved AS (
    DELETE FROM {schema}.job_running AS r
    USING unnest($1::bigint[], $2::bigint[], $3::smallint[]) AS s(claim_id, claim_nonce, lane)
    WHERE r.claim_id = s.claim_id AND r.claim_nonce = s.claim_nonce
    RETURNING {r.job}, r.claim_id, r.claim_nonce, r.claimed_at, r.worker_id, r.seq, s.lane
), judged AS MATERIALIZED (
    SELECT {m.job}, m.claim_id, m.claimed_at, m.worker_id, m.seq, m.lane,
           c.claim_id IS NOT NULL AS cancelled, c.reason AS cancel_reason
    FROM moved AS m
    LEFT JOIN {schema}.job_cancel AS c ON c.claim_id = m.claim_id AND c.claim_nonce = m.claim_nonce
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
), released AS (
    DELETE FROM {schema}.job_unique AS u
    USING judged AS j
    WHERE j.cancelled AND u.scope = j.unique_scope AND u.key = j.unique_key AND u.job_id = j.id
), unmarked AS (
    DELETE FROM {schema}.job_fingerprint AS f
    USING judged AS j
    WHERE j.cancelled AND f.fingerprint = j.fingerprint AND f.job_id = j.id
)
SELECT j.claim_id FROM judged AS j`)

// SettleAside moves ended jobs to job_finished, where the janitor finds them:
// the way of an outcome that cannot go to the archive or the DLQ directly.
var SettleAside = Define(`
WITH moved AS (
    DELETE FROM {schema}.job_running AS r
    USING unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::text[])
          AS s(claim_id, claim_nonce, state, reason, error, stack)
    WHERE r.claim_id = s.claim_id AND r.claim_nonce = s.claim_nonce
    RETURNING {r.job}, r.claim_id, r.claimed_at, r.worker_id, s.state, s.reason, s.error, s.stack
), finished AS (
    INSERT INTO {schema}.job_finished ({job}, started_at, worker_id, state, reason)
    SELECT m.id, m.created_at, m.attempt, m.max_attempts, m.reprocess_count + CASE WHEN m.state = 'bad_job' THEN 1 ELSE 0 END,
           m.crash_count, m.payload_bytes,
           m.priority, m.queue, m.kind, m.unique_scope, m.unique_key, m.fingerprint, m.payload, m.raw,
           CASE WHEN m.error IS NULL THEN m.errors
                ELSE {schema}.append_error(m.errors, m.attempt, m.state, m.error, m.stack) END,
           m.props, m.claimed_at, m.worker_id, m.state, nullif(m.reason, '')
    FROM moved AS m
), released AS (
    DELETE FROM {schema}.job_unique AS u
    USING moved AS m
    WHERE u.scope = m.unique_scope AND u.key = m.unique_key AND u.job_id = m.id
), unmarked AS (
    DELETE FROM {schema}.job_fingerprint AS f
    USING moved AS m
    WHERE f.fingerprint = m.fingerprint AND f.job_id = m.id
)
SELECT m.claim_id FROM moved AS m`)

// ForgetLeases drops the leases of claims that have ended.
var ForgetLeases = Define(`
DELETE FROM {schema}.job_lease AS l
USING unnest($1::bigint[], $2::bigint[]) AS s(claim_id, claim_nonce)
WHERE l.claim_id = s.claim_id AND l.claim_nonce = s.claim_nonce`)
