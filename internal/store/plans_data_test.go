package store_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// plansData is a database with a long backlog. Rows are numbered from 1, and
// what is in a row follows from its number.
type plansData struct {
	n    int // rows of job_queue, of job_waiting and of the archive
	pool *pgxpool.Pool
}

const (
	plansRunning   = 5000
	plansStale     = 20          // of the running, abandoned
	claimStep      = 200         // between one claim_id and the next: all four tables are in use
	plansDue       = 2000        // of job_waiting, in the last ten seconds
	plansParked    = 2000        // of job_waiting
	plansUnchecked = 2000        // of job_fingerprint
	plansLine      = 100         // jobs at one gate; every second gate has one inside
	plansLooks     = 2000        // of job_gate_look
	plansLate      = 2000        // of the held, whose hold is over
	plansMark      = 600_000_000 // microseconds: what has been due for longer has gone
	plansSeqs      = 1 << 20     // of the four tables of job_queue
)

// Ids of the library order by their time; here, by their table and number.
const (
	waitingIDs = iota + 1
	queueIDs
	runningIDs
	finishedIDs
	archiveIDs
	uncheckedIDs
	newIDs
	gatedIDs
	heldIDs
	fairIDs
)

func plansID(table, i int) string { return fmt.Sprintf("%032x", int64(table)<<40|int64(i)) }

// seq of the i-th row of job_queue: the rows are spread over all tables of the
// ring, however few they are.
func (d *plansData) seq(i int) int64 { return int64(i) * int64(plansSeqs/d.n) }

// prepare makes partitions and keeps autovacuum away, and with it fresh
// statistics.
func (d *plansData) prepare(t *testing.T) {
	t.Helper()
	d.exec(t, `
		CREATE FUNCTION plans_id(t integer, i integer) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
		    SELECT lpad(to_hex(t::bigint << 40 | i), 32, '0')::uuid
		$$;
		SELECT simplequeue.make_partitions(p, ARRAY[86400, 604800], 1)
		FROM unnest(ARRAY['job_queue_archive', 'job_queue_dlq']) AS p`)
	for _, table := range d.tables(t) {
		d.exec(t, "ALTER TABLE "+table+" SET (autovacuum_enabled = off)")
	}
}

// tables are those that hold rows.
func (d *plansData) tables(t *testing.T) []string {
	t.Helper()
	rows, err := d.pool.Query(t.Context(), `
		SELECT c.oid::regclass::text
		FROM pg_class AS c
		WHERE c.relnamespace = 'simplequeue'::regnamespace AND c.relkind = 'r' AND c.relname <> 'schema_migration'`)
	if err != nil {
		t.Fatal(err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func (d *plansData) analyze(t *testing.T) {
	t.Helper()
	for _, table := range d.tables(t) {
		d.exec(t, "ANALYZE "+table)
	}
}

// truncate empties all tables. They have no statistics then.
func (d *plansData) truncate(t *testing.T) {
	t.Helper()
	for _, table := range d.tables(t) {
		d.exec(t, "TRUNCATE "+table)
	}
}

// drain leaves statistics of the worst sort behind: taken when the rows of every
// table had gone and its pages had not, so that the planner takes a table for
// empty whatever its size.
func (d *plansData) drain(t *testing.T) {
	t.Helper()
	d.truncate(t)
	(&plansData{n: 200, pool: d.pool}).fill(t)
	for _, table := range d.tables(t) {
		d.exec(t, "DELETE FROM "+table)
	}
	d.analyze(t)
}

// fill fills all tables. Jobs that have more than a row hold a unique key, a
// fingerprint and a payload stored apart: one in 19 of the backlog, every second
// of the running.
func (d *plansData) fill(t *testing.T) {
	t.Helper()
	d.exec(t, fmt.Sprintf(`
		INSERT INTO simplequeue.job_queue
		    (id, seq, lane, priority, queue, kind, unique_scope, unique_key, fingerprint, payload_bytes, payload)
		SELECT plans_id(%[2]d, i), i * %[3]d::bigint, (i / 10 %% 3 * 4)::smallint, (i / 10 %% 3 * 4)::smallint, 'q' || i %% 10, 'k' || i %% 4,
		       CASE WHEN i %% 19 = 0 THEN 'q' || i %% 10 END, CASE WHEN i %% 19 = 0 THEN 'queue' || i END,
		       CASE WHEN i %% 19 = 0 THEN 'f' || i %% 5000 END, CASE WHEN i %% 19 = 0 THEN 2000 ELSE 0 END,
		       CASE WHEN i %% 19 > 0 THEN '{"n": 1}'::jsonb END
		FROM generate_series(1, %[1]d) AS i;
		INSERT INTO simplequeue.job_queue (id, queue, lane, seq)
		SELECT gen_random_uuid(), 'q' || i %% 10, -1 - i %% 2, i FROM generate_series(1, 200) AS i;

		INSERT INTO simplequeue.job_waiting
		    (id, run_at, reason, crash_count, priority, queue, kind, unique_scope, unique_key, fingerprint, payload_bytes, payload)
		SELECT plans_id(%[4]d, i),
		       CASE WHEN i <= %[5]d THEN clock_timestamp() - i * interval '5 milliseconds'
		            WHEN i <= %[6]d THEN 'infinity'
		            ELSE clock_timestamp() + interval '2 hours' + i * interval '1 second' END,
		       CASE WHEN i > %[5]d AND i <= %[6]d THEN 'unknown_kind' ELSE 'scheduled' END,
		       CASE WHEN i %% 100 = 0 THEN 1 ELSE 0 END, (i / 10 %% 3 * 4)::smallint, 'q' || i %% 10, 'k' || i %% 4,
		       CASE WHEN i %% 19 = 0 THEN 'q' || i %% 10 END, CASE WHEN i %% 19 = 0 THEN 'waiting' || i END,
		       CASE WHEN i %% 19 = 0 THEN 'f' || i %% 5000 END, CASE WHEN i %% 19 = 0 THEN 2000 ELSE 0 END,
		       CASE WHEN i %% 19 > 0 THEN '{"n": 1}'::jsonb END
		FROM generate_series(1, %[1]d + %[6]d) AS i;

		INSERT INTO simplequeue.job_running
		    (claim_id, claim_nonce, claimed_at, id, seq, created_at, worker_id, lease_ms, attempt, max_attempts, reprocess_count,
		     crash_count, payload_bytes, priority, lane, queue, kind, unique_scope, unique_key, fingerprint, payload, props)
		OVERRIDING SYSTEM VALUE
		SELECT i * %[9]d, i, clock_timestamp() - CASE WHEN i %% %[10]d = 0 THEN interval '1 day' ELSE '1 second' END,
		       plans_id(%[7]d, i), i, clock_timestamp(), plans_id(9, i %% 50), 7200000, 1, 3, 0,
		       0, CASE WHEN i %% 2 = 0 THEN 2000 ELSE 0 END, 0, 0, 'q' || i %% 10, 'k' || i %% 4,
		       CASE WHEN i %% 2 = 0 THEN 'q' || i %% 10 END, CASE WHEN i %% 2 = 0 THEN 'running' || i END,
		       CASE WHEN i %% 2 = 0 THEN 'f' || i %% 5000 END, CASE WHEN i %% 2 > 0 THEN '{"n": 1}'::jsonb END,
		       CASE WHEN i %% 2 = 0 THEN jsonb_build_object('gates', ARRAY['o' || E'\tq0\trunning' || i]) END
		FROM generate_series(1, %[8]d) AS i;
		INSERT INTO simplequeue.job_gate_hold (gate, slot, job_id, place, blocks)
		SELECT 'o' || E'\tq0\trunning' || i, 0, plans_id(%[7]d, i), i, false FROM generate_series(2, %[8]d, 2) AS i;
		INSERT INTO simplequeue.job_lease (claim_id, claim_nonce, beat_at)
		SELECT i * %[9]d + i %% 100 / 99, i, clock_timestamp() - interval '20 seconds'
		FROM generate_series(1, %[8]d) AS i
		WHERE i %% %[10]d <> 0;
		INSERT INTO simplequeue.job_cancel (claim_id, claim_nonce, job_id)
		SELECT i * 10 * %[9]d + i %% 2, i * 10, gen_random_uuid() FROM generate_series(1, 100) AS i;`,
		d.n, queueIDs, plansSeqs/d.n, waitingIDs, plansDue, plansDue+plansParked,
		runningIDs, plansRunning, claimStep, plansRunning/plansStale))
	d.exec(t, fmt.Sprintf(`
		SELECT setval(pg_get_serial_sequence('simplequeue.job_queue', 'seq'), %d),
		       setval(pg_get_serial_sequence('simplequeue.job_running', 'claim_id'), %d)`, plansSeqs, plansRunning*claimStep))
	for _, from := range []string{"job_queue", "job_waiting", "job_running"} {
		d.exec(t, fmt.Sprintf(`
			INSERT INTO simplequeue.job_unique (scope, key, job_id)
			SELECT j.unique_scope, j.unique_key, j.id FROM simplequeue.%[1]s AS j WHERE j.unique_key IS NOT NULL;
			INSERT INTO simplequeue.job_fingerprint (job_id, fingerprint, checked)
			SELECT j.id, j.fingerprint, true FROM simplequeue.%[1]s AS j WHERE j.fingerprint IS NOT NULL;
			INSERT INTO simplequeue.job_payload (id, payload)
			SELECT j.id, '{"n": 1}' FROM simplequeue.%[1]s AS j WHERE j.payload_bytes > 0;`, from))
	}
	d.fillGates(t)
	d.exec(t, fmt.Sprintf(`
		INSERT INTO simplequeue.job_fingerprint (job_id, fingerprint)
		SELECT plans_id(%[5]d, i), 'f' || i %% 5000 FROM generate_series(1, %[4]d) AS i;
		INSERT INTO simplequeue.job_client_id (id, inserted_at)
		SELECT plans_id(%[6]d, i), now() - interval '8 days' FROM generate_series(1, %[1]d / 5) AS i;
		INSERT INTO simplequeue.job_client_id (id, inserted_at)
		SELECT gen_random_uuid(), now() - interval '14 days' + i * interval '14 days' / %[1]d FROM generate_series(1, %[1]d) AS i;

		INSERT INTO simplequeue.job_finished
		    (id, created_at, attempt, max_attempts, reprocess_count, crash_count, payload_bytes, priority, state, queue, kind)
		SELECT plans_id(%[2]d, i), now(), 1, 3, 0, 0, 0, 0, CASE WHEN i > %[1]d / 5 - 100 THEN 'completed' ELSE 'cancelled' END, 'q' || i %% 10, 'k'
		FROM generate_series(1, %[1]d / 5) AS i;
		INSERT INTO simplequeue.job_queue_archive
		    (id, created_at, finished_at, expires_on, attempt, max_attempts, reprocess_count, crash_count, priority, state, queue, kind)
		SELECT plans_id(%[3]d, i), now(), now(), (now() AT TIME ZONE 'UTC')::date + 7, 1, 3, 0, 0, 0, 'completed', 'q' || i %% 10, 'k'
		FROM generate_series(1, %[1]d) AS i;
		INSERT INTO simplequeue.job_queue_dlq
		    (id, created_at, finished_at, expires_on, attempt, max_attempts, reprocess_count, crash_count, priority, state, queue, kind)
		SELECT plans_id(%[3]d, %[1]d + i), now(), now(), (now() AT TIME ZONE 'UTC')::date + 7, 1, 3, 0, 0, 0, 'failed', 'q' || i %% 10, 'k'
		FROM generate_series(1, %[1]d / 10) AS i;

		INSERT INTO simplequeue.job_lane (queue, priority) SELECT 'q' || i %% 10, i / 10 %% 3 * 4 FROM generate_series(1, 60) AS i;
		INSERT INTO simplequeue.job_worker (worker_id, name, queues, seen_at)
		SELECT plans_id(9, i), 'w', '{}', now() - i * interval '1 minute' FROM generate_series(1, 200) AS i;
		DELETE FROM simplequeue.job_sweep;
		INSERT INTO simplequeue.job_sweep (name, swept_at, continuous_since)
		VALUES ('reaper', now(), now() - interval '10 days'), ('janitor', '-infinity', now()), ('rotation', '-infinity', '-infinity');`,
		d.n, finishedIDs, archiveIDs, plansUnchecked, uncheckedIDs, waitingIDs))
}

// fillGates makes lines in front of gates, and looks at half of the gates.
func (d *plansData) fillGates(t *testing.T) {
	t.Helper()
	d.exec(t, fmt.Sprintf(`
		INSERT INTO simplequeue.job_waiting (id, run_at, reason, queue, payload, props)
		SELECT plans_id(%[1]d, i), 'infinity', 'gated', 'q0', '{"n": 1}', jsonb_build_object('gates', ARRAY['o' || E'\tq0\tk' || i / %[2]d])
		FROM generate_series(0, %[3]d - 1) AS i;
		INSERT INTO simplequeue.job_gated (job_id, gate, place)
		SELECT plans_id(%[1]d, i), 'o' || E'\tq0\tk' || i / %[2]d, i + 1 FROM generate_series(0, %[3]d - 1) AS i;
		INSERT INTO simplequeue.job_gate_hold (gate, slot, job_id, place, blocks)
		SELECT 'o' || E'\tq0\tk' || i, 0, plans_id(0, i), 0, false FROM generate_series(0, %[3]d / %[2]d - 1, 2) AS i;
		INSERT INTO simplequeue.job_gate_hold (gate, slot, job_id, place, blocks, blocked_at)
		SELECT 'o' || E'\tq0\tdead' || i, 0, plans_id(0, i), 0, true, now() FROM generate_series(1, 20) AS i;
		INSERT INTO simplequeue.job_gate_look (gate)
		SELECT 'o' || E'\tq0\tk' || i %% (%[3]d / %[2]d) FROM generate_series(1, %[4]d) AS i`,
		gatedIDs, plansLine, d.n, plansLooks))
	// A fair gate with 100 keys, whose window is half claimed.
	d.exec(t, fmt.Sprintf(`
		INSERT INTO simplequeue.job_waiting (id, run_at, reason, queue, payload, props)
		SELECT plans_id(%[1]d, i), 'infinity', 'gated', 'q0', '{"n": 1}', jsonb_build_object('gates', ARRAY['f' || E'\\tq0'], 'fairness_key', i %% 100)
		FROM generate_series(1, %[2]d) AS i;
		INSERT INTO simplequeue.job_gated (job_id, gate, key, place)
		SELECT plans_id(%[1]d, i), 'f' || E'\\tq0', i %% 100, i FROM generate_series(1, %[2]d) AS i;
		INSERT INTO simplequeue.job_gate_hold (gate, slot, job_id, place, blocks)
		SELECT 'f' || E'\\tq0', -i, plans_id(CASE WHEN i %% 2 = 0 THEN %[3]d ELSE 0 END, %[2]d - i), 0, false FROM generate_series(1, 200) AS i;
		DELETE FROM simplequeue.job_gate_look WHERE gate LIKE 'f%%';
		INSERT INTO simplequeue.job_gate_look (id, gate) OVERRIDING SYSTEM VALUE SELECT 1 << 30, 'f' || E'\\tq0'`,
		fairIDs, d.n, queueIDs))
	d.exec(t, fmt.Sprintf(`
		INSERT INTO simplequeue.job_waiting (id, run_at, reason, queue, payload)
		SELECT plans_id(%[1]d, i), 'infinity', 'held', 'q0', '{"n": 1}' FROM generate_series(1, %[2]d) AS i;
		INSERT INTO simplequeue.job_held (job_id, expires_at, gated)
		SELECT plans_id(%[1]d, i), clock_timestamp() + (CASE WHEN i <= %[3]d THEN -i ELSE i END) * interval '1 second' + interval '-2 hours' * (i <= %[3]d)::integer, false
		FROM generate_series(1, %[2]d) AS i`,
		heldIDs, d.n, plansLate))
}

// kill makes half of the rows of the backlog dead ones that nobody may remove,
// at the places where the statements would begin if they began at the start.
func (d *plansData) kill(t *testing.T) {
	t.Helper()
	d.exec(t, fmt.Sprintf(`
		INSERT INTO simplequeue.job_waiting (id, run_at, reason, queue)
		SELECT gen_random_uuid(), clock_timestamp() - interval '1 hour', 'dead', 'q0' FROM generate_series(1, %[1]d) AS i;
		INSERT INTO simplequeue.job_fingerprint (job_id, fingerprint)
		SELECT plans_id(0, i), 'dead' FROM generate_series(1, %[1]d) AS i;
		INSERT INTO simplequeue.job_unique (scope, key, job_id)
		SELECT '', 'dead' || i, gen_random_uuid() FROM generate_series(1, %[1]d) AS i`, d.n/2))
	old, err := d.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = old.Rollback(context.Background()) })
	if _, err := old.Exec(t.Context(), "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"); err != nil {
		t.Fatal(err)
	}
	if _, err := old.Exec(t.Context(), "SELECT FROM simplequeue.job_lane LIMIT 1"); err != nil {
		t.Fatal(err)
	}
	d.exec(t, fmt.Sprintf(`
		DELETE FROM simplequeue.job_queue WHERE lane >= 0 AND seq <= %[1]d;
		DELETE FROM simplequeue.job_waiting WHERE reason = 'dead';
		DELETE FROM simplequeue.job_fingerprint WHERE fingerprint = 'dead';
		DELETE FROM simplequeue.job_unique WHERE scope = '';
		DELETE FROM simplequeue.job_finished WHERE id <= plans_id(%[2]d, %[3]d)`, d.seq(d.n/2), finishedIDs, d.n/10))
}

func (d *plansData) exec(t *testing.T, sql string) {
	t.Helper()
	if _, err := d.pool.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%v:\n%s", err, sql)
	}
}
