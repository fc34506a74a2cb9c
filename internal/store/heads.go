package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

var (
	// The first row of each lane, by an index probe.
	heads = Define(`
SELECT l.place, head.seq, head.created_at
FROM unnest($1::text[], $2::smallint[]) WITH ORDINALITY AS l(queue, lane, place)
CROSS JOIN LATERAL (
    SELECT j.seq, j.created_at
    FROM {schema}.job_queue AS j
    WHERE j.queue = l.queue AND j.lane = l.lane
    ORDER BY j.seq
    LIMIT 1
) AS head`)
	lastSeq = Define(`
SELECT s.last_value, clock_timestamp()
FROM {schema}.job_queue_seq_seq AS s`)
)

// Heads are the first rows of lanes.
type Heads struct {
	LastSeq int64     // the newest place given out
	Now     time.Time // when that was
	First   []*Head   // by lane, nil for an empty one
}

// Head is the first row of a lane.
type Head struct {
	Seq       int64
	CreatedAt time.Time
}

// Heads returns the first rows of the lanes.
func (db *DB) Heads(ctx context.Context, limit time.Duration, lanes []Lane) (Heads, error) {
	h := Heads{First: make([]*Head, len(lanes))}
	queues, priorities := make([]string, len(lanes)), make([]int16, len(lanes))
	for i, l := range lanes {
		queues[i], priorities[i] = l.Queue, l.Priority
	}
	err := db.Tx(ctx, limit,
		Step{Statement: lastSeq, Scan: func(row pgx.Rows) error { return row.Scan(&h.LastSeq, &h.Now) }},
		Step{Statement: heads, Args: []any{queues, priorities}, Scan: func(row pgx.Rows) error {
			var place int64
			var head Head
			if err := row.Scan(&place, &head.Seq, &head.CreatedAt); err != nil {
				return err
			}
			h.First[place-1] = &head
			return nil
		}})
	return h, err
}
