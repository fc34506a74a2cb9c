package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// statement_timestamp() is stable, so the scan starts and ends in the index;
// clock_timestamp() would read every waiting row. It starts at a time before
// which nothing was left, so as not to walk over the entries of jobs that have
// gone.
var promote = Define(`
WITH due AS (
    DELETE FROM {schema}.job_waiting
    WHERE ctid = ANY (ARRAY(
        SELECT w.ctid
        FROM {schema}.job_waiting AS w
        WHERE w.reason <> 'unknown_kind' AND w.run_at <= statement_timestamp()
          AND w.run_at >= coalesce('epoch'::timestamptz + $2::bigint * interval '1 microsecond', '-infinity')
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
RETURNING queue, lane, (SELECT (extract(epoch FROM max(d.run_at)) * 1000000)::bigint FROM due AS d)`)

// now() is when the transaction began: what was due by then has been promoted
// before this is asked.
var nextDue = Define(`
SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, (
    SELECT (extract(epoch FROM w.run_at - clock_timestamp()) * 1000)::bigint
    FROM {schema}.job_waiting AS w
    WHERE w.reason <> 'unknown_kind' AND w.run_at > now() AND w.run_at < now() + interval '1 day'
    ORDER BY w.run_at, w.id
    LIMIT 1)`)

// Promotion is what Promote has done. Times are the database's, in microseconds
// since 1970.
type Promotion struct {
	Moved int
	Into  map[Lane]bool
	Last  int64         // when the last one moved was due
	Now   int64         // when it was done
	Next  time.Duration // until the next one is due, a day at most
}

// Promote moves up to most due jobs to the queue: of those that were due at the
// given time or later, or of all.
func (db *DB) Promote(ctx context.Context, limit time.Duration, from *int64, most int) (Promotion, error) {
	p := Promotion{Into: map[Lane]bool{}, Next: 24 * time.Hour}
	err := db.Tx(ctx, limit,
		Step{Statement: promote, Args: []any{most, from}, Scan: func(row pgx.Rows) error {
			var l Lane
			if err := row.Scan(&l.Queue, &l.Priority, &p.Last); err != nil {
				return err
			}
			p.Into[l] = true
			p.Moved++
			return nil
		}},
		Step{Statement: nextDue, Scan: func(row pgx.Rows) error {
			var ms *int64
			if err := row.Scan(&p.Now, &ms); err != nil {
				return err
			}
			if ms != nil {
				p.Next = max(0, time.Duration(*ms)*time.Millisecond)
			}
			return nil
		}})
	return p, err
}
