package simplequeue_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
	"github.com/simplequeue/simplequeue/internal/store"
)

// restart sets the number that the next row of a ring gets.
func restart(t testing.TB, pool *pgxpool.Pool, table, column string, next int64) {
	t.Helper()
	execute(t, pool, fmt.Sprintf("ALTER TABLE simplequeue.%s ALTER %s RESTART %d", table, column, next))
}

// rotate empties what can be emptied, however small, and returns what that was.
func rotate(t testing.TB, pool *pgxpool.Pool) (tables []string) {
	t.Helper()
	for {
		execute(t, pool, "UPDATE simplequeue.job_sweep SET swept_at = '-infinity' WHERE name = 'rotation'")
		table := scalar[*string](t, pool, "SELECT simplequeue.rotate(5000, 1)")
		if table == nil || slices.Contains(tables, *table) { // with rows put back it is not empty
			return tables
		}
		tables = append(tables, *table)
	}
}

// TestOrderAroundTheRing: jobs run in the order of their places, however many
// times round the ring they are from one another.
func TestOrderAroundTheRing(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	var ran record
	opts := handler("r", func(_ context.Context, job *simplequeue.Job) error { ran.add(job.Kind); return nil })
	opts.QueuePermits = 2 // one claim takes few
	q := newQueue(t, pool, opts)
	var want []string
	for chunk := range int64(11) {
		if chunk == 6 {
			continue // a chunk that has only jobs of others
		}
		restart(t, pool, "job_queue", "seq", max(1, store.ChunkStart(chunk)-3))
		for n := range 6 {
			kind := fmt.Sprintf("%d.%d", chunk, n)
			insert(t, q, simplequeue.NewJob{Queue: "r", Kind: kind})
			want = append(want, kind)
		}
	}
	opts.QueuePermits = 1
	q = newQueue(t, pool, opts)
	start(t, q)
	eventually(t, "all have run", func() bool { return len(ran.all()) == len(want) })
	if got := ran.all(); !slices.Equal(got, want) {
		t.Errorf("ran in the order %v, want %v", got, want)
	}
}

// TestClaimOfAChunkLeavesLaterRounds: a claim that keeps to two tables takes no
// job that a later round of the ring has put into them, and none from others.
func TestClaimOfAChunkLeavesLaterRounds(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	for chunk := range int64(7) {
		restart(t, pool, "job_queue", "seq", max(1, store.ChunkStart(chunk)))
		fill(t, pool, "r", fmt.Sprint(chunk), 0, 3)
	}
	db := &store.DB{Schema: store.NewSchema(pgtest.Schema), Pool: pool}
	claim := func(chunk, after int64) (kinds []string) {
		jobs, err := db.Claim(t.Context(), 5*time.Second, store.ClaimRequest{
			Worker: uuid.New(), Nonce: 1, LeaseMS: 60_000, Limit: 100, First: []int32{1}, Last: []int32{1},
			Budget: []int32{100}, Queue: []string{"r"}, Lane: []int16{0}, After: []int64{after}, Chunk: chunk,
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, j := range jobs {
			kinds = append(kinds, j.Kind)
		}
		slices.Sort(kinds)
		return slices.Compact(kinds)
	}
	if got := claim(1, store.ChunkStart(1)-1); !slices.Equal(got, []string{"1", "2"}) {
		t.Errorf("a claim of chunk 1 took chunks %v, want 1 and 2", got)
	}
	if got := claim(3, store.ChunkStart(4)-1); !slices.Equal(got, []string{"4"}) {
		t.Errorf("a claim of chunk 3 with the watermark at its end took chunks %v, want 4", got)
	}
	if got := claim(store.AllChunks, 0); !slices.Equal(got, []string{"0", "3", "5", "6"}) {
		t.Errorf("a claim of all then took chunks %v, want the others", got)
	}
}

// TestRotationLosesNothing: while tables of both rings are emptied as often as
// can be, each job runs once, whatever happens to it, long ones keep their
// leases, and what waits is not touched.
func TestRotationLosesNothing(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	var mu sync.Mutex
	runs := map[uuid.UUID]int{}
	release := make(chan struct{})
	var long, ended atomic.Int64
	opts := handler("r", func(ctx context.Context, job *simplequeue.Job) error {
		mu.Lock()
		runs[job.ID]++
		mu.Unlock()
		switch {
		case job.Kind == "long":
			long.Add(1)
			defer ended.Add(1)
			select {
			case <-release:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		case job.Kind == "retry" && job.Attempt == 1:
			return simplequeue.RetryAfter(time.Millisecond, errors.New("again"))
		}
		return nil
	})
	opts.HeartbeatInterval = 2 * time.Second
	q := newQueue(t, pool, opts)
	const longs = 20
	for range longs {
		insert(t, q, simplequeue.NewJob{Queue: "r", Kind: "long"})
	}
	idle := insert(t, q, simplequeue.NewJob{Queue: "nobody", Payload: "here"})
	start(t, q)
	eventually(t, "the long jobs run", func() bool { return long.Load() == longs })

	emptied := map[string]bool{}
	n := 0
	for chunk := int64(1); chunk <= 9; chunk++ {
		restart(t, pool, "job_queue", "seq", store.ChunkStart(chunk)-150)
		restart(t, pool, "job_running", "claim_id", store.ChunkStart(chunk)-150)
		for range 15 {
			jobs := slices.Repeat([]simplequeue.NewJob{{Queue: "r"}, {Queue: "r", Kind: "retry"}}, 10)
			if _, err := q.InsertMany(t.Context(), jobs); err != nil {
				t.Fatal(err)
			}
			n += len(jobs)
			for _, table := range rotate(t, pool) {
				emptied[table] = true
			}
		}
		eventually(t, "the short jobs are done", func() bool { return q.Stats().Completed == int64(n) })
		rotate(t, pool)
	}
	close(release)
	eventually(t, "all jobs are done", func() bool { return q.Stats().Completed == int64(n+longs) })
	if s := q.Stats(); s.LeasesLost != 0 || s.Reaped != 0 {
		t.Errorf("%d leases lost, %d jobs reaped, want none", s.LeasesLost, s.Reaped)
	}
	again := 0
	for _, r := range runs {
		again += r - 1
	}
	if len(runs) != n+longs || again != n/2 {
		t.Errorf("%d jobs ran and %d runs were second ones, want %d and the %d retries", len(runs), again, n+longs, n/2)
	}
	if got := get(t, q, idle); got.State != simplequeue.StatePending || string(got.Payload) != `"here"` {
		t.Errorf("the job that nobody serves is %s with payload %s", got.State, got.Payload)
	}
	for _, table := range []string{"job_queue_0", "job_queue_1", "job_queue_2", "job_queue_3", "job_running_0", "job_running_1", "job_running_2", "job_running_3"} {
		if !emptied[table] {
			t.Errorf("%s was never emptied", table)
		}
	}
}

// TestRepeatedInsertMeetsARotation: an insert that is repeated by its id waits
// for the table that is being emptied, and knows its job when that has been put
// back.
func TestRepeatedInsertMeetsARotation(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	ctx := t.Context()
	q := newQueue(t, pool, simplequeue.Options{})
	mine, other := insert(t, q, simplequeue.NewJob{Queue: "x"}), insert(t, q, simplequeue.NewJob{Queue: "x"})
	restart(t, pool, "job_queue", "seq", store.ChunkStart(1))
	insert(t, q, simplequeue.NewJob{Queue: "y"}) // so that the sequence is there

	rotation, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rotation.Rollback(context.WithoutCancel(ctx)) }()
	var emptied string
	if err := rotation.QueryRow(ctx, "SELECT simplequeue.rotate(5000, 1)").Scan(&emptied); err != nil {
		t.Fatal(err)
	}
	repeated := make(chan error, 2)
	known := func(duplicate bool, err error) {
		if err == nil && !duplicate {
			err = errors.New("inserted again")
		}
		repeated <- err
	}
	go func() {
		in, err := q.Insert(ctx, simplequeue.NewJob{Queue: "x", ID: mine})
		known(in.Duplicate, err)
	}()
	go func() {
		var duplicate bool
		err := pool.QueryRow(ctx, "SELECT e.duplicate FROM simplequeue.enqueue('x', job_id => $1) AS e", other).Scan(&duplicate)
		known(duplicate, err)
	}()
	eventually(t, "both wait for "+emptied, func() bool {
		return scalar[int](t, pool, `SELECT count(*) FROM pg_locks AS l JOIN pg_class AS c ON c.oid = l.relation
			JOIN pg_database AS d ON d.oid = l.database AND d.datname = current_database()
			WHERE NOT l.granted AND c.relname = $1`, emptied) == 2
	})
	if err := rotation.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := <-repeated; err != nil {
			t.Error(err)
		}
	}
}

// TestRotationGivesSpaceBackUnderASnapshot: a table whose dead rows vacuum cannot
// remove is small again, with its living rows in it.
func TestRotationGivesSpaceBackUnderASnapshot(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	execute(t, pool, "ALTER TABLE simplequeue.job_queue_0 SET (autovacuum_enabled = off)")
	conn := pgtest.Pool(t, pool.Config().ConnString(), 1)
	pin, err := conn.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = pin.Rollback(context.Background()) }()
	if _, err := pin.Exec(t.Context(), "SELECT pg_current_xact_id()"); err != nil {
		t.Fatal(err)
	}
	fill(t, pool, "r", "", 0, 20_000)
	execute(t, pool, "DELETE FROM simplequeue.job_queue WHERE seq > 100")
	restart(t, pool, "job_queue", "seq", store.ChunkStart(1))
	fill(t, pool, "r", "", 0, 1)
	execute(t, pool, "VACUUM simplequeue.job_queue_0")
	size := "SELECT pg_total_relation_size('simplequeue.job_queue_0')"
	before := scalar[int64](t, pool, size)
	live := "SELECT md5(string_agg(q::text, ',' ORDER BY seq)) FROM simplequeue.job_queue AS q"
	want := scalar[string](t, pool, live)
	if got := rotate(t, pool); !slices.Equal(got, []string{"job_queue_0"}) {
		t.Errorf("emptied %v, want job_queue_0 alone: the next one is being filled", got)
	}
	if after := scalar[int64](t, pool, size); after > before/20 {
		t.Errorf("%d bytes of %d are left", after, before)
	}
	if got := scalar[string](t, pool, live); got != want {
		t.Error("the living rows are not what they were")
	}
}

// TestRotationKeepsOutOfTheWay: it waits for no lock, leaves tables with much in
// them alone, is done by one process at a time, and refuses a snapshot that is
// older than its locks.
func TestRotationKeepsOutOfTheWay(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	fill(t, pool, "r", "", 0, 6000)
	restart(t, pool, "job_queue", "seq", store.ChunkStart(1))
	fill(t, pool, "r", "", 0, 1)
	if got := rotate(t, pool); len(got) > 0 {
		t.Errorf("emptied %v with 6,000 rows in it", got)
	}
	execute(t, pool, "DELETE FROM simplequeue.job_queue WHERE seq > 10 AND seq < 6000")
	unlock := lock(t, pool, "simplequeue.job_queue_0 IN ACCESS SHARE MODE")
	before := time.Now()
	if got := rotate(t, pool); len(got) > 0 || time.Since(before) > 5*time.Second {
		t.Errorf("emptied %v within %v although the table is being read", got, time.Since(before))
	}
	unlock()
	if got := rotate(t, pool); !slices.Equal(got, []string{"job_queue_0"}) {
		t.Errorf("emptied %v, want job_queue_0", got)
	}
	execute(t, pool, "UPDATE simplequeue.job_sweep SET swept_at = clock_timestamp() + interval '0.4 seconds' WHERE name = 'rotation'") // however long the last took
	if again := scalar[*string](t, pool, "SELECT simplequeue.rotate(5000, 1)"); again != nil {
		t.Errorf("emptied %s right after another rotation", *again)
	}
	err := pgx.BeginTxFunc(t.Context(), pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead}, func(tx pgx.Tx) error {
		_, err := tx.Exec(t.Context(), "SELECT simplequeue.rotate(5000, 1)")
		return err
	})
	if store.Code(err) != "25000" {
		t.Errorf("rotate at REPEATABLE READ: %v, want 25000", err)
	}
	if n := scalar[int](t, pool, "SELECT count(*) FROM simplequeue.job_queue"); n != 12 {
		t.Errorf("%d rows are left, want 12", n)
	}
}
