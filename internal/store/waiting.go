package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// statement_timestamp() is stable, so the scan starts and ends in the index;
// clock_timestamp() would read every waiting row.
var promote = Define(`
WITH due AS (
    DELETE FROM {schema}.job_waiting
    WHERE ctid = ANY (ARRAY(
        SELECT w.ctid
        FROM {schema}.job_waiting AS w
        WHERE w.reason <> 'unknown_kind' AND w.run_at <= statement_timestamp()
        ORDER BY w.run_at, w.id
        LIMIT $1::integer
        FOR UPDATE SKIP LOCKED
    ))
    RETURNING {job}, run_at
)
INSERT INTO {schema}.job_queue ({job}, lane)
SELECT {d.job}, CASE WHEN d.crash_count > 0 THEN -2 ELSE d.priority END
FROM due AS d
ORDER BY d.run_at, d.id
RETURNING queue, lane`)

var nextDue = Define(`
SELECT (extract(epoch FROM w.run_at - clock_timestamp()) * 1000)::bigint
FROM {schema}.job_waiting AS w
WHERE w.reason <> 'unknown_kind' AND w.run_at < statement_timestamp() + interval '1 day'
ORDER BY w.run_at, w.id
LIMIT 1`)

// Promote moves up to max due jobs to the queue. It returns how many, in which
// lanes, and in how long the next one is due (a day at most).
func (db *DB) Promote(ctx context.Context, limit time.Duration, most int) (moved int, into map[Lane]bool, next time.Duration, err error) {
	into = map[Lane]bool{}
	next = 24 * time.Hour
	err = db.Tx(ctx, limit,
		Step{Statement: promote, Args: []any{most}, Scan: func(row pgx.Rows) error {
			var l Lane
			if err := row.Scan(&l.Queue, &l.Priority); err != nil {
				return err
			}
			into[l] = true
			moved++
			return nil
		}},
		Step{Statement: nextDue, Scan: func(row pgx.Rows) error {
			var ms int64
			if err := row.Scan(&ms); err != nil {
				return err
			}
			next = max(0, time.Duration(ms)*time.Millisecond)
			return nil
		}})
	return moved, into, next, err
}
