package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

var setQueueLimit = Define(`SELECT {schema}.set_queue_limit($1::text, $2::integer)`)

// SetQueueLimit limits the live jobs of a queue, or takes the limit away.
func (db *DB) SetQueueLimit(ctx context.Context, limit time.Duration, queue string, most *int) error {
	return db.Tx(ctx, limit, Step{Statement: setQueueLimit, Args: []any{queue, most}, Scan: func(pgx.Rows) error { return nil }})
}

var boundQueues = Define(`SELECT b.queue FROM {schema}.job_bound AS b`)

// BoundQueues lists the queues that have a limit.
func (s *Schema) BoundQueues(ctx context.Context, q Querier) (queues []string, err error) {
	rows, err := q.Query(ctx, s.SQL(boundQueues))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var queue string
		if err := rows.Scan(&queue); err != nil {
			return nil, err
		}
		queues = append(queues, queue)
	}
	return queues, rows.Err()
}

var takeSlots = Define(`SELECT t.queue, coalesce(t.max_live, 0) FROM {schema}.take_slots($1::text[], $2::text[]::uuid[]) AS t`)

// TakeSlots takes a slot of its queue for each job. Where a queue is full it
// takes none and returns the queue and its limit; otherwise it returns the queues
// that turned out to have no limit.
func (s *Schema) TakeSlots(ctx context.Context, q Querier, queues, ids []string) (full string, limit int, unbounded []string, err error) {
	rows, err := q.Query(ctx, s.SQL(takeSlots), queues, ids)
	if err != nil {
		return "", 0, nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var queue string
		var most int
		if err := rows.Scan(&queue, &most); err != nil {
			return "", 0, nil, err
		}
		if most > 0 {
			full, limit = queue, most
		} else {
			unbounded = append(unbounded, queue)
		}
	}
	return full, limit, unbounded, rows.Err()
}
