package janitor

import (
	"strings"

	"github.com/simplequeue/simplequeue/internal/store"
)

// How long a finished job is kept, where a number of seconds stands.
const (
	Forever = -1 // in a partition that does not expire
	Nothing = -2 // not at all
)

// A running job ends: out of job_running under its fence, its unique key free,
// its row in the archive or the DLQ, all in one statement. A payload that was
// stored apart comes along.
const settle = `
WITH moved AS (
    DELETE FROM {schema}.job_running AS r
    USING unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::text[])
          AS s(claim_id, claim_nonce, keep, state, reason, error, stack)
    WHERE r.claim_id = s.claim_id AND r.claim_nonce = s.claim_nonce
    RETURNING {r.job}, r.claim_id, r.claimed_at, r.worker_id, s.keep, s.state, s.reason, s.error, s.stack
), ` + release + `, kept AS (
    INSERT INTO {schema}.{target}
        (id, created_at, started_at, finished_at, worker_id, expires_on, attempt, max_attempts, reprocess_count,
         crash_count, priority, state, queue, kind, unique_scope, unique_key, fingerprint, reason, payload, raw, errors, props)
    SELECT m.id, m.created_at, m.claimed_at, clock_timestamp(), m.worker_id, ` + expiresOn + `,
           m.attempt, m.max_attempts, m.reprocess_count + CASE WHEN m.state = 'bad_job' THEN 1 ELSE 0 END, m.crash_count, m.priority,
           coalesce(m.state, 'completed'),
           m.queue, m.kind, m.unique_scope, m.unique_key, m.fingerprint, nullif(m.reason, ''),
           coalesce(m.payload, p.payload), coalesce(m.raw, p.raw),
           CASE WHEN m.error IS NULL THEN m.errors
                ELSE {schema}.append_error(m.errors, m.attempt, m.state, m.error, m.stack) END,
           m.props
    FROM moved AS m
    LEFT JOIN {schema}.job_payload AS p ON p.id = CASE WHEN m.payload_bytes > 0 THEN m.id END
    WHERE m.keep <> -2
)
SELECT m.claim_id FROM moved AS m`

// What a live job holds beside its row. The CASE and the null keys make each
// join an index probe that costs nothing for a job that holds nothing.
const release = `released AS (
    DELETE FROM {schema}.job_unique AS u
    USING moved AS m
    WHERE u.scope = m.unique_scope AND u.key = m.unique_key AND u.job_id = m.id
), unmarked AS (
    DELETE FROM {schema}.job_fingerprint AS f
    USING moved AS m
    WHERE f.fingerprint = m.fingerprint AND f.job_id = m.id
), unpacked AS (
    DELETE FROM {schema}.job_payload AS p
    USING moved AS m
    WHERE p.id = CASE WHEN m.payload_bytes > 0 THEN m.id END
)`

const expiresOn = `CASE WHEN m.keep = -1 THEN 'infinity'::date
                ELSE ((clock_timestamp() AT TIME ZONE 'UTC') + m.keep * interval '1 second')::date END`

var (
	settleArchive = store.Define(strings.ReplaceAll(settle, "{target}", "job_queue_archive"))
	settleDLQ     = store.Define(strings.ReplaceAll(settle, "{target}", "job_queue_dlq"))
)

// Archive is the step that ends running jobs as completed. It reads ClaimIDs,
// Nonces and Keep, and returns the claims that were still valid.
func Archive(s *store.Settle) store.Step {
	return store.Step{
		Statement: settleArchive,
		Args:      []any{s.ClaimIDs, s.Nonces, s.Keep, s.States, s.Reasons, s.Texts, s.Stacks},
	}
}

// DeadLetter is the step that ends running jobs in any other terminal state. It
// reads ClaimIDs, Nonces, Keep, States, Reasons, Texts and Stacks.
func DeadLetter(s *store.Settle) store.Step {
	return store.Step{
		Statement: settleDLQ,
		Args:      []any{s.ClaimIDs, s.Nonces, s.Keep, s.States, s.Reasons, s.Texts, s.Stacks},
	}
}

// The sweep does for job_finished what settle does for job_running. Retention
// comes from the job, else from its queue, else from the default.
const sweep = `
WITH gone AS (
    DELETE FROM {schema}.job_finished
    WHERE ctid = ANY (ARRAY(
        SELECT f.ctid
        FROM {schema}.job_finished AS f
        WHERE (f.state = 'completed') = {completed}
        ORDER BY f.id
        LIMIT $1::integer
        FOR UPDATE SKIP LOCKED
    ))
    RETURNING {job}, started_at, finished_at, worker_id, state, reason, result
), moved AS MATERIALIZED (
    SELECT {g.job}, g.started_at, g.finished_at, g.worker_id, g.state, g.reason, g.result,
           coalesce((g.props ->> '{keep}')::bigint, q.keep, $2::bigint) AS keep
    FROM gone AS g
    LEFT JOIN unnest($3::text[], $4::bigint[]) AS q(queue, keep) ON q.queue = g.queue
), ` + release + `, kept AS (
    INSERT INTO {schema}.{target}
        (id, created_at, started_at, finished_at, worker_id, expires_on, attempt, max_attempts, reprocess_count,
         crash_count, priority, state, queue, kind, unique_scope, unique_key, fingerprint, reason, payload, raw, errors, props, result)
    SELECT m.id, m.created_at, m.started_at, m.finished_at, m.worker_id, ` + expiresOn + `,
           m.attempt, m.max_attempts, m.reprocess_count, m.crash_count, m.priority, m.state,
           m.queue, m.kind, m.unique_scope, m.unique_key, m.fingerprint, m.reason,
           coalesce(m.payload, p.payload), coalesce(m.raw, p.raw), m.errors, m.props, m.result
    FROM moved AS m
    LEFT JOIN {schema}.job_payload AS p ON p.id = CASE WHEN m.payload_bytes > 0 THEN m.id END
    WHERE m.keep <> -2
)
SELECT count(*) FROM moved`

var (
	sweepArchive = store.Define(strings.NewReplacer(
		"{target}", "job_queue_archive", "{completed}", "true", "{keep}", "keep_archive").Replace(sweep))
	sweepDLQ = store.Define(strings.NewReplacer(
		"{target}", "job_queue_dlq", "{completed}", "false", "{keep}", "keep_dlq").Replace(sweep))
)

var (
	makePartitions = store.Define(`SELECT {schema}.make_partitions($1::text, $2::bigint[], $3::integer)`)
	dropExpired    = store.Define(`SELECT {schema}.drop_expired($1::text)`)
)
