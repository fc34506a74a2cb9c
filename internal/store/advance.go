package store

import (
	"context"
	"time"
)

// Time passes by moving what waits for it. What waits at a gate, or is held, has
// its time beside it.
var advance = Define(`
WITH gated AS (
    UPDATE {schema}.job_gated
    SET run_at = run_at - $1::bigint * interval '1 microsecond'
    WHERE run_at IS NOT NULL
), held AS (
    UPDATE {schema}.job_held
    SET run_at = run_at - $1::bigint * interval '1 microsecond',
        expires_at = expires_at - $1::bigint * interval '1 microsecond'
)
UPDATE {schema}.job_waiting
SET run_at = run_at - $1::bigint * interval '1 microsecond'
WHERE reason NOT IN ('unknown_kind', 'gated', 'held')`)

// Advance has every job that waits for a time wait for one that is earlier by d.
func (db *DB) Advance(ctx context.Context, limit, d time.Duration) error {
	return db.Tx(ctx, limit, Step{Statement: advance, Args: []any{d.Microseconds()}})
}
