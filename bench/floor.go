package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue/janitor"
	"github.com/simplequeue/simplequeue/migrate"
)

func init() { contestants["floor"] = func() Contestant { return &floor{} } }

// floor is the least SQL that takes a job through simplequeue's tables: no
// lanes, leases, permits, goroutine per job or heartbeat. What simplequeue's
// engine costs is the distance to it.
type floor struct{ pool *pgxpool.Pool }

const (
	floorBatch      = 500
	floorClaimers   = 2
	floorCompleters = 2
)

func (f *floor) Version() string { return moduleVersion("github.com/simplequeue/simplequeue") }

func (f *floor) Settings() string {
	return fmt.Sprintf("claimers=%d completers=%d batch=%d insert=COPY", floorClaimers, floorCompleters, floorBatch)
}

func (f *floor) Prepare(ctx context.Context, url string) error {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return err
	}
	config.ConnConfig.RuntimeParams["plan_cache_mode"] = "force_generic_plan"
	config.ConnConfig.RuntimeParams["enable_seqscan"] = "off"
	config.MaxConns = floorClaimers + floorCompleters + 2
	if f.pool, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		return err
	}
	if err := migrate.UpPool(ctx, f.pool, "simplequeue"); err != nil {
		return err
	}
	j, err := janitor.New(f.pool, janitor.Options{Schema: "simplequeue"})
	if err != nil {
		return err
	}
	return j.MakePartitions(ctx, []int64{7 * 24 * 3600}, nil)
}

func (f *floor) Insert(ctx context.Context, jobs []Payload) error {
	columns := []string{"id", "queue", "lane", "payload"}
	_, err := f.pool.CopyFrom(ctx, pgx.Identifier{"simplequeue", "job_queue"}, columns,
		pgx.CopyFromSlice(len(jobs), func(i int) ([]any, error) {
			id, err := uuid.NewV7()
			if err != nil {
				return nil, err
			}
			text, err := json.Marshal(jobs[i])
			return []any{[16]byte(id), benchQueue, 0, text}, err
		}))
	return err
}

func (f *floor) Run(ctx context.Context, handled func(Payload)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	claimed := make(chan []int64, floorCompleters)
	var wait sync.WaitGroup
	work := func(part func(context.Context) error) {
		wait.Go(func() {
			if err := part(ctx); err != nil && ctx.Err() == nil {
				cancel(err)
			}
		})
	}
	for range floorClaimers {
		work(func(ctx context.Context) error { return f.claim(ctx, claimed, handled) })
	}
	for range floorCompleters {
		work(func(ctx context.Context) error { return f.complete(ctx, claimed) })
	}
	<-ctx.Done()
	wait.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

const floorClaim = `
WITH claimed AS (
    DELETE FROM simplequeue.job_queue
    WHERE ctid = ANY (ARRAY(
        SELECT j.ctid FROM simplequeue.job_queue AS j
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
RETURNING claim_id, seq, payload`

// claim reads a lane from a little before where it was, and from its start when
// that has run short.
func (f *floor) claim(ctx context.Context, claimed chan<- []int64, handled func(Payload)) error {
	const trail = 20 * floorBatch
	var after int64
	for {
		rows, err := f.pool.Query(ctx, floorClaim, benchQueue, after, floorBatch)
		if err != nil {
			return err
		}
		var ids []int64
		var payloads [][]byte
		var id, seq int64
		var payload []byte
		if _, err := pgx.ForEachRow(rows, []any{&id, &seq, &payload}, func() error {
			ids, payloads = append(ids, id), append(payloads, payload)
			after = max(after, seq-trail)
			return nil
		}); err != nil {
			return err
		}
		for _, text := range payloads {
			var p Payload
			if err := json.Unmarshal(text, &p); err != nil {
				return err
			}
			handled(p)
		}
		if len(ids) > 0 {
			select {
			case claimed <- ids:
			case <-ctx.Done():
				return nil
			}
			continue
		}
		t := time.NewTimer(5 * time.Millisecond)
		if after > 0 {
			t.Reset(0)
			after = 0
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil
		}
	}
}

const floorArchive = `
WITH moved AS (
    DELETE FROM simplequeue.job_running WHERE claim_id = ANY ($1::bigint[])
    RETURNING id, created_at, claimed_at, worker_id, attempt, max_attempts, reprocess_count, crash_count, priority, queue, kind, payload
)
INSERT INTO simplequeue.job_queue_archive
    (id, created_at, started_at, finished_at, worker_id, expires_on, attempt, max_attempts, reprocess_count, crash_count,
     priority, state, queue, kind, payload)
SELECT m.id, m.created_at, m.claimed_at, now(), m.worker_id, (now() AT TIME ZONE 'UTC')::date + 7, m.attempt, m.max_attempts,
       m.reprocess_count, m.crash_count, m.priority, 'completed', m.queue, m.kind, m.payload
FROM moved AS m`

func (f *floor) complete(ctx context.Context, claimed <-chan []int64) error {
	for {
		select {
		case ids := <-claimed:
			if _, err := f.pool.Exec(ctx, floorArchive, ids); err != nil {
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
