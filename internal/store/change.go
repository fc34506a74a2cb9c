package store

import (
	"context"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// A change takes a job out of its table and puts it back as it is to be, there
// or in the other one: rows are never updated, so that a claim or a promotion
// that has found the row either has it as it was, and the change finds nothing,
// or misses it, and finds the new one. A job of job_queue keeps its place unless
// its lane changes. One that waits for a program that knows its kind goes on
// waiting whatever its run time is to be; so does one that is held, or waits at a
// gate, whose run time is in another table. A payload above the bound is stored
// apart, and so is one beside steps, which stay.
var change = `
WITH input AS MATERIALIZED (
    SELECT $2::smallint AS priority,
           coalesce($3::timestamptz, clock_timestamp() + $4::bigint * interval '1 microsecond') AS run_at,
           $5::boolean AS new_payload, $6::text::jsonb AS payload, $7::boolean AS new_raw, $8::bytea AS raw
), locked AS MATERIALIZED (
    SELECT l.id
    FROM {schema}.{table} AS l
    WHERE l.id = ANY ($1::text[]::uuid[])
    ORDER BY l.id
    FOR UPDATE
), taken AS (
    DELETE FROM {schema}.{table} AS t
    WHERE t.id = ANY (ARRAY(SELECT l.id FROM locked AS l))
    RETURNING {t.job}, {place}
), whole AS MATERIALIZED (
    SELECT t.id, t.created_at, t.attempt, t.max_attempts, t.reprocess_count, t.crash_count, t.queue, t.kind,
           t.unique_scope, t.unique_key, t.fingerprint, t.errors, t.props, t.payload_bytes AS old_bytes,
           t.seq, t.was_lane, t.was_due, t.reason, t.priority AS was_priority,
           coalesce(i.priority, t.priority) AS priority, i.run_at,
           i.new_payload OR i.new_raw AS repacked,
           CASE WHEN i.new_payload THEN i.payload WHEN i.new_raw THEN coalesce(t.payload, p.payload) ELSE t.payload END AS payload,
           CASE WHEN i.new_raw THEN i.raw WHEN i.new_payload THEN coalesce(t.raw, p.raw) ELSE t.raw END AS raw,
           coalesce(p.stepped, false) AS stepped
    FROM taken AS t
    CROSS JOIN input AS i
    LEFT JOIN LATERAL (
        SELECT p.payload, p.raw, p.steps IS NOT NULL AS stepped
        FROM {schema}.job_payload AS p
        WHERE t.payload_bytes > 0 AND p.id = t.id AND (i.new_payload OR i.new_raw)
        LIMIT 1
    ) AS p ON true
), sized AS MATERIALIZED (
    SELECT w.id, w.created_at, w.attempt, w.max_attempts, w.reprocess_count, w.crash_count, w.queue, w.kind,
           w.unique_scope, w.unique_key, w.fingerprint, w.errors, w.props, w.old_bytes, w.seq, w.was_lane, w.was_priority,
           w.priority, w.payload, w.raw, w.repacked,
           CASE WHEN NOT w.repacked THEN w.old_bytes
                WHEN w.stepped THEN greatest(n.bytes, 1)
                ELSE n.bytes END AS size,
           w.repacked AND (w.stepped OR n.bytes > 1024) AS apart,
           CASE WHEN w.reason IN ('unknown_kind', 'gated', 'held') THEN w.was_due
                WHEN w.run_at IS NULL THEN w.was_due
                WHEN w.run_at > clock_timestamp() THEN w.run_at END AS due,
           CASE WHEN w.reason IN ('unknown_kind', 'gated', 'held') OR w.run_at IS NULL THEN coalesce(w.reason, 'scheduled') ELSE 'scheduled' END AS reason
    FROM whole AS w
    CROSS JOIN LATERAL (SELECT ` + sizeOf("w") + ` AS bytes) AS n
), packed AS MATERIALIZED (
    SELECT s.id, s.created_at, s.attempt, s.max_attempts, s.reprocess_count, s.crash_count,
           CASE WHEN s.repacked AND NOT s.apart THEN 0 ELSE s.size END AS payload_bytes,
           s.priority, s.queue, s.kind, s.unique_scope, s.unique_key, s.fingerprint,
           CASE WHEN s.apart THEN NULL ELSE s.payload END AS payload,
           CASE WHEN s.apart THEN NULL ELSE s.raw END AS raw, s.errors, s.props,
           s.due, s.reason, s.seq, s.repacked, s.payload AS big_payload, s.raw AS big_raw, s.old_bytes,
           CASE WHEN s.crash_count > 0 THEN -2
                WHEN s.was_lane < 0 AND s.priority = s.was_priority THEN s.was_lane
                ELSE s.priority END AS lane,
           s.was_lane
    FROM sized AS s
), small AS (
    DELETE FROM {schema}.job_payload
    WHERE id = ANY (ARRAY(SELECT p.id FROM packed AS p WHERE p.repacked AND p.old_bytes > 0 AND p.payload_bytes = 0))
), big AS (
    INSERT INTO {schema}.job_payload (id, payload, raw)
    SELECT p.id, p.big_payload, p.big_raw
    FROM packed AS p
    WHERE p.repacked AND p.payload_bytes > 0
    ON CONFLICT (id) DO UPDATE SET payload = excluded.payload, raw = excluded.raw
){apart}, lane AS (
    INSERT INTO {schema}.job_lane (queue, priority)
    SELECT CASE WHEN EXISTS (SELECT FROM {schema}.job_bound AS b WHERE b.queue = l.queue) THEN '*' ELSE '' END || l.queue, l.priority
    FROM (SELECT DISTINCT p.queue, p.priority FROM packed AS p) AS l
    WHERE NOT EXISTS (
        SELECT FROM {schema}.job_lane AS known
        WHERE known.queue IN (l.queue, '*' || l.queue) AND known.priority = l.priority)
), waiting AS (
    INSERT INTO {schema}.job_waiting ({job}, run_at, reason)
    SELECT {p.job}, p.due, p.reason
    FROM packed AS p
    WHERE p.due IS NOT NULL
), kept AS (
    INSERT INTO {schema}.job_queue ({job}, seq, lane)
    SELECT {p.job}, p.seq, p.lane
    FROM packed AS p
    WHERE p.due IS NULL AND p.lane = p.was_lane
), queued AS (
    INSERT INTO {schema}.job_queue ({job}, lane)
    SELECT {p.job}, p.lane
    FROM packed AS p
    WHERE p.due IS NULL AND p.lane IS DISTINCT FROM p.was_lane
    ORDER BY p.id
)
SELECT p.id, p.queue, p.lane, p.due IS NOT NULL
FROM packed AS p`

var (
	changeWaiting = Define(in("job_waiting", strings.NewReplacer(
		"{place}", "NULL::bigint AS seq, NULL::smallint AS was_lane, t.run_at AS was_due, t.reason",
		"{apart}", `, gated AS (
    UPDATE {schema}.job_gated
    SET run_at = (SELECT i.run_at FROM input AS i)
    WHERE job_id = ANY (ARRAY(
        SELECT p.id FROM packed AS p WHERE p.reason IN ('gated', 'held') AND (SELECT i.run_at FROM input AS i) IS NOT NULL))
), held AS (
    UPDATE {schema}.job_held
    SET run_at = (SELECT i.run_at FROM input AS i)
    WHERE job_id = ANY (ARRAY(
        SELECT p.id FROM packed AS p WHERE p.reason = 'held' AND (SELECT i.run_at FROM input AS i) IS NOT NULL))
)`).Replace(change)))
	changeQueued = Define(in("job_queue", strings.NewReplacer(
		"{place}", "t.seq, t.lane AS was_lane, NULL::timestamptz AS was_due, NULL::text AS reason",
		"{apart}", "").Replace(change)))
)

// Change is what is to be different about jobs. nil fields stay as they are.
type Change struct {
	Priority   *int16
	RunAt      *time.Time
	AfterUS    *int64 // from now, instead of RunAt
	NewPayload bool
	Payload    *string // JSON text
	NewRaw     bool
	Raw        []byte
}

// Changed is where jobs are after a change.
type Changed struct {
	IDs   map[[16]byte]bool
	Lanes map[Lane]bool // of those that may run now
	Waits bool          // some run later
}

// Change changes those of the jobs that are waiting or pending. The tables are
// visited in the direction in which jobs move; one that the change itself moves
// on is changed twice, to the same.
func (db *DB) Change(ctx context.Context, limit time.Duration, ids [][16]byte, c Change) (Changed, error) {
	return afterDeadlock(db, func() (Changed, error) { return db.change(ctx, limit, ids, c) })
}

func (db *DB) change(ctx context.Context, limit time.Duration, ids [][16]byte, c Change) (Changed, error) {
	done := Changed{IDs: map[[16]byte]bool{}, Lanes: map[Lane]bool{}}
	args := []any{uuids(ids), c.Priority, c.RunAt, c.AfterUS, c.NewPayload, c.Payload, c.NewRaw, c.Raw}
	scan := func(row pgx.Rows) error {
		var id [16]byte
		var l Lane
		var waits bool
		if err := row.Scan(&id, &l.Queue, &l.Priority, &waits); err != nil {
			return err
		}
		if done.IDs[id] = true; waits {
			done.Waits = true
		} else {
			done.Lanes[l] = true
		}
		return nil
	}
	err := db.Tx(ctx, limit,
		Step{Statement: changeWaiting, Args: args, Scan: scan},
		Step{Statement: changeQueued, Args: args, Scan: scan})
	return done, err
}
