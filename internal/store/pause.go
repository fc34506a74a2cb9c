package store

import (
	"context"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// PausedLane is the lane under which Lanes names a queue that is paused.
const PausedLane = -3

var pauseQueue = Define(`
INSERT INTO {schema}.job_pause AS p (queue, reason)
VALUES ($1::text, $2::text)
ON CONFLICT (queue) DO UPDATE SET reason = excluded.reason`)

// Pause notes that a queue is paused.
func (db *DB) Pause(ctx context.Context, limit time.Duration, queue, reason string) error {
	return db.Tx(ctx, limit, Step{Statement: pauseQueue, Args: []any{queue, reason}})
}

var resumeQueue = Define(`DELETE FROM {schema}.job_pause AS p WHERE p.queue = $1::text`)

// Resume notes that a queue is no longer paused.
func (db *DB) Resume(ctx context.Context, limit time.Duration, queue string) error {
	return db.Tx(ctx, limit, Step{Statement: resumeQueue, Args: []any{queue}})
}

var pausedQueue = Define(`SELECT true FROM {schema}.job_pause AS p WHERE p.queue = $1::text`)

// Paused reports whether a queue is paused.
func (db *DB) Paused(ctx context.Context, limit time.Duration, queue string) (paused bool, err error) {
	err = db.Tx(ctx, limit, Step{Statement: pausedQueue, Args: []any{queue}, Scan: func(pgx.Rows) error {
		paused = true
		return nil
	}})
	return paused, err
}

var heedPauses = Define(`
UPDATE {schema}.job_worker AS w
SET paused = $2::text[]
WHERE w.worker_id = $1::uuid
RETURNING true`)

// HeedPauses notes which paused queues a worker claims nothing from. It reports
// whether the worker is registered.
func (db *DB) HeedPauses(ctx context.Context, limit time.Duration, worker uuid.UUID, queues []string) (known bool, err error) {
	err = db.Tx(ctx, limit, Step{Statement: heedPauses, Args: []any{worker, queues}, Scan: func(pgx.Rows) error {
		known = true
		return nil
	}})
	return known, err
}

// A queue is drained when every worker that serves it, and has shown itself of
// late, has noted that it heeds the pause, and nothing of it runs.
var draining = Define(`
SELECT EXISTS (SELECT FROM {schema}.job_pause AS p WHERE p.queue = $1::text),
       (SELECT count(*) FROM {schema}.job_running AS r WHERE r.queue = $1::text),
       (SELECT count(*) FROM {schema}.job_worker AS w
        WHERE w.seen_at > clock_timestamp() - $2::bigint * interval '1 millisecond'
          AND $1::text <> ALL (w.paused)
          AND EXISTS (
              SELECT FROM unnest(w.queues) AS p(pattern)
              WHERE p.pattern = $1::text
                 OR right(p.pattern, 1) = '*' AND starts_with($1::text, left(p.pattern, -1))))`)

// Draining is how far a queue is from being drained.
type Draining struct {
	Paused  bool
	Running int // jobs
	Unaware int // workers that may still claim
}

// Draining looks at a queue that is being drained. A worker that has not shown
// itself for the given time has gone.
func (db *DB) Draining(ctx context.Context, limit time.Duration, queue string, gone time.Duration) (d Draining, err error) {
	err = db.Tx(ctx, limit, Step{Statement: draining, Args: []any{queue, gone.Milliseconds()}, Scan: func(row pgx.Rows) error {
		return row.Scan(&d.Paused, &d.Running, &d.Unaware)
	}})
	return d, err
}
