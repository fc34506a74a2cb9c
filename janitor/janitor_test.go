package janitor_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue/internal/pgtest"
	"github.com/simplequeue/simplequeue/janitor"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// newJanitor returns a quiet janitor.
func newJanitor(t testing.TB, pool *pgxpool.Pool, opts janitor.Options) *janitor.Janitor {
	t.Helper()
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	j, err := janitor.New(pool, opts)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func execute(t testing.TB, pool *pgxpool.Pool, statements ...string) {
	t.Helper()
	for _, s := range statements {
		if _, err := pool.Exec(context.Background(), s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
}

func number(t testing.TB, pool *pgxpool.Pool, query string) int {
	t.Helper()
	var n int
	if err := pool.QueryRow(context.Background(), query).Scan(&n); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return n
}

// finish puts n jobs into job_finished, as a cancel or a caller in SQL does.
func finish(t testing.TB, pool *pgxpool.Pool, n int, state, queue, props string) {
	t.Helper()
	execute(t, pool, fmt.Sprintf(`INSERT INTO simplequeue.job_finished
		(id, created_at, attempt, max_attempts, reprocess_count, crash_count, payload_bytes, priority, state, queue, kind, payload, props)
		SELECT gen_random_uuid(), now(), 1, 3, 0, 0, 0, 0, '%s', '%s', '', '1', %s FROM generate_series(1, %d)`, state, queue, props, n))
}

// sweep makes one sweep that must go well.
func sweep(t testing.TB, j *janitor.Janitor) janitor.Result {
	t.Helper()
	r, err := j.Once(context.Background())
	if err != nil {
		t.Fatalf("Once: %v", err)
	}
	return r
}

// Finished jobs of any number move, completed ones to the archive and the
// others to the dead letter queue, and unfinished ones stay.
func TestFinishedJobsMove(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	j := newJanitor(t, pool, janitor.Options{})
	finish(t, pool, 2500, "completed", "a", "NULL")
	for _, state := range []string{"failed", "cancelled", "unprocessable", "critical_failure", "bad_job"} {
		finish(t, pool, 3, state, "a", "NULL")
	}
	execute(t, pool, `INSERT INTO simplequeue.job_queue (id, queue, lane) SELECT gen_random_uuid(), 'a', 0 FROM generate_series(1, 10)`)
	if r := sweep(t, j); r.Archived != 2500 || r.DeadLettered != 15 {
		t.Errorf("sweep: %+v, want 2500 archived and 15 dead letters", r)
	}
	if r := sweep(t, j); r != (janitor.Result{}) {
		t.Errorf("second sweep: %+v, want nothing", r)
	}
	for query, want := range map[string]int{
		"SELECT count(*) FROM simplequeue.job_queue_archive WHERE state = 'completed'": 2500,
		"SELECT count(*) FROM simplequeue.job_queue_dlq":                               15,
		"SELECT count(DISTINCT state) FROM simplequeue.job_queue_dlq":                  5,
		"SELECT count(*) FROM simplequeue.job_queue":                                   10,
		"SELECT count(*) FROM simplequeue.job_finished":                                0,
	} {
		if n := number(t, pool, query); n != want {
			t.Errorf("%s = %d, want %d", query, n, want)
		}
	}
}

// Many janitors share the work: each job moves once.
func TestJanitorsShareTheWork(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	finish(t, pool, 5000, "completed", "a", "NULL")
	var mu sync.Mutex
	moved := 0
	var all sync.WaitGroup
	for range 4 {
		j := newJanitor(t, pool, janitor.Options{})
		all.Go(func() {
			r, err := j.Once(context.Background())
			if err != nil {
				t.Errorf("Once: %v", err)
			}
			mu.Lock()
			defer mu.Unlock()
			moved += r.Archived
		})
	}
	all.Wait()
	if n := number(t, pool, "SELECT count(DISTINCT id) FROM simplequeue.job_queue_archive"); moved != 5000 || n != 5000 {
		t.Errorf("%d moved, %d archived, want 5000", moved, n)
	}
}

// A janitor alone keeps what the job, its queue and its options say.
func TestKeep(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	j := newJanitor(t, pool, janitor.Options{
		Keep:   janitor.Keep{Archive: 2 * 86400, DeadLetter: janitor.Forever},
		Queues: map[string]janitor.Keep{"short": {Archive: janitor.Nothing, DeadLetter: 86400}},
	})
	finish(t, pool, 1, "completed", "a", "NULL")
	finish(t, pool, 1, "failed", "a", "NULL")
	finish(t, pool, 1, "completed", "short", "NULL")
	finish(t, pool, 1, "failed", "short", "NULL")
	finish(t, pool, 1, "completed", "own", `'{"keep_archive": 864000, "keep_dlq": -2}'`)
	finish(t, pool, 1, "failed", "own", `'{"keep_archive": 864000, "keep_dlq": -2}'`)
	sweep(t, j)
	const today = "(clock_timestamp() AT TIME ZONE 'UTC')::date"
	for query, want := range map[string]int{
		"SELECT expires_on - " + today + " FROM simplequeue.job_queue_archive WHERE queue = 'a'":   2,
		"SELECT expires_on - " + today + " FROM simplequeue.job_queue_archive WHERE queue = 'own'": 10,
		"SELECT count(*) FROM simplequeue.job_queue_archive":                                       2,
		"SELECT expires_on - " + today + " FROM simplequeue.job_queue_dlq WHERE queue = 'short'":   1,
		"SELECT count(*) FROM simplequeue.job_queue_dlq_forever WHERE queue = 'a'":                 1,
		"SELECT count(*) FROM simplequeue.job_queue_dlq":                                           2,
	} {
		if n := number(t, pool, query); n != want {
			t.Errorf("%s = %d, want %d", query, n, want)
		}
	}
}

const partitions = `SELECT count(*) FROM pg_inherits WHERE inhrelid::regclass::text ~ '%s_p[0-9]{8}$'`

// Partitions for the days to come are there before the first job needs them,
// for every retention in use.
func TestPartitionsAreMadeAhead(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	sweep(t, newJanitor(t, pool, janitor.Options{
		Keep: janitor.Keep{Archive: 3600, DeadLetter: janitor.Forever}, Queues: map[string]janitor.Keep{"q": {Archive: 100 * 86400, DeadLetter: 50 * 86400}},
	}))
	for _, c := range []struct {
		parent string
		days   int // of the retention
	}{{"job_queue_archive", 0}, {"job_queue_archive", 100}, {"job_queue_dlq", 50}} {
		for ahead := range 8 {
			query := fmt.Sprintf(`SELECT count(*) FROM pg_class WHERE relname = '%s' || to_char((clock_timestamp() AT TIME ZONE 'UTC')::date + %d, '"_p"YYYYMMDD')`,
				c.parent, c.days+ahead)
			if number(t, pool, query) != 1 {
				t.Errorf("%s has no partition for a job that ends in %d days and is kept for %d", c.parent, ahead, c.days)
			}
		}
	}
}

// oldPartition makes a partition of a day that has passed, with one row.
func oldPartition(t testing.TB, pool *pgxpool.Pool, parent, day string) {
	t.Helper()
	child := "simplequeue." + parent + "_p" + strings.ReplaceAll(day, "-", "")
	execute(t, pool,
		fmt.Sprintf("CREATE TABLE %s PARTITION OF simplequeue.%s FOR VALUES FROM ('%s') TO ('%s'::date + 1)", child, parent, day, day),
		fmt.Sprintf(`INSERT INTO simplequeue.%s (id, created_at, finished_at, expires_on, attempt, max_attempts, reprocess_count, crash_count, priority, state, queue, kind)
			VALUES (gen_random_uuid(), now(), now(), '%s', 1, 1, 0, 0, 0, 'completed', 'old', '')`, parent, day))
}

// Expiry drops the partitions whose day has passed, rows and all; what expires
// today or later, or never, stays.
func TestExpiryDropsPartitions(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	j := newJanitor(t, pool, janitor.Options{Keep: janitor.Keep{Archive: janitor.Forever, DeadLetter: 1}})
	finish(t, pool, 1, "completed", "forever", "NULL")
	finish(t, pool, 1, "failed", "today", "NULL")
	oldPartition(t, pool, "job_queue_archive", "2020-02-29")
	oldPartition(t, pool, "job_queue_archive", "2021-12-31")
	oldPartition(t, pool, "job_queue_dlq", "2020-02-29")
	if r := sweep(t, j); r.Dropped != 3 {
		t.Errorf("%d partitions dropped, want 3", r.Dropped)
	}
	if n := number(t, pool, "SELECT count(*) FROM simplequeue.job WHERE queue = 'old'"); n != 0 {
		t.Errorf("%d expired rows are left", n)
	}
	if n := number(t, pool, "SELECT count(*) FROM simplequeue.job"); n != 2 {
		t.Errorf("%d rows are left, want the two that have not expired", n)
	}
	if n := number(t, pool, fmt.Sprintf(partitions, "2020")); n != 0 {
		t.Errorf("%d old partitions are left", n)
	}
}

// A reader of the archive holds up neither the janitor nor, through it, anyone
// else: expiry goes on later.
func TestExpiryDoesNotWaitForReaders(t *testing.T) {
	t.Parallel()
	for name, query := range map[string]string{
		"of the parent":    "SELECT count(*) FROM simplequeue.job_queue_archive",
		"of the partition": "SELECT count(*) FROM simplequeue.job_queue_archive_p20200229",
		"of the others":    "SELECT count(*) FROM simplequeue.job_queue_archive WHERE expires_on > '2100-01-01'",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.New(t)
			j := newJanitor(t, pool, janitor.Options{})
			sweep(t, j)
			oldPartition(t, pool, "job_queue_archive", "2020-02-29")
			oldPartition(t, pool, "job_queue_dlq", "2020-02-29")
			reader, err := pool.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = reader.Rollback(context.Background()) }()
			if _, err := reader.Exec(t.Context(), query); err != nil {
				t.Fatal(err)
			}
			finish(t, pool, 1, "completed", "a", "NULL")
			began := time.Now()
			if r := sweep(t, j); r.Dropped != 1 || r.Archived != 1 {
				t.Errorf("sweep beside the reader: %+v, want the dead letters' partition dropped and one job archived", r)
			}
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("the sweep took %v", took)
			}
			if name == "of the others" {
				if n := number(t, pool, "SELECT count(*) FROM ONLY simplequeue.job_queue_archive_p20200229"); n != 0 {
					t.Errorf("%d expired rows are left although nobody reads them", n)
				}
			}
			if err := reader.Rollback(t.Context()); err != nil {
				t.Fatal(err)
			}
			if r := sweep(t, j); r.Dropped != 1 {
				t.Errorf("sweep after the reader: %+v, want one partition dropped", r)
			}
		})
	}
}

// Ids that callers chose are forgotten after seven days, unless their job lives:
// then they count as chosen when that was seen, and a full batch of them does not
// keep the others from being forgotten, by the same sweep.
func TestChosenIDsAreForgotten(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	const live = 10_001
	execute(t, pool,
		fmt.Sprintf(`WITH job AS (
			INSERT INTO simplequeue.job_waiting (id, run_at, reason, queue)
			SELECT gen_random_uuid(), now(), 'scheduled', 'a' FROM generate_series(1, %d) RETURNING id
		) INSERT INTO simplequeue.job_client_id SELECT id, now() - interval '9 days' FROM job`, live-2),
		"INSERT INTO simplequeue.job_queue (id, queue, lane) VALUES (gen_random_uuid(), 'a', 0)",
		`INSERT INTO simplequeue.job_running
			(claim_nonce, claimed_at, id, seq, created_at, worker_id, lease_ms, attempt, max_attempts, reprocess_count,
			 crash_count, payload_bytes, priority, lane, queue, kind)
			VALUES (1, now(), gen_random_uuid(), 1, now(), gen_random_uuid(), 1000, 1, 1, 0, 0, 0, 0, 0, 'a', '')`,
		`INSERT INTO simplequeue.job_client_id
			SELECT id, now() - interval '9 days' FROM simplequeue.job_queue UNION ALL
			SELECT id, now() - interval '9 days' FROM simplequeue.job_running`,
		"INSERT INTO simplequeue.job_client_id SELECT gen_random_uuid(), now() - interval '8 days' FROM generate_series(1, 5)",
		"INSERT INTO simplequeue.job_client_id SELECT gen_random_uuid(), now() - interval '6 days' FROM generate_series(1, 3)")
	sweep(t, newJanitor(t, pool, janitor.Options{}))
	if n := number(t, pool, "SELECT count(*) FROM simplequeue.job_client_id"); n != live+3 {
		t.Errorf("%d ids are remembered, want 3 young ones and %d of jobs that live", n, live)
	}
	if n := number(t, pool, "SELECT count(*) FROM simplequeue.job_client_id WHERE inserted_at < now() - interval '7 days'"); n != 0 {
		t.Errorf("%d ids are still to be looked at", n)
	}
}

// TestClockSetBackStopsNoRotation: tables are emptied although the last time seems
// to be still to come.
func TestClockSetBackStopsNoRotation(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	execute(t, pool, "UPDATE simplequeue.job_sweep SET swept_at = clock_timestamp() + interval '1 day' WHERE name = 'rotation'")
	sweep(t, newJanitor(t, pool, janitor.Options{}))
	if n := number(t, pool, "SELECT count(*) FROM simplequeue.job_sweep WHERE name = 'rotation' AND swept_at <= clock_timestamp()"); n != 1 {
		t.Error("nobody has looked for tables to empty")
	}
}

// TestClockSetBackStopsNoHousekeeping: it is made although the last one seems to
// be still to come.
func TestClockSetBackStopsNoHousekeeping(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	execute(t, pool, "INSERT INTO simplequeue.job_sweep (name, swept_at, continuous_since) VALUES ('janitor', now() + interval '1 day', now())")
	ctx, stop := context.WithCancel(t.Context())
	swept := make(chan error, 1)
	j := newJanitor(t, pool, janitor.Options{OnSweep: func(err error) { stop(); swept <- err }})
	_ = j.Run(ctx)
	if err := <-swept; err != nil {
		t.Fatal(err)
	}
	if n := number(t, pool, "SELECT count(*) FROM simplequeue.job_sweep WHERE swept_at > clock_timestamp()"); n != 0 {
		t.Error("it was not made")
	}
}

// A worker that has been silent for an hour is forgotten, unless it still holds
// a job.
func TestSilentWorkersAreForgotten(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	execute(t, pool,
		"INSERT INTO simplequeue.job_worker (worker_id, name, queues, seen_at) SELECT gen_random_uuid(), 'w', '{}', now() - interval '2 hours' FROM generate_series(1, 3)",
		"INSERT INTO simplequeue.job_worker (worker_id, name, queues) VALUES (gen_random_uuid(), 'seen', '{}')",
		`INSERT INTO simplequeue.job_running
			(claim_nonce, claimed_at, id, seq, created_at, worker_id, lease_ms, attempt, max_attempts, reprocess_count,
			 crash_count, payload_bytes, priority, lane, queue, kind)
			SELECT 1, now(), gen_random_uuid(), 1, now(), w.worker_id, 1000, 1, 1, 0, 0, 0, 0, 0, 'a', ''
			FROM (SELECT worker_id FROM simplequeue.job_worker WHERE name = 'w' LIMIT 1) AS w, generate_series(1, 2)`)
	j := newJanitor(t, pool, janitor.Options{})
	sweep(t, j)
	if n := number(t, pool, "SELECT count(*) FROM simplequeue.job_worker"); n != 2 {
		t.Errorf("%d workers are left, want the one seen and the one that holds jobs", n)
	}
	execute(t, pool, "DELETE FROM simplequeue.job_running", "UPDATE simplequeue.job_sweep SET swept_at = '-infinity'")
	sweep(t, j)
	if n := number(t, pool, "SELECT count(*) FROM simplequeue.job_worker"); n != 1 {
		t.Errorf("%d workers are left, want the one seen", n)
	}
}

// Run sweeps until its context ends, goes on after errors, and tells each.
func TestRunGoesOnAfterErrors(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	var logged bytes.Buffer
	sweeps := make(chan error)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	j := newJanitor(t, pool, janitor.Options{
		Interval: 5 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(&logged, nil)),
		OnSweep: func(err error) {
			select {
			case sweeps <- err:
			case <-ctx.Done():
			}
		},
	})
	done := make(chan error)
	go func() { done <- j.Run(ctx) }()
	next := func(want bool) {
		t.Helper()
		for range 1000 {
			if err := <-sweeps; (err == nil) == want {
				return
			}
		}
		t.Fatalf("no sweep in 1000 with success = %t", want)
	}
	next(true)
	execute(t, pool, "ALTER TABLE simplequeue.job_finished RENAME TO hidden")
	next(false)
	next(false)
	execute(t, pool, "ALTER TABLE simplequeue.hidden RENAME TO job_finished")
	next(true)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Run: %v, want the context's error", err)
	}
	if n := strings.Count(logged.String(), "janitor sweep failed"); n != 1 {
		t.Errorf("logged %d times, want once for a row of failures:\n%s", n, logged.String())
	}
}

// An option that makes no sense is refused by name.
func TestOptionsAreChecked(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		names string
		opts  janitor.Options
	}{
		{"Options.Interval", janitor.Options{Interval: -1}},
		{`Options.Queues["q"]`, janitor.Options{Queues: map[string]janitor.Keep{"q": {Archive: -3}}}},
		{`Options.Queues["q"]`, janitor.Options{Queues: map[string]janitor.Keep{"q": {DeadLetter: 3651 * 86400}}}},
		{"Options.Keep", janitor.Options{Keep: janitor.Keep{Archive: 3651 * 86400}}},
		{"Options.Keep", janitor.Options{Keep: janitor.Keep{DeadLetter: -3}}},
	} {
		if _, err := janitor.New(nil, c.opts); err == nil || !strings.Contains(err.Error(), c.names) {
			t.Errorf("%+v: error %v, want one that names %s", c.opts, err, c.names)
		}
	}
}

// A session that was looking the partitions up at the moment at which one was
// attached may be blind to it until it is told to look again. So it is told once
// more after partitions were made, and by each sweep. (The moment is too short to
// be met in a test: about one in a hundred new sessions meets it that begin while
// a partition comes.)
func TestSessionsAreToldOfPartitionsTwice(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	j := newJanitor(t, pool, janitor.Options{})
	told := func() int {
		return number(t, pool, `SELECT a.xmin::text::bigint FROM pg_attribute AS a
			WHERE a.attrelid = 'simplequeue.job_queue_archive'::regclass AND a.attname = 'expires_on'`)
	}
	attached := func() int {
		return number(t, pool, `SELECT max(i.xmin::text::bigint) FROM pg_inherits AS i
			WHERE i.inhparent = 'simplequeue.job_queue_archive'::regclass`)
	}
	if err := j.MakePartitions(t.Context(), []int64{100 * 86400}, nil); err != nil {
		t.Fatal(err)
	}
	// The next number is that of a subtransaction of the call that attached.
	if told() <= attached()+1 {
		t.Errorf("told in transaction %d of partitions of transaction %d", told(), attached())
	}
	before := told()
	sweep(t, j)
	sweep(t, j)
	if told() == before {
		t.Error("a sweep with nothing to make tells nobody")
	}
}
