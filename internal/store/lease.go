package store

import (
	"context"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// A beat reads job_running and writes job_lease: a handler that holds the lock
// of its running job, because it completes it in a transaction of its own, does
// not hold up the leases of the others.
var beat = Define(`
WITH alive AS MATERIALIZED (
    SELECT r.claim_id, r.claim_nonce
    FROM {schema}.job_running AS r
    WHERE r.claim_id = ANY ($1::bigint[])
      AND r.claim_nonce = ($2::bigint[])[width_bucket(r.claim_id, $1::bigint[])]
), beaten AS (
    INSERT INTO {schema}.job_lease AS l (claim_id, claim_nonce, beat_at)
    SELECT a.claim_id, a.claim_nonce, clock_timestamp()
    FROM alive AS a
    ORDER BY a.claim_id
    ON CONFLICT (claim_id) DO UPDATE SET claim_nonce = excluded.claim_nonce, beat_at = excluded.beat_at
)
SELECT a.claim_id FROM alive AS a`)

// Beat renews the leases and returns the claims that still hold. The claims are
// sorted by id.
func (db *DB) Beat(ctx context.Context, limit time.Duration, claimIDs, nonces []int64) (map[int64]bool, error) {
	alive := make(map[int64]bool, len(claimIDs))
	err := db.Tx(ctx, limit, Step{Statement: beat, Args: []any{claimIDs, nonces}, Scan: func(row pgx.Rows) error {
		var id int64
		if err := row.Scan(&id); err != nil {
			return err
		}
		alive[id] = true
		return nil
	}})
	return alive, err
}

// BeatNone is a beat for no claim: it waits where beats wait, fails where they
// fail, and proves by its end that they can be written. Until its transaction
// ends nobody can lock the tables against them.
var BeatNone = Step{Statement: beat, Args: []any{[]int64{}, []int64{}}}

// TryBeat makes a BeatNone.
func (db *DB) TryBeat(ctx context.Context, limit time.Duration) error {
	return db.Tx(ctx, limit, BeatNone)
}

var cancelRequests = Define(`
SELECT c.claim_id, c.claim_nonce, c.reason
FROM {schema}.job_cancel AS c`)

// CancelRequest asks the holder of a claim to stop.
type CancelRequest struct {
	ClaimID, Nonce int64
	Reason         string
}

// CancelRequests returns all requests that stand. There are few: the reaper
// removes those whose claim has ended.
func (db *DB) CancelRequests(ctx context.Context, limit time.Duration) ([]CancelRequest, error) {
	var requests []CancelRequest
	err := db.Tx(ctx, limit, Step{Statement: cancelRequests, Scan: func(row pgx.Rows) error {
		var c CancelRequest
		if err := row.Scan(&c.ClaimID, &c.Nonce, &c.Reason); err != nil {
			return err
		}
		requests = append(requests, c)
		return nil
	}})
	return requests, err
}

var registerWorker = Define(`
INSERT INTO {schema}.job_worker AS w (worker_id, name, queues, kinds)
VALUES ($1::uuid, $2::text, $3::text[], $4::text::jsonb)
ON CONFLICT (worker_id) DO UPDATE SET seen_at = clock_timestamp()
RETURNING w.xmax = 0`)

// RegisterWorker notes that a worker is there. kinds, JSON or nil, are those that
// it knows, by queue. It reports whether the worker was not known: then nothing
// is known of the pauses that it heeds either.
func (db *DB) RegisterWorker(ctx context.Context, limit time.Duration, id uuid.UUID, name string, queues []string, kinds *string) (added bool, err error) {
	err = db.Tx(ctx, limit, Step{Statement: registerWorker, Args: []any{id, name, queues, kinds}, Scan: func(row pgx.Rows) error {
		return row.Scan(&added)
	}})
	return added, err
}

var removeWorker = Define(`DELETE FROM {schema}.job_worker WHERE worker_id = $1::uuid`)

// RemoveWorker notes that a worker has stopped.
func (db *DB) RemoveWorker(ctx context.Context, limit time.Duration, id uuid.UUID) error {
	return db.Tx(ctx, limit, Step{Statement: removeWorker, Args: []any{id}})
}

// Notify wakes the listeners of a channel.
func (db *DB) Notify(ctx context.Context, limit time.Duration, channel, payload string) error {
	return db.Tx(ctx, limit, Step{Statement: notifyTx, Args: []any{channel, payload}})
}

var schemaVersion = Define(`SELECT coalesce(max(m.version), 0) FROM {schema}.schema_migration AS m`)

// SchemaVersion is the version of the database's schema.
func (db *DB) SchemaVersion(ctx context.Context, limit time.Duration) (version int, err error) {
	err = db.Tx(ctx, limit, Step{Statement: schemaVersion, Scan: func(row pgx.Rows) error { return row.Scan(&version) }})
	return version, err
}
