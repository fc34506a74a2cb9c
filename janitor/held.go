package janitor

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/simplequeue/simplequeue/internal/store"
)

// A job whose hold is over is deleted, with all it held, as if it had never been
// inserted: a chosen id is free again. One that is being committed is passed by;
// whatever else there is of held jobs that have ended goes too.
var expireHeld = store.Define(`
WITH late AS MATERIALIZED (
    SELECT h.job_id
    FROM {schema}.job_held AS h
    WHERE h.expires_at <= statement_timestamp()
    ORDER BY h.expires_at
    LIMIT $1::integer
), mine AS MATERIALIZED (
    SELECT l.job_id, locked.ctid AS waiting, seen.reason
    FROM late AS l
    LEFT JOIN LATERAL (
        SELECT w.reason FROM {schema}.job_waiting AS w WHERE w.id = l.job_id LIMIT 1
    ) AS seen ON true
    LEFT JOIN LATERAL (
        SELECT w.ctid
        FROM {schema}.job_waiting AS w
        WHERE w.id = l.job_id AND seen.reason = 'held'
        LIMIT 1
        FOR UPDATE SKIP LOCKED
    ) AS locked ON true
), gone AS (
    DELETE FROM {schema}.job_waiting
    WHERE ctid = ANY (ARRAY(SELECT m.waiting FROM mine AS m WHERE m.waiting IS NOT NULL))
    RETURNING {job}
), dropped AS (
    DELETE FROM {schema}.job_held
    WHERE job_id = ANY (ARRAY(SELECT m.job_id FROM mine AS m WHERE m.waiting IS NOT NULL OR m.reason IS DISTINCT FROM 'held'))
    RETURNING job_id
), unknown AS (
    DELETE FROM {schema}.job_client_id
    WHERE id = ANY (ARRAY(SELECT g.id FROM gone AS g))
), ` + store.Release("gone", "true") + `, ` + store.ReleaseGates("gone", "true", "false") + `, unpacked AS (
    DELETE FROM {schema}.job_payload
    WHERE id = ANY (ARRAY(SELECT g.id FROM gone AS g WHERE g.payload_bytes > 0))
)
SELECT (SELECT count(*) FROM gone), (SELECT count(*) FROM dropped)`)

// expire deletes jobs that were not committed in time.
func (j *Janitor) expire(ctx context.Context) (expired int, err error) {
	for {
		n, dropped := 0, 0
		err := j.db.Tx(ctx, limit, store.Step{
			Statement: expireHeld, Args: []any{batch}, Scan: func(row pgx.Rows) error { return row.Scan(&n, &dropped) },
		})
		expired += n
		if err != nil || dropped < batch {
			return expired, err
		}
	}
}
