package store

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Lanes that are no priority.
const (
	FrontLane   = -1 // given back: claimed before all else
	SuspectLane = -2 // jobs whose worker died while it ran them: one at a time
)

// AllChunks claims from all tables of the queue.
const AllChunks = -1

// ClaimRequest says from which lanes to claim how much. Lanes come in groups
// that share a budget: all lanes of a queue share its free permits.
type ClaimRequest struct {
	Worker  uuid.UUID
	Nonce   int64
	LeaseMS int
	Limit   int

	First, Last []int32 // of each group, positions in the lanes from 1
	Budget      []int32 // of each group

	Queue []string // of each lane
	Lane  []int16
	After []int64 // claim only what entered the lane after this

	Chunk int64 // claim from this chunk and the next only, or AllChunks

	AnyKind []bool // only ClaimParked: of each queue, whether its kind does not matter
	Suspect []bool // of a parked claim: one job whose worker has died before may be taken
}

// Claimed is one row of job_running.
type Claimed struct {
	ClaimID        int64
	ID             [16]byte
	Seq            int64
	CreatedAt      time.Time
	Attempt        int32
	MaxAttempts    int32
	ReprocessCount int32
	CrashCount     int32
	PayloadBytes   int32
	Priority       int16
	Lane           int16
	Queue          string
	Kind           string
	UniqueScope    *string
	UniqueKey      *string
	Fingerprint    *string
	Payload        []byte
	Raw            []byte
	Errors         []byte
	Props          []byte

	Nonce int64 // only from Adopt
}

func (c *Claimed) dest() []any {
	return []any{
		&c.ClaimID, &c.ID, &c.Seq, &c.CreatedAt, &c.Attempt, &c.MaxAttempts, &c.ReprocessCount,
		&c.CrashCount, &c.PayloadBytes, &c.Priority, &c.Lane, &c.Queue, &c.Kind, &c.UniqueScope, &c.UniqueKey,
		&c.Fingerprint, &c.Payload, &c.Raw, &c.Errors, &c.Props,
	}
}

// The claim walks the groups and, inside a group, its lanes, each by an index
// range scan that stops at the budget: the nested LIMITs end the walk as soon as
// enough rows are locked, so no row is locked that is not taken. With seq >
// after the scan never steps over the dead entries of jobs claimed earlier.
// ctid = ANY (ARRAY(...)) is a TID scan whatever the statistics say, which a
// join against the locked rows is not; a ctid names a row of one table only, so
// there is one DELETE for each.
func claimFrom(tables []string, rows string) string {
	var deletes, claimed []string
	for i, table := range tables {
		deletes = append(deletes, fmt.Sprintf(`taken_%d AS (
    DELETE FROM {schema}.%[2]s
    WHERE ctid = ANY (ARRAY(SELECT p.ctid FROM picked AS p WHERE p.tableoid = '{schema_text}.%[2]s'::regclass))
    RETURNING {job}, seq, lane
)`, i, table))
		claimed = append(claimed, fmt.Sprintf("SELECT {t.job}, t.seq, t.lane FROM taken_%d AS t", i))
	}
	return `
WITH picked AS MATERIALIZED (
    SELECT picked.tableoid, picked.ctid
    FROM unnest($5::integer[], $6::integer[], $7::integer[]) AS g(first, last, budget)
    CROSS JOIN LATERAL (
        SELECT next.tableoid, next.ctid
        FROM unnest(($8::text[])[g.first:g.last], ($9::smallint[])[g.first:g.last], ($10::bigint[])[g.first:g.last])
             AS l(queue, lane, after)
        CROSS JOIN LATERAL (` + rows + `
        ) AS next
        LIMIT g.budget
    ) AS picked
    LIMIT $4::integer
), ` + strings.Join(deletes, ", ") + `
INSERT INTO {schema}.job_running
    ({job}, seq, lane, claim_nonce, claimed_at, worker_id, lease_ms)
SELECT c.id, c.created_at, c.attempt + 1, c.max_attempts, c.reprocess_count, c.crash_count, c.payload_bytes,
       c.priority, c.queue, c.kind, c.unique_scope, c.unique_key, c.fingerprint, c.payload, c.raw, c.errors, c.props,
       c.seq, c.lane, $1::bigint, clock_timestamp(), $2::uuid, $3::integer
FROM (
    ` + strings.Join(claimed, "\n    UNION ALL\n    ") + `
) AS c
RETURNING claim_id, id, seq, created_at, attempt, max_attempts, reprocess_count, crash_count, payload_bytes,
          priority, lane, queue, kind, unique_scope, unique_key, fingerprint, payload, raw, errors, props`
}

// From all tables, merged by seq.
var claimAll = Define(claimFrom([]string{"job_queue_front", "job_queue_0", "job_queue_1", "job_queue_2", "job_queue_3"}, `
            SELECT j.tableoid, j.ctid
            FROM {schema}.job_queue AS j
            WHERE j.queue = l.queue AND j.lane = l.lane AND j.seq > l.after
            ORDER BY j.seq
            LIMIT g.budget
            FOR UPDATE SKIP LOCKED`))

// From the tables of two chunks, one after the other, and nothing beyond them:
// where a table holds rows of a later round of the ring, others come before.
var claimChunk = Define(claimFrom([]string{"job_queue_{slot}", "job_queue_{next}"}, `
            SELECT head.tableoid, head.ctid
            FROM (
                SELECT j.tableoid, j.ctid
                FROM {schema}.job_queue_{slot} AS j
                WHERE j.queue = l.queue AND j.lane = l.lane AND j.seq > l.after AND j.seq < $11::bigint
                ORDER BY j.seq
                LIMIT g.budget
                FOR UPDATE SKIP LOCKED
            ) AS head
            UNION ALL
            SELECT tail.tableoid, tail.ctid
            FROM (
                SELECT j.tableoid, j.ctid
                FROM {schema}.job_queue_{next} AS j
                WHERE j.queue = l.queue AND j.lane = l.lane AND j.seq > l.after AND j.seq < $12::bigint
                ORDER BY j.seq
                LIMIT g.budget
                FOR UPDATE SKIP LOCKED
            ) AS tail`))

// Claim moves runnable jobs to job_running and returns them once the move has
// committed: a job started earlier could finish before there is a row to settle.
func (db *DB) Claim(ctx context.Context, limit time.Duration, r ClaimRequest) ([]Claimed, error) {
	var jobs []Claimed
	step := Step{
		Statement: claimAll,
		Args:      []any{r.Nonce, r.Worker, r.LeaseMS, r.Limit, r.First, r.Last, r.Budget, r.Queue, r.Lane, r.After},
		Scan:      collect(&jobs),
	}
	if r.Chunk != AllChunks {
		step.Statement, step.Slot = claimChunk, Slot(r.Chunk)
		step.Args = append(step.Args, ChunkStart(r.Chunk+1), ChunkStart(r.Chunk+2))
	}
	if err := db.Tx(ctx, limit, step); err != nil {
		return nil, err
	}
	return jobs, nil
}

func collect(jobs *[]Claimed) func(pgx.Rows) error {
	return func(row pgx.Rows) error {
		*jobs = append(*jobs, Claimed{})
		return row.Scan((*jobs)[len(*jobs)-1].dest()...)
	}
}

// Parked jobs are claimed where they wait, by a program that knows their kind,
// or takes every kind;
// back in the queue, the next program might be one that does not.
var claimParked = Define(`
WITH claimed AS (
    DELETE FROM {schema}.job_waiting
    WHERE ctid = ANY (ARRAY(
        SELECT picked.ctid
        FROM unnest($4::text[], $5::text[], $6::integer[], $8::boolean[], $9::boolean[])
             AS k(queue, kind, budget, any_kind, suspect)
        CROSS JOIN LATERAL (
            SELECT known.ctid
            FROM (
                SELECT w.ctid
                FROM {schema}.job_waiting AS w
                WHERE w.reason = 'unknown_kind' AND w.queue = k.queue AND w.kind = k.kind
                  AND w.crash_count = 0 AND NOT k.any_kind
                ORDER BY w.created_at
                LIMIT k.budget
                FOR UPDATE SKIP LOCKED
            ) AS known
            UNION ALL
            SELECT every.ctid
            FROM (
                SELECT w.ctid
                FROM {schema}.job_waiting AS w
                WHERE w.reason = 'unknown_kind' AND w.queue = k.queue AND w.crash_count = 0 AND k.any_kind
                ORDER BY w.kind, w.created_at
                LIMIT k.budget
                FOR UPDATE SKIP LOCKED
            ) AS every
            UNION ALL
            SELECT suspect.ctid
            FROM (
                SELECT w.ctid
                FROM {schema}.job_waiting AS w
                WHERE w.reason = 'unknown_kind' AND w.crash_count > 0 AND w.queue = k.queue
                  AND (w.kind = k.kind OR k.any_kind) AND k.suspect
                ORDER BY w.created_at
                LIMIT 1
                FOR UPDATE SKIP LOCKED
            ) AS suspect
        ) AS picked
        LIMIT $7::integer
    ))
    RETURNING {job}
)
INSERT INTO {schema}.job_running
    ({job}, seq, lane, claim_nonce, claimed_at, worker_id, lease_ms)
SELECT c.id, c.created_at, c.attempt + 1, c.max_attempts, c.reprocess_count, c.crash_count, c.payload_bytes,
       c.priority, c.queue, c.kind, c.unique_scope, c.unique_key, c.fingerprint, c.payload, c.raw, c.errors, c.props,
       1, CASE WHEN c.crash_count > 0 THEN -2 ELSE -1 END, $1::bigint, clock_timestamp(), $2::uuid, $3::integer
FROM claimed AS c
RETURNING claim_id, id, seq, created_at, attempt, max_attempts, reprocess_count, crash_count, payload_bytes,
          priority, lane, queue, kind, unique_scope, unique_key, fingerprint, payload, raw, errors, props`)

// ClaimParked claims jobs of kinds that were unknown where they were met first:
// of a queue and the kind at the same place, or of any kind.
func (db *DB) ClaimParked(ctx context.Context, limit time.Duration, r ClaimRequest, kinds []string) ([]Claimed, error) {
	var jobs []Claimed
	err := db.Tx(ctx, limit, Step{
		Statement: claimParked,
		Args:      []any{r.Nonce, r.Worker, r.LeaseMS, r.Queue, kinds, r.Budget, r.Limit, r.AnyKind, r.Suspect},
		Scan:      collect(&jobs),
	})
	if err != nil {
		return nil, err
	}
	return jobs, nil
}

var payloads = Define(`
SELECT p.id, p.payload, p.raw
FROM {schema}.job_payload AS p
WHERE p.id = ANY ($1::uuid[])`)

// Payload is a payload stored apart from its job.
type Payload struct{ JSON, Raw []byte }

// Payloads returns the payloads of the given jobs.
func (db *DB) Payloads(ctx context.Context, limit time.Duration, ids [][16]byte) (map[[16]byte]Payload, error) {
	found := make(map[[16]byte]Payload, len(ids))
	err := db.Tx(ctx, limit, Step{Statement: payloads, Args: []any{uuids(ids)}, Scan: func(row pgx.Rows) error {
		var id [16]byte
		var p Payload
		if err := row.Scan(&id, &p.JSON, &p.Raw); err != nil {
			return err
		}
		found[id] = p
		return nil
	}})
	return found, err
}

// uuids are sent as text: every pgx mode and every pooler takes it.
func uuids(ids [][16]byte) []string {
	texts := make([]string, len(ids))
	for i, id := range ids {
		texts[i] = uuidText(id)
	}
	return texts
}

func uuidText(id [16]byte) string { return uuid.UUID(id).String() }

// The lanes ever used, oldest first. A lane registered by a transaction that
// commits late may have a lower id than one already seen, so the read reaches
// back a little. Those of queues with a limit begin with a '*'. The queues that
// are paused come along, as a lane that none has.
var lanes = Define(`
SELECT l.id, ltrim(l.queue, '*'), l.priority
FROM {schema}.job_lane AS l
WHERE l.id > $1::bigint
UNION ALL
SELECT 0, p.queue, -3
FROM {schema}.job_pause AS p`)

// Lane is one priority of one queue.
type Lane struct {
	Queue    string
	Priority int16
}

// Lanes calls add for each lane registered after the given position, in no
// order, and for each queue that is paused, and returns the new position.
func (db *DB) Lanes(ctx context.Context, limit time.Duration, after int64, add func(Lane)) (int64, error) {
	last := after
	err := db.Tx(ctx, limit, Step{Statement: lanes, Args: []any{max(after-1000, 0)}, Scan: func(row pgx.Rows) error {
		var id int64
		var l Lane
		if err := row.Scan(&id, &l.Queue, &l.Priority); err != nil {
			return err
		}
		last = max(last, id)
		add(l)
		return nil
	}})
	return last, err
}

var adopt = Define(`
SELECT r.claim_id, r.id, r.seq, r.created_at, r.attempt, r.max_attempts, r.reprocess_count, r.crash_count, r.payload_bytes,
       r.priority, r.lane, r.queue, r.kind, r.unique_scope, r.unique_key, r.fingerprint, r.payload, r.raw, r.errors, r.props,
       r.claim_nonce
FROM {schema}.job_running AS r
WHERE r.worker_id = $1::uuid AND r.claim_nonce = ANY ($2::bigint[])`)

// Adopt returns the jobs of claims by the given nonces: of claims whose commit
// went through although the answer was lost.
func (db *DB) Adopt(ctx context.Context, limit time.Duration, worker uuid.UUID, nonces []int64) ([]Claimed, error) {
	var jobs []Claimed
	err := db.Tx(ctx, limit, Step{Statement: adopt, Args: []any{worker, nonces}, Scan: func(row pgx.Rows) error {
		jobs = append(jobs, Claimed{})
		c := &jobs[len(jobs)-1]
		return row.Scan(append(c.dest(), &c.Nonce)...)
	}})
	return jobs, err
}
