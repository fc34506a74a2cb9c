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
// stored apart comes along. A job that was asked to stop and has not completed
// ends as cancelled, for the reason that was given, whether its handler has
// heard of it or not.
var settle = `
WITH moved AS (
    ` + store.DeleteClaims + `
    RETURNING {r.job}, r.claim_id, r.claim_nonce, r.claimed_at, r.worker_id,
              ` + store.Of(3, "bigint") + ` AS keep{outcome}
), ` + release + `, kept AS (
    INSERT INTO {schema}.{target}
        (id, created_at, started_at, finished_at, worker_id, expires_on, attempt, max_attempts, reprocess_count,
         crash_count, priority, state, queue, kind, unique_scope, unique_key, fingerprint, reason, payload, raw, errors, props{column})
    SELECT m.id, m.created_at, m.claimed_at, clock_timestamp(), m.worker_id, ` + expiresOn + `,
           m.attempt, m.max_attempts, {reprocess_count}, m.crash_count, m.priority, {state},
           m.queue, m.kind, m.unique_scope, m.unique_key, m.fingerprint, {reason},
           coalesce(m.payload, p.payload), coalesce(m.raw, p.raw), {errors}, m.props{value}
    FROM moved AS m
    ` + payload + `{request}
    WHERE m.keep <> -2
)
SELECT m.claim_id FROM moved AS m`

// What a live job holds beside its row.
var release = store.Release("moved", "true") + `, unpacked AS (
    DELETE FROM {schema}.job_payload
    WHERE id = ANY (ARRAY(SELECT m.id FROM moved AS m WHERE m.payload_bytes > 0))
)`

// A payload stored apart is one index probe; a job without one makes none.
const payload = `LEFT JOIN LATERAL (
        SELECT p.payload, p.raw
        FROM {schema}.job_payload AS p
        WHERE m.payload_bytes > 0 AND p.id = m.id
        LIMIT 1
    ) AS p ON true`

const expiresOn = `CASE WHEN m.keep = -1 THEN 'infinity'::date
                ELSE ((clock_timestamp() AT TIME ZONE 'UTC') + m.keep * interval '1 second')::date END`

// A completed job with a result has a statement of its own, so that one without
// writes no column more for it.
var completed = []string{
	"{target}", "job_queue_archive", "{request}", "", "{state}", "'completed'", "{reason}", "NULL",
	"{errors}", "m.errors", "{reprocess_count}", "m.reprocess_count",
}

var (
	settleArchive = store.Define(strings.NewReplacer(append(completed,
		"{outcome}", "", "{column}", "", "{value}", "")...).Replace(settle))
	settleResults = store.Define(strings.NewReplacer(append(completed,
		"{outcome}", `,
              `+store.Of(4, "text")+`::jsonb AS result`,
		"{column}", ", result", "{value}", ", m.result")...).Replace(settle))
	settleDLQ = store.Define(strings.NewReplacer(
		"{target}", "job_queue_dlq",
		"{outcome}", `,
              `+store.Of(4, "text")+` AS state,
              `+store.Of(5, "text")+` AS reason,
              `+store.Of(6, "text")+` AS error,
              `+store.Of(7, "text")+` AS stack`,
		"{request}", `
    `+store.CancelRequested("true"),
		"{state}", "CASE WHEN c.claim_id IS NULL THEN m.state ELSE 'cancelled' END",
		"{reason}", `CASE WHEN c.claim_id IS NULL THEN nullif(m.reason, '')
                ELSE coalesce(nullif(c.reason, ''), 'cancelled while running') END`,
		"{errors}", `CASE WHEN m.error IS NULL THEN m.errors
                ELSE {schema}.append_error(m.errors, m.attempt, m.state, m.error, m.stack) END`,
		"{reprocess_count}", "m.reprocess_count + CASE WHEN m.state = 'bad_job' THEN 1 ELSE 0 END",
		"{column}", "", "{value}", "").Replace(settle))
)

// Archive is the step that ends running jobs as completed. It reads ClaimIDs,
// sorted, Nonces and Keep, and returns the claims that were still valid.
func Archive(s *store.Settle) store.Step {
	return store.Step{Statement: settleArchive, Slot: s.Slot, Args: []any{s.ClaimIDs, s.Nonces, s.Keep}}
}

// ArchiveResults is Archive for jobs with results, which it reads beside what
// that reads.
func ArchiveResults(s *store.Settle) store.Step {
	return store.Step{Statement: settleResults, Slot: s.Slot, Args: []any{s.ClaimIDs, s.Nonces, s.Keep, s.Results}}
}

// DeadLetter is the step that ends running jobs in any other terminal state. It
// reads ClaimIDs, sorted, Nonces, Keep, States, Reasons, Texts and Stacks.
func DeadLetter(s *store.Settle) store.Step {
	return store.Step{
		Statement: settleDLQ,
		Slot:      s.Slot,
		Args:      []any{s.ClaimIDs, s.Nonces, s.Keep, s.States, s.Reasons, s.Texts, s.Stacks},
	}
}

// The sweep does for job_finished what settle does for job_running. It takes
// whatever comes next by id: one that looked for a state would walk over all
// that ended otherwise, again for each batch. Retention comes from the job, else
// from its queue, else from the default; the outcome of a job that somebody may
// be waiting for stays for ten minutes at least.
var sweep = store.Define(`
WITH gone AS (
    DELETE FROM {schema}.job_finished
    WHERE ctid = ANY (ARRAY(
        SELECT f.ctid
        FROM {schema}.job_finished AS f
        WHERE f.id >= $2::uuid
        ORDER BY f.id
        LIMIT $1::integer
        FOR UPDATE SKIP LOCKED
    ))
    RETURNING {job}, started_at, finished_at, worker_id, state, reason, result
), moved AS MATERIALIZED (
    SELECT {g.job}, g.started_at, g.finished_at, g.worker_id, g.state, g.reason, g.result,
           CASE WHEN g.props ? 'awaited' AND k.keep BETWEEN 0 AND 599 THEN 600 ELSE k.keep END AS keep
    FROM gone AS g
    LEFT JOIN unnest($5::text[], $6::bigint[], $7::bigint[]) AS q(queue, archive, dlq) ON q.queue = g.queue
    CROSS JOIN LATERAL (
        SELECT CASE WHEN g.state = 'completed' THEN coalesce((g.props ->> 'keep_archive')::bigint, q.archive, $3::bigint)
                    ELSE coalesce((g.props ->> 'keep_dlq')::bigint, q.dlq, $4::bigint) END AS keep
    ) AS k
), ` + release + `, ` + store.ReleaseGates("moved", "true", "h.state NOT IN ('completed', 'cancelled')") + `, archived AS (` + keepMoved("job_queue_archive", "m.state = 'completed'") + `
), dead AS (` + keepMoved("job_queue_dlq", "m.state <> 'completed'") + `
), told AS (
    INSERT INTO {schema}.job_outcome
        (` + store.OutcomeColumns + `)
    SELECT m.id, m.created_at, m.started_at, m.worker_id, m.attempt, m.max_attempts, m.reprocess_count, m.crash_count,
           m.priority, m.state, m.queue, m.kind, m.unique_key, m.fingerprint, m.reason, m.errors, m.props, m.result
    FROM moved AS m
    WHERE m.keep = -2 AND m.props ? 'awaited'
)
SELECT count(*) FILTER (WHERE m.state = 'completed'), count(*) FILTER (WHERE m.state <> 'completed'),
       (SELECT last.id FROM moved AS last ORDER BY last.id DESC LIMIT 1)
FROM moved AS m`)

func keepMoved(target, cond string) string {
	return `
    INSERT INTO {schema}.` + target + `
        (id, created_at, started_at, finished_at, worker_id, expires_on, attempt, max_attempts, reprocess_count,
         crash_count, priority, state, queue, kind, unique_scope, unique_key, fingerprint, reason, payload, raw, errors, props, result)
    SELECT m.id, m.created_at, m.started_at, m.finished_at, m.worker_id, ` + expiresOn + `,
           m.attempt, m.max_attempts, m.reprocess_count, m.crash_count, m.priority, m.state,
           m.queue, m.kind, m.unique_scope, m.unique_key, m.fingerprint, m.reason,
           coalesce(m.payload, p.payload), coalesce(m.raw, p.raw), m.errors, m.props, m.result
    FROM moved AS m
    ` + payload + `
    WHERE m.keep <> -2 AND ` + cond
}

var (
	makePartitions = store.Define(`SELECT {schema}.make_partitions($1::text, $2::bigint[], $3::integer)`)
	rotate         = store.Define(`SELECT {schema}.rotate($1::integer, $2::bigint)`)
	dropExpired    = store.Define(`SELECT {schema}.drop_expired($1::text)`)
	expireOutcomes = store.Define(`SELECT {schema}.expire_outcomes()`)
	lowerLimits    = store.Define(`SELECT {schema}.lower_limits()`)
)
