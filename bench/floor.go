package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"
)

func init() { contestants["floor"] = func(s Setup) Contestant { return &floor{setup: s} } }

// floor is the least SQL that takes a job through simplequeue's tables: no
// lanes, leases, permits, goroutine per job or heartbeat. What simplequeue's
// engine costs is the distance to it.
type floor struct {
	setup  Setup
	pool   *pgxpool.Pool
	tables []string // hold the rows of job_queue
}

const (
	floorBatch      = 500
	floorClaimers   = 2
	floorCompleters = 2
)

func (f *floor) About() About {
	return About{
		Version:  moduleVersion("github.com/simplequeue/simplequeue"),
		Settings: fmt.Sprintf("claimers=%d completers=%d batch=%d insert=COPY", floorClaimers, floorCompleters, floorBatch),
		Schema:   "simplequeue",
		Archive:  "^job_queue_(archive|dlq)",
	}
}

func (f *floor) Lacks(what feature) string { return "plain SQL without " + string(what) }

// Open asks for generic plans and index scans, as the library does for each of
// its statements.
func (f *floor) Open(ctx context.Context) (err error) {
	f.pool, err = openPool(ctx, f.setup, map[string]string{"plan_cache_mode": "force_generic_plan", "enable_seqscan": "off"})
	return err
}

func (f *floor) Migrate(ctx context.Context) error {
	if err := migrateSimplequeue(ctx, f.pool); err != nil {
		return err
	}
	return f.findTables(ctx)
}

// findTables finds the tables that hold the rows of job_queue, but for the one of
// jobs that were given back.
func (f *floor) findTables(ctx context.Context) error {
	return f.pool.QueryRow(ctx, `
SELECT array_agg(p.relid::regclass::text ORDER BY p.relid)
FROM pg_partition_tree('simplequeue.job_queue') AS p
WHERE p.isleaf AND p.relid <> 'simplequeue.job_queue_front'::regclass`).Scan(&f.tables)
}

func (f *floor) Insert(ctx context.Context, jobs []Job) error {
	columns := []string{"id", "queue", "lane", "payload"}
	_, err := f.pool.CopyFrom(ctx, pgx.Identifier{"simplequeue", "job_queue"}, columns,
		pgx.CopyFromSlice(len(jobs), func(i int) ([]any, error) {
			id, text, err := floorRow(jobs[i])
			return []any{id, benchQueue, 0, text}, err
		}))
	return err
}

// InsertOne is one statement and one commit.
func (f *floor) InsertOne(ctx context.Context, job Job) (bool, error) {
	id, text, err := floorRow(job)
	if err != nil {
		return false, err
	}
	_, err = f.pool.Exec(ctx, `
INSERT INTO simplequeue.job_queue (id, queue, lane, payload)
VALUES ($1, $2, 0, $3)`, id, benchQueue, text)
	return true, err
}

func floorRow(job Job) (id [16]byte, payload []byte, err error) {
	if id, err = uuid.NewV7(); err != nil {
		return id, nil, err
	}
	payload, err = json.Marshal(job.Payload)
	return id, payload, err
}

// floorClaims are claimed jobs of one partition of job_running.
type floorClaims struct {
	table string
	ids   []int64
}

func (f *floor) Run(ctx context.Context, work Work) error {
	claimed := make(chan floorClaims, floorCompleters)
	g, ctx := errgroup.WithContext(ctx)
	part := func(f func(context.Context) error) {
		g.Go(func() error {
			if err := f(ctx); err != nil && ctx.Err() == nil {
				return err
			}
			return nil
		})
	}
	for range floorClaimers {
		part(func(ctx context.Context) error { return f.claim(ctx, claimed, work) })
	}
	for range floorCompleters {
		part(func(ctx context.Context) error { return f.complete(ctx, claimed) })
	}
	return g.Wait()
}

// floorClaim claims from one table of job_queue: a ctid names a row of one table
// only. The running rows go
// through the parent; tableoid says where they are.
const floorClaim = `
WITH claimed AS (
    DELETE FROM %s
    WHERE ctid = ANY (ARRAY(
        SELECT j.ctid FROM %[1]s AS j
        WHERE j.queue = $1 AND j.lane = 0 AND j.seq > $2
        ORDER BY j.seq LIMIT $3 FOR UPDATE SKIP LOCKED))
    RETURNING id, seq, created_at, attempt, max_attempts, reprocess_count, crash_count, payload_bytes, priority, lane, queue, kind, payload
)
INSERT INTO simplequeue.job_running
    (claim_nonce, claimed_at, worker_id, lease_ms, id, seq, created_at, attempt, max_attempts, reprocess_count, crash_count,
     payload_bytes, priority, lane, queue, kind, payload)
SELECT 0, now(), '00000000-0000-0000-0000-000000000000', 60000, c.id, c.seq, c.created_at, c.attempt + 1, c.max_attempts,
       c.reprocess_count, c.crash_count, c.payload_bytes, c.priority, c.lane, c.queue, c.kind, c.payload
FROM claimed AS c
RETURNING claim_id, seq, payload, tableoid::regclass::text`

// claim goes round the tables. It reads each from a little before where
// it was, and from its start when that has run short.
func (f *floor) claim(ctx context.Context, claimed chan<- floorClaims, work Work) error {
	const trail = 20 * floorBatch
	statements, after := make([]string, len(f.tables)), make([]int64, len(f.tables))
	for i, table := range f.tables {
		statements[i] = fmt.Sprintf(floorClaim, table)
	}
	empty := 0 // tables in a row, read from their starts
	for i := 0; ; i = (i + 1) % len(f.tables) {
		rows, err := f.pool.Query(ctx, statements[i], benchQueue, after[i], floorBatch)
		if err != nil {
			return err
		}
		ids := map[string][]int64{}
		var payloads [][]byte
		var id, seq int64
		var payload []byte
		var table string
		fromStart := after[i] == 0
		if _, err := pgx.ForEachRow(rows, []any{&id, &seq, &payload, &table}, func() error {
			ids[table], payloads = append(ids[table], id), append(payloads, payload)
			after[i] = max(after[i], seq-trail)
			return nil
		}); err != nil {
			return err
		}
		for _, text := range payloads {
			var p Payload
			if err := json.Unmarshal(text, &p); err != nil {
				return err
			}
			if err := work(ctx, p, 1); err != nil {
				return err
			}
		}
		for table, ids := range ids {
			select {
			case claimed <- floorClaims{table, ids}:
			case <-ctx.Done():
				return nil
			}
		}
		switch {
		case len(payloads) > 0:
			empty = 0
		case !fromStart:
			after[i] = 0
		default:
			empty++
		}
		if empty >= len(f.tables) {
			empty = 0
			if wait(ctx, 5*time.Millisecond) != nil {
				return nil
			}
		}
	}
}

const floorArchive = `
WITH moved AS (
    DELETE FROM %s WHERE claim_id = ANY ($1::bigint[])
    RETURNING id, created_at, claimed_at, worker_id, attempt, max_attempts, reprocess_count, crash_count, priority, queue, kind, payload
)
INSERT INTO simplequeue.job_queue_archive
    (id, created_at, started_at, finished_at, worker_id, expires_on, attempt, max_attempts, reprocess_count, crash_count,
     priority, state, queue, kind, payload)
SELECT m.id, m.created_at, m.claimed_at, now(), m.worker_id, (now() AT TIME ZONE 'UTC')::date + 7, m.attempt, m.max_attempts,
       m.reprocess_count, m.crash_count, m.priority, 'completed', m.queue, m.kind, m.payload
FROM moved AS m`

func (f *floor) complete(ctx context.Context, claimed <-chan floorClaims) error {
	for {
		select {
		case c := <-claimed:
			if _, err := f.pool.Exec(ctx, fmt.Sprintf(floorArchive, c.table), c.ids); err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
}

func (f *floor) Settled(ctx context.Context) (settled bool, err error) {
	err = f.pool.QueryRow(ctx, `
SELECT NOT EXISTS (SELECT FROM simplequeue.job_queue) AND NOT EXISTS (SELECT FROM simplequeue.job_running)`).Scan(&settled)
	return settled, err
}

func (f *floor) Close() {
	if f.pool != nil {
		f.pool.Close()
	}
}
