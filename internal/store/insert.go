package store

import (
	"context"
	"fmt"
	"time"
)

// Rows of a query, as pgx and database/sql give them.
type Rows interface {
	Next() bool
	Scan(dest ...any) error
	Err() error
	Close()
}

// Querier is a transaction in which jobs are inserted: pgx's or database/sql's.
// Arguments are slices of plain types, strings and numbers only.
type Querier interface {
	Query(ctx context.Context, sql string, args ...any) (Rows, error)
}

// NewJobs are the columns of jobs to insert. A nil column is NULL for every job.
type NewJobs struct {
	IDs          []string
	Queues       []string
	Kinds        []string
	Priorities   []int16
	MaxAttempts  []int32
	PayloadBytes []int32 // above zero: the payload is in Big
	Fingerprints []*string
	Payloads     []*string // JSON text
	Raws         [][]byte
	Props        []*string // JSON text

	// Lanes of the jobs, without repetition.
	LaneQueues     []string
	LanePriorities []int16

	// Payloads that are stored apart.
	BigIDs      []string
	BigPayloads []*string
	BigRaws     [][]byte

	// Only InsertKeyed reads these.
	Chosen       []bool // the caller chose the id
	UniqueScopes []*string
	UniqueKeys   []*string
	UniqueSpecs  []*string // JSON text: the key is derived
	RunAts       []*time.Time
	DelaysUS     []*int64
	Reasons      []*string // why the job waits, whatever its time; nil if only that counts
}

// Len is the number of jobs.
func (n *NewJobs) Len() int { return len(n.IDs) }

var insertPlain = Define(`
WITH lane AS (
    INSERT INTO {schema}.job_lane (queue, priority)
    SELECT l.queue, l.priority
    FROM unnest($10::text[], $11::smallint[]) AS l(queue, priority)
    WHERE NOT EXISTS (
        SELECT FROM {schema}.job_lane AS known
        WHERE known.queue = l.queue AND known.priority = l.priority)
), job AS (
    INSERT INTO {schema}.job_queue
        (id, queue, kind, priority, lane, max_attempts, fingerprint, payload_bytes, payload, raw, props)
    SELECT i.id::uuid, i.queue, i.kind, i.priority, i.priority, i.max_attempts, i.fingerprint,
           coalesce(i.payload_bytes, 0), i.payload::jsonb, i.raw, i.props::jsonb
    FROM unnest($1::text[], $2::text[], $3::text[], $4::smallint[], $5::integer[],
                $6::integer[], $7::text[], $8::bytea[], $9::text[], $12::text[])
         AS i(id, queue, kind, priority, max_attempts, payload_bytes, payload, raw, props, fingerprint)
), fingerprint AS (
    INSERT INTO {schema}.job_fingerprint (fingerprint, job_id)
    SELECT f.fingerprint, f.id::uuid
    FROM unnest($1::text[], $12::text[]) AS f(id, fingerprint)
    WHERE f.fingerprint IS NOT NULL
), big AS (
    INSERT INTO {schema}.job_payload (id, payload, raw)
    SELECT b.id::uuid, b.payload::jsonb, b.raw
    FROM unnest($13::text[], $14::text[], $15::bytea[]) AS b(id, payload, raw)
)
SELECT pg_notify($16::text, $17::text) WHERE $16::text <> ''`)

// InsertPlain inserts jobs that run now and hold no key. It returns the text and
// the arguments, for a caller that pipelines. With a channel the wake-up is part
// of the transaction.
func (s *Schema) InsertPlain(n *NewJobs, channel, wake string) (sql string, args []any) {
	return s.SQL(insertPlain), []any{
		n.IDs, n.Queues, n.Kinds, n.Priorities, n.MaxAttempts,
		n.PayloadBytes, n.Payloads, n.Raws, n.Props,
		n.LaneQueues, n.LanePriorities, n.Fingerprints,
		n.BigIDs, n.BigPayloads, n.BigRaws, channel, wake,
	}
}

// A unique key is taken by the row in job_unique: ON CONFLICT waits for a
// transaction in progress that holds the key, so exactly one of several
// concurrent inserts wins, whichever of them commit. Keys are taken in one
// order, or two batches could wait for each other.
var insertKeyed = Define(`
WITH input AS MATERIALIZED (
    SELECT i.id::uuid AS id, i.queue, i.kind, i.priority, i.max_attempts, coalesce(i.payload_bytes, 0) AS payload_bytes,
           i.payload::jsonb AS payload, i.raw, i.props::jsonb AS props, i.fingerprint,
           coalesce(i.chosen, false) AS chosen, i.unique_scope, i.ord,
           CASE WHEN i.reason IS NULL THEN d.run_at ELSE 'infinity' END AS run_at,
           i.reason IS NOT NULL OR coalesce(d.run_at > c.now, false) AS later, coalesce(i.reason, 'scheduled') AS reason,
           CASE WHEN i.unique_spec IS NULL THEN i.unique_key
                ELSE {schema}.unique_key(i.unique_key, i.unique_spec::jsonb, coalesce(d.run_at, c.now)) END AS unique_key
    FROM unnest($1::text[], $2::text[], $3::text[], $4::smallint[], $5::integer[],
                $6::integer[], $7::text[], $8::bytea[], $9::text[], $12::text[],
                $16::boolean[], $17::text[], $18::text[], $19::timestamptz[], $20::bigint[], $21::text[], $22::text[]) WITH ORDINALITY
         AS i(id, queue, kind, priority, max_attempts, payload_bytes, payload, raw, props, fingerprint,
              chosen, unique_scope, unique_key, run_at, delay_us, unique_spec, reason, ord)
    CROSS JOIN (SELECT clock_timestamp() AS now) AS c
    CROSS JOIN LATERAL (SELECT coalesce(i.run_at, c.now + i.delay_us * interval '1 microsecond') AS run_at) AS d
), lane AS (
    INSERT INTO {schema}.job_lane (queue, priority)
    SELECT l.queue, l.priority
    FROM unnest($10::text[], $11::smallint[]) AS l(queue, priority)
    WHERE NOT EXISTS (
        SELECT FROM {schema}.job_lane AS known
        WHERE known.queue = l.queue AND known.priority = l.priority)
), chosen AS (
    INSERT INTO {schema}.job_client_id (id)
    SELECT i.id
    FROM input AS i
    WHERE i.chosen
      AND i.id <> ALL (ARRAY(SELECT k.id FROM {schema}.jobs_known(ARRAY(SELECT c.id FROM input AS c WHERE c.chosen)) AS k(id)))
    ORDER BY i.id
    ON CONFLICT (id) DO NOTHING
    RETURNING id
), taken AS (
    INSERT INTO {schema}.job_unique (scope, key, job_id)
    SELECT k.unique_scope, k.unique_key, k.id
    FROM (
        SELECT DISTINCT ON (i.unique_scope COLLATE "C", i.unique_key COLLATE "C") i.unique_scope, i.unique_key, i.id
        FROM input AS i
        WHERE i.unique_key IS NOT NULL
          AND (NOT i.chosen OR EXISTS (SELECT FROM chosen AS c WHERE c.id = i.id))
        ORDER BY i.unique_scope COLLATE "C", i.unique_key COLLATE "C", i.ord
    ) AS k
    ON CONFLICT (scope, key) DO NOTHING
    RETURNING job_id
), accepted AS MATERIALIZED (
    SELECT i.id, i.queue, i.kind, i.priority, i.max_attempts, i.payload_bytes, i.payload, i.raw, i.props,
           i.fingerprint, i.unique_scope, i.unique_key, i.run_at, i.later, i.reason, i.ord
    FROM input AS i
    WHERE (NOT i.chosen OR EXISTS (SELECT FROM chosen AS c WHERE c.id = i.id))
      AND (i.unique_key IS NULL OR EXISTS (SELECT FROM taken AS t WHERE t.job_id = i.id))
), runnable AS (
    INSERT INTO {schema}.job_queue
        (id, queue, kind, priority, lane, max_attempts, fingerprint, unique_scope, unique_key, payload_bytes, payload, raw, props)
    SELECT a.id, a.queue, a.kind, a.priority, a.priority, a.max_attempts, a.fingerprint, a.unique_scope, a.unique_key,
           a.payload_bytes, a.payload, a.raw, a.props
    FROM accepted AS a
    WHERE NOT a.later
    ORDER BY a.ord
), waiting AS (
    INSERT INTO {schema}.job_waiting
        (id, run_at, reason, queue, kind, priority, max_attempts, fingerprint, unique_scope, unique_key, payload_bytes, payload, raw, props)
    SELECT a.id, a.run_at, a.reason, a.queue, a.kind, a.priority, a.max_attempts, a.fingerprint, a.unique_scope, a.unique_key,
           a.payload_bytes, a.payload, a.raw, a.props
    FROM accepted AS a
    WHERE a.later
), fingerprint AS (
    INSERT INTO {schema}.job_fingerprint (fingerprint, job_id)
    SELECT a.fingerprint, a.id
    FROM accepted AS a
    WHERE a.fingerprint IS NOT NULL
), big AS (
    INSERT INTO {schema}.job_payload (id, payload, raw)
    SELECT b.id::uuid, b.payload::jsonb, b.raw
    FROM unnest($13::text[], $14::text[], $15::bytea[]) AS b(id, payload, raw)
    WHERE EXISTS (SELECT FROM accepted AS a WHERE a.id = b.id::uuid)
)
SELECT i.ord, EXISTS (SELECT FROM accepted AS a WHERE a.id = i.id),
       i.chosen AND NOT EXISTS (SELECT FROM chosen AS c WHERE c.id = i.id), i.later, coalesce(i.unique_key, '')
FROM input AS i
ORDER BY i.ord`)

// Fate is what became of one job of InsertKeyed.
type Fate struct {
	Inserted bool
	IDKnown  bool // the id was inserted before
	Later    bool // inserted into job_waiting
	Key      string
}

// InsertKeyed inserts jobs of any sort and reports, in order, what became of
// each. A job that is neither inserted nor known by its id lost its unique key.
func (s *Schema) InsertKeyed(ctx context.Context, q Querier, n *NewJobs) ([]Fate, error) {
	rows, err := q.Query(ctx, s.SQL(insertKeyed),
		n.IDs, n.Queues, n.Kinds, n.Priorities, n.MaxAttempts,
		n.PayloadBytes, n.Payloads, n.Raws, n.Props,
		n.LaneQueues, n.LanePriorities, n.Fingerprints,
		n.BigIDs, n.BigPayloads, n.BigRaws,
		n.Chosen, n.UniqueScopes, n.UniqueKeys, n.RunAts, n.DelaysUS, n.UniqueSpecs, n.Reasons)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	fates := make([]Fate, 0, n.Len())
	for rows.Next() {
		var ord int64
		var f Fate
		if err := rows.Scan(&ord, &f.Inserted, &f.IDKnown, &f.Later, &f.Key); err != nil {
			return nil, err
		}
		fates = append(fates, f)
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	if len(fates) != n.Len() {
		return nil, fmt.Errorf("insert reported %d of %d jobs", len(fates), n.Len())
	}
	return fates, nil
}

// The insert that lost a key sees, in its own snapshot, neither the row it tried
// to insert nor the holder's: the holder is looked up in a new statement.
var holders = Define(`
SELECT k.ord, h.job_id::text
FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS k(scope, key, ord)
CROSS JOIN LATERAL {schema}.unique_holder(k.scope, k.key) AS h(job_id)
WHERE h.job_id IS NOT NULL`)

// Holders returns the ids of the jobs that hold the keys, by position; a key
// that nobody holds any more is missing.
func (s *Schema) Holders(ctx context.Context, q Querier, scopes, keys []string) (map[int]string, error) {
	rows, err := q.Query(ctx, s.SQL(holders), scopes, keys)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	found := map[int]string{}
	for rows.Next() {
		var ord int64
		var id string
		if err := rows.Scan(&ord, &id); err != nil {
			return nil, err
		}
		found[int(ord)-1] = id
	}
	return found, rows.Err()
}

var forgetChosen = Define(`
WITH gone AS (
    DELETE FROM {schema}.job_client_id WHERE id = ANY ($1::text[]::uuid[]) RETURNING id
)
SELECT count(*) FROM gone`)

// ForgetChosen takes back the ids of jobs that were not inserted after all, so
// that they can be inserted later.
func (s *Schema) ForgetChosen(ctx context.Context, q Querier, ids []string) error {
	return drain(q.Query(ctx, s.SQL(forgetChosen), ids))
}

var notifyTx = Define(`SELECT pg_notify($1::text, $2::text)`)

// NotifyTx wakes workers when the transaction commits.
func (s *Schema) NotifyTx(ctx context.Context, q Querier, channel, wake string) error {
	return drain(q.Query(ctx, s.SQL(notifyTx), channel, wake))
}

func drain(rows Rows, err error) error {
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
	}
	return rows.Err()
}
