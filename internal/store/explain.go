package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// Everything about one job that may hold it back, as one statement sees it. What
// lies before it in its lane, and in those before its own, is counted up to a
// bound.
var holds = Define(`
WITH asked AS MATERIALIZED (
    SELECT j.id, j.queue, j.kind, j.state
    FROM {schema}.job AS j
    WHERE j.id = $1::text::uuid
)
SELECT j.id,
       clock_timestamp(),
       (SELECT p.reason FROM {schema}.job_pause AS p WHERE p.queue = j.queue),
       (SELECT p.paused_at FROM {schema}.job_pause AS p WHERE p.queue = j.queue),
       (SELECT q.lane FROM {schema}.job_queue AS q WHERE q.id = j.id),
       (SELECT count(*)
        FROM (
            SELECT
            FROM {schema}.job_queue AS q
            JOIN {schema}.job_queue AS before ON before.queue = q.queue AND before.lane = q.lane AND before.seq < q.seq
            WHERE q.id = j.id
            LIMIT 100000
        ) AS b)
       + (SELECT count(*)
        FROM (
            SELECT
            FROM {schema}.job_queue AS q
            JOIN {schema}.job_queue AS before ON before.queue = q.queue AND before.lane >= -1 AND before.lane < q.lane
            WHERE q.id = j.id
            LIMIT 100000
        ) AS b),
       (SELECT count(*) FROM {schema}.job_running AS r WHERE r.queue = j.queue),
       (SELECT r.id FROM {schema}.job_running AS r WHERE r.queue = j.queue AND r.lane = -2 LIMIT 1),
       (SELECT l.beat_at
        FROM {schema}.job_running AS r
        JOIN {schema}.job_lease AS l ON l.claim_id = r.claim_id AND l.claim_nonce = r.claim_nonce
        WHERE r.id = j.id
        LIMIT 1),
       (SELECT r.lease_ms FROM {schema}.job_running AS r WHERE r.id = j.id LIMIT 1),
       (SELECT c.requested_at
        FROM {schema}.job_running AS r
        JOIN {schema}.job_cancel AS c ON c.claim_id = r.claim_id AND c.claim_nonce = r.claim_nonce
        WHERE r.id = j.id
        LIMIT 1),
       (SELECT s.continuous_since FROM {schema}.job_sweep AS s WHERE s.name = 'reaper')
FROM asked AS j`)

// Holds is what may hold a job back.
type Holds struct {
	Now         time.Time
	PauseReason *string // nil: not paused
	PausedAt    *time.Time
	Lane        *int16 // of a pending job
	Ahead       int64  // in its lane and those before it, at most 100,000 each
	Running     int64  // of its queue, everywhere
	Suspect     *[16]byte
	BeatAt      *time.Time // last heartbeat, nil before the first
	LeaseMS     *int32
	CancelAt    *time.Time
	SweptSince  *time.Time // leases age from then on, nil before the first sweep
}

// Holds looks at one job. It returns nil for one that is nowhere.
func (db *DB) Holds(ctx context.Context, limit time.Duration, id [16]byte) (found *Holds, err error) {
	err = db.Tx(ctx, limit, Step{Statement: holds, Args: []any{uuids([][16]byte{id})[0]}, Scan: func(row pgx.Rows) error {
		found = &Holds{}
		var self [16]byte
		return row.Scan(&self, &found.Now, &found.PauseReason, &found.PausedAt, &found.Lane, &found.Ahead, &found.Running,
			&found.Suspect, &found.BeatAt, &found.LeaseMS, &found.CancelAt, &found.SweptSince)
	}})
	return found, err
}

var workers = Define(`
SELECT w.worker_id, w.name, w.queues, w.kinds, w.paused, w.started_at, w.seen_at,
       w.seen_at > clock_timestamp() - $1::bigint * interval '1 millisecond',
       coalesce(r.n, 0)
FROM {schema}.job_worker AS w
LEFT JOIN (
    SELECT r.worker_id, count(*) AS n FROM {schema}.job_running AS r GROUP BY r.worker_id
) AS r ON r.worker_id = w.worker_id
ORDER BY w.started_at, w.worker_id`)

// Worker is a row of job_worker.
type Worker struct {
	ID        [16]byte
	Name      string
	Queues    []string
	Kinds     []byte
	Paused    []string
	StartedAt time.Time
	SeenAt    time.Time
	Alive     bool
	Running   int64
}

// Workers lists the workers; one that has not been seen for the given time is
// not alive.
func (db *DB) Workers(ctx context.Context, limit, gone time.Duration) ([]Worker, error) {
	var list []Worker
	err := db.Tx(ctx, limit, Step{Statement: workers, Args: []any{gone.Milliseconds()}, Scan: func(row pgx.Rows) error {
		list = append(list, Worker{})
		w := &list[len(list)-1]
		return row.Scan(&w.ID, &w.Name, &w.Queues, &w.Kinds, &w.Paused, &w.StartedAt, &w.SeenAt, &w.Alive, &w.Running)
	}})
	return list, err
}

// Counts go up to a bound, whatever is behind it. The rows of job_waiting have no
// index by queue: of them a bounded number is read, for all queues.
var queues = Define(`
WITH named AS MATERIALIZED (
    SELECT ltrim(l.queue, '*') AS queue FROM {schema}.job_lane AS l
    UNION
    SELECT p.queue FROM {schema}.job_pause AS p
), waiting AS MATERIALIZED (
    SELECT w.queue, count(*) AS n
    FROM (SELECT w.queue FROM {schema}.job_waiting AS w LIMIT $1::bigint + 1) AS w
    GROUP BY w.queue
), running AS MATERIALIZED (
    SELECT r.queue, count(*) FILTER (WHERE c.claim_id IS NULL) AS n, count(c.claim_id) AS cancelling
    FROM {schema}.job_running AS r
    LEFT JOIN LATERAL (
        SELECT c.claim_id
        FROM {schema}.job_cancel AS c
        WHERE c.claim_id = r.claim_id AND c.claim_nonce = r.claim_nonce
        LIMIT 1
    ) AS c ON true
    GROUP BY r.queue
)
SELECT n.queue, p.reason, p.paused_at,
       coalesce((SELECT w.n FROM waiting AS w WHERE w.queue = n.queue), 0),
       (SELECT count(*) FROM (SELECT FROM {schema}.job_queue AS q WHERE q.queue = n.queue LIMIT $1::bigint + 1) AS q),
       coalesce((SELECT r.n FROM running AS r WHERE r.queue = n.queue), 0),
       coalesce((SELECT r.cancelling FROM running AS r WHERE r.queue = n.queue), 0),
       (SELECT count(*) FROM (SELECT FROM {schema}.job_queue_dlq AS d WHERE d.queue = n.queue LIMIT $1::bigint + 1) AS d),
       (SELECT coalesce(sum(w.n), 0) > $1::bigint FROM waiting AS w)
FROM named AS n
LEFT JOIN {schema}.job_pause AS p ON p.queue = n.queue
ORDER BY n.queue COLLATE "C"`)

// Queue is what Queues tells of one.
type Queue struct {
	Name                                        string
	PauseReason                                 *string
	PausedAt                                    *time.Time
	Waiting, Pending, Running, Cancelling, Dead int64
	WaitingCut                                  bool // more of them wait than were read, of whichever queue
}

// Queues lists all queues. A count goes to most and one more.
func (db *DB) Queues(ctx context.Context, limit time.Duration, most int64) ([]Queue, error) {
	var list []Queue
	err := db.Tx(ctx, limit, Step{Statement: queues, Args: []any{most}, Scan: func(row pgx.Rows) error {
		list = append(list, Queue{})
		q := &list[len(list)-1]
		return row.Scan(&q.Name, &q.PauseReason, &q.PausedAt, &q.Waiting, &q.Pending, &q.Running, &q.Cancelling, &q.Dead, &q.WaitingCut)
	}})
	return list, err
}
