package simplequeue_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
	"github.com/simplequeue/simplequeue/migrate"
	"github.com/simplequeue/simplequeue/reaper"
)

// schemaAt brings an empty database to a version of the schema.
func schemaAt(t testing.TB, pool *pgxpool.Pool, version int) {
	t.Helper()
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	text, _, _ := strings.Cut(migrate.SQL("simplequeue"), fmt.Sprintf("\n-- Migration %d:", version+1))
	if _, err := conn.Conn().PgConn().Exec(t.Context(), text).ReadAll(); err != nil {
		t.Fatalf("migrations up to %d: %v", version, err)
	}
}

// everywhere puts jobs into every table as programs of the first version did. The
// one that runs has lost its worker.
var everywhere = []string{
	`INSERT INTO simplequeue.job_lane (queue, priority) VALUES ('q', 0), ('q', 4)`,
	`INSERT INTO simplequeue.job_queue (id, queue, kind, priority, lane, payload, raw, errors, props, unique_scope, unique_key, fingerprint, attempt)
		VALUES ('01900000-0000-7000-8000-000000000001', 'q', 'k', 4, 4, '"pending"', '\x00', '[{"attempt": 1, "error": "broken"}]',
		        '{"metadata": {"a": "b"}, "timeout_ms": 60000}', 'q', 'key', 'print', 1)`,
	`INSERT INTO simplequeue.job_unique (scope, key, job_id) VALUES ('q', 'key', '01900000-0000-7000-8000-000000000001')`,
	`INSERT INTO simplequeue.job_fingerprint (job_id, fingerprint) VALUES ('01900000-0000-7000-8000-000000000001', 'print')`,
	`INSERT INTO simplequeue.job_queue (id, queue, lane, payload_bytes) VALUES ('01900000-0000-7000-8000-000000000002', 'q', 0, 3002)`,
	`INSERT INTO simplequeue.job_payload (id, payload) VALUES ('01900000-0000-7000-8000-000000000002', to_jsonb(repeat('p', 3000)))`,
	`INSERT INTO simplequeue.job_queue (id, queue, lane, seq, crash_count, attempt, payload) VALUES
		('01900000-0000-7000-8000-000000000003', 'q', -1, 1, 0, 0, '"given back"'),
		('01900000-0000-7000-8000-000000000004', 'q', -2, 2, 1, 1, '"suspect"')`,
	`INSERT INTO simplequeue.job_waiting (id, queue, reason, run_at, payload) VALUES
		('01900000-0000-7000-8000-000000000005', 'q', 'scheduled', now() + interval '1 second', '"scheduled"'),
		('01900000-0000-7000-8000-000000000006', 'q', 'retry', now(), '"retry"'),
		('01900000-0000-7000-8000-000000000007', 'q', 'unknown_kind', 'infinity', '"parked"')`,
	`INSERT INTO simplequeue.job_running (claim_nonce, claimed_at, id, seq, created_at, worker_id, lease_ms, attempt, max_attempts,
		                                  reprocess_count, crash_count, payload_bytes, priority, lane, queue, kind, payload)
		VALUES (7, now() - interval '1 hour', '01900000-0000-7000-8000-000000000008', 1, now(), gen_random_uuid(), 500, 1, 3, 0, 0, 0, 0, 0, 'q', '', '"running"')`,
	`INSERT INTO simplequeue.job_lease (claim_id, claim_nonce, beat_at) SELECT claim_id, claim_nonce, now() - interval '1 hour' FROM simplequeue.job_running`,
	`INSERT INTO simplequeue.job_finished (id, created_at, attempt, max_attempts, reprocess_count, crash_count, payload_bytes, priority, state, queue, kind, payload)
		VALUES ('01900000-0000-7000-8000-000000000009', now(), 1, 3, 0, 0, 0, 0, 'cancelled', 'q', '', '"finished"')`,
	`INSERT INTO simplequeue.job_queue_archive (id, created_at, finished_at, expires_on, attempt, max_attempts, reprocess_count, crash_count, priority, state, queue, kind, payload, result)
		VALUES ('01900000-0000-7000-8000-00000000000a', now(), now(), 'infinity', 1, 3, 0, 0, 0, 'completed', 'q', '', '"archived"', '1')`,
	`INSERT INTO simplequeue.job_queue_dlq (id, created_at, finished_at, expires_on, attempt, max_attempts, reprocess_count, crash_count, priority, state, queue, kind, payload)
		VALUES ('01900000-0000-7000-8000-00000000000b', now(), now(), 'infinity', 3, 3, 0, 0, 0, 'failed', 'q', '', '"dead"')`,
}

// since are the jobs that only programs of a later version could make.
var since = map[int][]string{
	2: {
		`INSERT INTO simplequeue.job_queue (id, queue, lane, payload_bytes) VALUES ('01900000-0000-7000-8000-00000000000c', 'q', 0, 1)`,
		`INSERT INTO simplequeue.job_payload (id, payload, steps) VALUES ('01900000-0000-7000-8000-00000000000c', '"steps"', '{"one": 1}')`,
	},
	4: {`SELECT simplequeue.set_queue_limit('b', 1)`},
	5: {
		`SELECT simplequeue.enqueue('q', '"ordered"', order_key => 'k')`, `SELECT simplequeue.enqueue('q', '"behind"', order_key => 'k')`,
		`SELECT simplequeue.enqueue('q', '"fair"', fairness_key => 'k')`,
		`SELECT simplequeue.enqueue('q', '"held"', job_id => '01900000-0000-7000-8000-00000000000d', hold => '1 hour')`,
	},
	6: {`SELECT simplequeue.enqueue('q', '"awaited"')`, `UPDATE simplequeue.job_queue SET props = '{"awaited": true}' WHERE payload = '"awaited"'`},
}

// rowsOf are the rows of every table of the schema but those of versions, as JSON.
func rowsOf(t testing.TB, pool *pgxpool.Pool) map[string]string {
	t.Helper()
	rows, err := pool.Query(t.Context(), `SELECT c.relname FROM pg_class AS c WHERE c.relnamespace = 'simplequeue'::regnamespace
		AND c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relname <> 'schema_migration'`)
	if err != nil {
		t.Fatal(err)
	}
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, table := range tables {
		all[table] = queryOne[string](t, pool, "SELECT coalesce(jsonb_agg(to_jsonb(t)), '[]')::text FROM simplequeue."+table+" AS t")
	}
	return all
}

// A database of any earlier version, with jobs in every table, is refused by a
// program of this one, which changes nothing in it, and comes up to this version
// with every row as it was; then all jobs run.
func TestUpgradeFromEveryVersion(t *testing.T) {
	t.Parallel()
	for version := 1; version < migrate.Latest(); version++ {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t, pgtest.EmptyDatabase(t), 8)
			schemaAt(t, pool, version)
			execute(t, pool, everywhere...)
			jobs := 11
			for v := 2; v <= version; v++ {
				execute(t, pool, since[v]...)
				jobs += []int{2: 1, 3: 0, 4: 0, 5: 4, 6: 1}[v]
			}
			before := rowsOf(t, pool)

			var mu sync.Mutex
			var ran []string
			opts := handler("q", func(_ context.Context, job *simplequeue.Job) error {
				mu.Lock()
				defer mu.Unlock()
				ran = append(ran, strings.Trim(string(job.Payload), `"`))
				return nil
			})
			opts.JanitorInterval = 50 * time.Millisecond
			q := newQueue(t, pool, opts)
			err := q.Run(t.Context())
			if says := fmt.Sprintf("at version %d, this program needs %d", version, migrate.Latest()); !errors.Is(err, simplequeue.ErrSchema) || !strings.Contains(err.Error(), says) {
				t.Errorf("Run: %v, want ErrSchema that says %q", err, says)
			}
			if diff := cmp.Diff(before, rowsOf(t, pool)); diff != "" {
				t.Errorf("a program that is too new has changed (-was +is):\n%s", diff)
			}

			migrated(t, pool, "simplequeue")
			q = newQueue(t, pool, opts) // one that has been refused does not run again
			for table, was := range before {
				if changed := queryOne[string](t, pool, `SELECT coalesce(string_agg(b.was::text, E'\n'), '')
					FROM jsonb_array_elements($1::text::jsonb) AS b(was)
					WHERE NOT EXISTS (SELECT FROM simplequeue.`+table+` AS t WHERE to_jsonb(t) @> b.was)`, was); changed != "" {
					t.Errorf("%s: the migrations have changed or lost\n%s", table, changed)
				}
			}

			if r, err := q.Insert(t.Context(), simplequeue.NewJob{Queue: "q", UniqueKey: "key"}); err != nil || !r.Duplicate || r.ID != uuid.MustParse("01900000-0000-7000-8000-000000000001") {
				t.Errorf("the key of a job from before the upgrade: %+v, %v", r, err)
			}
			if version >= 4 {
				insert(t, q, simplequeue.NewJob{Queue: "b", Delay: time.Hour})
				if _, err := q.Insert(t.Context(), simplequeue.NewJob{Queue: "b"}); !errors.Is(err, simplequeue.ErrQueueFull) {
					t.Errorf("the limit from before the upgrade: %v", err)
				}
			}
			if version >= 5 {
				if done, err := q.CommitHeld(t.Context(), uuid.MustParse("01900000-0000-7000-8000-00000000000d")); err != nil || len(done) != 1 {
					t.Errorf("the job held from before the upgrade: %v, %v", done, err)
				}
			}
			if done, err := q.Redrive(t.Context(), simplequeue.Filter{Queue: "q", States: []simplequeue.State{simplequeue.StateFailed, simplequeue.StateCancelled}}, simplequeue.RedriveOptions{}); err != nil || len(done.IDs) != 2 {
				t.Errorf("the dead letters from before the upgrade: %+v, %v", done, err)
			}
			r, err := reaper.New(pool, reaper.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if done, err := r.Once(t.Context()); err != nil || done.Requeued != 1 {
				t.Errorf("the job of a worker that died before the upgrade: %+v, %v", done, err)
			}
			start(t, q)
			awaitCompleted(t, q, "q", int64(jobs))
			mu.Lock()
			defer mu.Unlock()
			slices.Sort(ran)
			if len(ran) != jobs-1 || len(slices.Compact(ran)) != jobs-1 { // the archived one had run
				t.Errorf("ran %d jobs, want %d: %.40q", len(ran), jobs-1, ran)
			}
		})
	}
}
