package simplequeue_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue/internal/pgtest"
	"github.com/simplequeue/simplequeue/internal/store"
)

// fill puts n runnable jobs into a queue in one statement, at a priority.
func fill(t testing.TB, pool *pgxpool.Pool, queue, kind string, priority, n int) {
	t.Helper()
	_, err := pool.Exec(t.Context(), `
		WITH lane AS (INSERT INTO simplequeue.job_lane (queue, priority) VALUES ($1::text, $3::smallint))
		INSERT INTO simplequeue.job_queue (id, queue, kind, priority, lane)
		SELECT gen_random_uuid(), $1::text, $2::text, $3::smallint, $3::smallint FROM generate_series(1, $4::integer)`,
		queue, kind, priority, n)
	if err != nil {
		t.Fatal(err)
	}
}

// scalar reads one value.
func scalar[T any](t testing.TB, pool *pgxpool.Pool, sql string, args ...any) (value T) {
	t.Helper()
	if err := pool.QueryRow(context.Background(), sql, args...).Scan(&value); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return value
}

// alterDatabase sets a parameter for the connections made from now on.
func alterDatabase(t testing.TB, pool *pgxpool.Pool, name, value string) {
	t.Helper()
	database := pgx.Identifier{scalar[string](t, pool, "SELECT current_database()")}.Sanitize()
	if _, err := pool.Exec(t.Context(), fmt.Sprintf("ALTER DATABASE %s SET %s = %s", database, name, value)); err != nil {
		t.Fatal(err)
	}
}

// TestClaimTakesEachJobOnce: whatever plan the statement gets, many claimers at
// once take every job exactly once, and each is told of exactly those jobs that
// it has moved to job_running.
func TestClaimTakesEachJobOnce(t *testing.T) {
	t.Parallel()
	for name, settings := range map[string][]string{
		"defaults":      nil,
		"stale":         nil,
		"no index scan": {"enable_indexscan", "enable_indexonlyscan", "enable_bitmapscan"},
		"no TID scan":   {"enable_tidscan", "enable_sort"},
		"no joins":      {"enable_nestloop", "enable_memoize", "enable_material", "enable_hashjoin", "enable_mergejoin"},
		"nothing":       {"enable_indexscan", "enable_bitmapscan", "enable_tidscan", "enable_nestloop", "enable_sort", "enable_seqscan"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := pgtest.Database(t)
			admin := pgtest.Pool(t, url, 1)
			for _, s := range settings {
				alterDatabase(t, admin, s, "off")
			}
			if name == "stale" {
				if _, err := admin.Exec(t.Context(), `
					ALTER TABLE simplequeue.job_queue_0 SET (autovacuum_enabled = off);
					ANALYZE simplequeue.job_queue`); err != nil {
					t.Fatal(err)
				}
			}
			total := 20_000
			if settings != nil {
				total = 4_000
			}
			queues := []string{"a", "b", "c", "d"}
			for i, queue := range queues {
				for _, priority := range []int{i, 9} {
					fill(t, admin, queue, "", priority, total/len(queues)/2)
				}
			}
			claimAll(t, pgtest.Pool(t, url, 16), queues, total)
		})
	}
}

// claimAll has 64 claimers empty the queues and checks what they were told.
func claimAll(t *testing.T, pool *pgxpool.Pool, queues []string, total int) {
	t.Helper()
	db := &store.DB{Schema: store.NewSchema(pgtest.Schema), Pool: pool}
	var (
		mu    sync.Mutex
		owner = map[int64]int64{} // nonce by claim id
		jobs  = map[[16]byte]int{}
		wg    sync.WaitGroup
	)
	for range 64 {
		wg.Go(func() {
			for {
				r := store.ClaimRequest{Worker: uuid.New(), Nonce: rand.Int64(), LeaseMS: 60_000, Limit: 1 + rand.IntN(150)}
				budgets := map[string]int{}
				for i, at := range rand.Perm(len(queues)) {
					queue := queues[at]
					budgets[queue] = 1 + rand.IntN(60)
					r.Queue = append(r.Queue, queue, queue, queue)
					r.Lane = append(r.Lane, store.FrontLane, int16(at), 9)
					r.After = append(r.After, 0, 0, 0)
					r.First, r.Last = append(r.First, int32(3*i+1)), append(r.Last, int32(3*i+3))
					r.Budget = append(r.Budget, int32(budgets[queue]))
				}
				got, err := db.Claim(context.Background(), time.Minute, r)
				if err != nil {
					t.Errorf("claim: %v", err)
					return
				}
				if len(got) == 0 {
					return
				}
				if len(got) > r.Limit {
					t.Errorf("claimed %d jobs, limit %d", len(got), r.Limit)
				}
				mu.Lock()
				for i := range got {
					owner[got[i].ClaimID] = r.Nonce
					jobs[got[i].ID]++
					budgets[got[i].Queue]--
				}
				mu.Unlock()
				for queue, left := range budgets {
					if left < 0 {
						t.Errorf("claimed %d jobs of %s more than its budget", -left, queue)
					}
				}
			}
		})
	}
	wg.Wait()
	if len(jobs) != total || len(owner) != total {
		t.Errorf("%d jobs by %d claims, want %d of each", len(jobs), len(owner), total)
	}
	rows, err := pool.Query(t.Context(), "SELECT claim_id, claim_nonce, id FROM simplequeue.job_running")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	n := 0
	for rows.Next() {
		var claimID, nonce int64
		var id [16]byte
		if err := rows.Scan(&claimID, &nonce, &id); err != nil {
			t.Fatal(err)
		}
		n++
		if owner[claimID] != nonce || jobs[id] != 1 {
			t.Fatalf("claim %d of job %x: nonce %d, told %d, returned %d times", claimID, id, nonce, owner[claimID], jobs[id])
		}
	}
	if rows.Err() != nil || n != total {
		t.Errorf("%d rows in job_running, %v, want %d", n, rows.Err(), total)
	}
	if left := scalar[int](t, pool, "SELECT count(*) FROM simplequeue.job_queue"); left != 0 {
		t.Errorf("%d jobs left in the queue", left)
	}
}

// TestClaimStepsOverLockedRows: neither a claim nor the promotion of due jobs
// waits for rows that somebody else has locked.
func TestClaimStepsOverLockedRows(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	fill(t, pool, "a", "", 0, 20)
	if _, err := pool.Exec(t.Context(), `
		INSERT INTO simplequeue.job_waiting (id, queue, run_at, reason)
		SELECT gen_random_uuid(), 'b', now() - n * interval '1 second', 'scheduled' FROM generate_series(1, 20) AS n`); err != nil {
		t.Fatal(err)
	}
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	if _, err := tx.Exec(t.Context(), `
		SELECT FROM (SELECT FROM simplequeue.job_queue ORDER BY seq LIMIT 10 FOR UPDATE) AS q,
		            (SELECT FROM simplequeue.job_waiting ORDER BY run_at LIMIT 10 FOR UPDATE) AS w`); err != nil {
		t.Fatal(err)
	}
	db := &store.DB{Schema: store.NewSchema(pgtest.Schema), Pool: pool}
	jobs, err := db.Claim(t.Context(), 5*time.Second, store.ClaimRequest{
		Worker: uuid.New(), Nonce: 1, LeaseMS: 1000, Limit: 7,
		First: []int32{1}, Last: []int32{1}, Budget: []int32{7}, Queue: []string{"a"}, Lane: []int16{0}, After: []int64{0}, Chunk: store.AllChunks,
	})
	if err != nil || len(jobs) != 7 {
		t.Fatalf("claimed %d jobs beside locked ones, %v, want 7", len(jobs), err)
	}
	for _, j := range jobs {
		if j.Seq < 11 || j.Seq > 17 {
			t.Errorf("claimed place %d, want 11 to 17", j.Seq)
		}
	}
	done, err := db.Promote(t.Context(), 5*time.Second, nil, 100)
	if err != nil || done.Moved != 10 {
		t.Errorf("promoted %d jobs beside locked ones, %v, want 10", done.Moved, err)
	}
}

// TestClaimEndsWithItsLimit: a claim whose answer never comes does not hang, and
// what it had claimed is found again by its nonce.
func TestClaimEndsWithItsLimit(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	direct := pgtest.Pool(t, url, 2)
	fill(t, direct, "a", "", 0, 3)
	proxy := pgtest.NewProxy(t, url)
	db := &store.DB{Schema: store.NewSchema(pgtest.Schema), Pool: sentAtOnce(t, proxy.URL())}
	r := store.ClaimRequest{
		Worker: uuid.New(), Nonce: 41, LeaseMS: 1000, Limit: 1,
		First: []int32{1}, Last: []int32{1}, Budget: []int32{2}, Queue: []string{"a"}, Lane: []int16{0}, After: []int64{0}, Chunk: store.AllChunks,
	}
	if jobs, err := db.Claim(t.Context(), time.Minute, r); err != nil || len(jobs) != 1 {
		t.Fatalf("claimed %d jobs, %v", len(jobs), err)
	}
	r.Nonce, r.Limit = 42, 2
	proxy.DropReplies()
	began := time.Now()
	jobs, err := db.Claim(t.Context(), 2*time.Second, r)
	if err == nil || store.Answered(err) || len(jobs) != 0 {
		t.Fatalf("claimed %d jobs, error %v, want none and an error that leaves it open", len(jobs), err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("returned after %v, want two and a half seconds", took)
	}
	proxy.Heal()
	eventually(t, "the claim's jobs are adopted", func() bool {
		jobs, err = db.Adopt(t.Context(), 10*time.Second, r.Worker, []int64{42, 43})
		return err == nil && len(jobs) == 2
	})
	for _, j := range jobs {
		if j.Nonce != 42 || j.Attempt != 1 {
			t.Errorf("adopted %+v, want nonce 42, attempt 1", j)
		}
	}
}

// TestParkedJobsAreClaimedByKindOrAny: a claim of parked jobs takes the kinds it
// names, any kind where it says so, and no more than each budget.
func TestParkedJobsAreClaimedByKindOrAny(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	if _, err := pool.Exec(t.Context(), `
		INSERT INTO simplequeue.job_waiting (id, queue, kind, run_at, reason)
		SELECT gen_random_uuid(), q, k, 'infinity', 'unknown_kind'
		FROM unnest(ARRAY['a', 'b']) AS q, unnest(ARRAY['x', 'y', 'z']) AS k, generate_series(1, 4);
		INSERT INTO simplequeue.job_waiting (id, queue, kind, run_at, reason)
		VALUES (gen_random_uuid(), 'a', 'x', now() + interval '1 hour', 'retry')`); err != nil {
		t.Fatal(err)
	}
	db := &store.DB{Schema: store.NewSchema(pgtest.Schema), Pool: pool}
	r := store.ClaimRequest{
		Worker: uuid.New(), Nonce: 1, LeaseMS: 1000, Limit: 100,
		Queue: []string{"a", "a", "b"}, AnyKind: []bool{false, false, true}, Budget: []int32{3, 10, 10},
	}
	jobs, err := db.ClaimParked(t.Context(), time.Minute, r, []string{"x", "z", ""})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int{}
	for _, j := range jobs {
		got[j.Queue+j.Kind]++
	}
	want := map[string]int{"ax": 3, "az": 4, "bx": 4, "by": 4, "bz": 2}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("claimed %v, want %v", got, want)
	}
}
