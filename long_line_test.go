package simplequeue_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// rowsRead is how many rows of a table have been read. Entries of an index that
// lead to dead rows are not counted: how often those are met is a matter of whose
// snapshots are open. It closes the pool's connections: one that goes tells what
// it has counted.
func rowsRead(t *testing.T, pool *pgxpool.Pool, table string) int {
	t.Helper()
	eventually(t, "no other connection is left", func() bool {
		pool.Reset() // again and again: a wake-up may still be sent
		return queryOne[int](t, pool, `SELECT count(*) FROM pg_stat_activity
			WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()`) == 0
	})
	for last := -1; ; {
		n := queryOne[int](t, pool, `SELECT (seq_tup_read + idx_tup_fetch)::integer
			FROM pg_stat_user_tables WHERE relid = ('simplequeue.' || $1)::regclass`, table)
		if n == last || queryOne[int](t, pool, "SELECT current_setting('server_version_num')::integer") >= 150_000 {
			return n
		}
		last = n
		time.Sleep(time.Second) // before 15 the numbers come late
	}
}

// A great many jobs stand in line behind the first of an order key, and of a
// queue that is first in, first out. They keep ten jobs of other keys, inserted
// after them, from nothing, and as the lines move on they are not read. With
// SIMPLEQUEUE_TEST_LONG=1 each line has 100,000 jobs, else 2,000.
func TestALongLineHoldsUpNobody(t *testing.T) {
	t.Parallel()
	const free, moves = 10, 20
	length := 2_000
	if os.Getenv(longVariable) != "" {
		length = 100_000
	}
	var mu sync.Mutex
	ran := map[string][]uuid.UUID{} // by queue and order key
	ranOf := func(key string) []uuid.UUID { mu.Lock(); defer mu.Unlock(); return slices.Clone(ran[key]) }
	goOn := make(chan struct{})
	opts := handler("*", func(ctx context.Context, job *simplequeue.Job) error {
		key := job.Queue + " " + job.OrderKey
		mu.Lock()
		ran[key] = append(ran[key], job.ID)
		n := len(ran[key])
		mu.Unlock()
		wait := goOn
		switch {
		case n > moves:
			wait = nil
		case n > 1 || job.Payload == nil:
			return nil
		}
		select {
		case <-wait:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	opts.Queues, opts.Stop.Drain = map[string]simplequeue.QueueOptions{"line": {FIFO: true}}, -1
	pool := pgtest.New(t)
	q := newQueue(t, pool, opts)
	lines := map[string][]uuid.UUID{}
	for key, job := range map[string]simplequeue.NewJob{"key hot": {Queue: "key", OrderKey: "hot", Payload: 1}, "line ": {Queue: "line", Payload: 1}} {
		for len(lines[key]) < length {
			lines[key] = append(lines[key], insertMany(t, q, min(length, 50_000), job)...)
		}
	}
	for i := range free {
		insert(t, q, simplequeue.NewJob{Queue: "key", OrderKey: fmt.Sprint(i)})
	}
	before := rowsRead(t, pool, "job_gated")
	began := time.Now()
	stop := start(t, q)
	awaitCompleted(t, q, "key", free)
	t.Logf("%d free jobs are done after %v", free, time.Since(began))
	for key := range lines {
		eventually(t, "the first runs", func() bool { return len(ranOf(key)) == 1 })
	}
	close(goOn)
	for key := range lines {
		eventually(t, "the line moves", func() bool { return len(ranOf(key)) > moves })
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	for key, ids := range lines {
		if got := ranOf(key); !slices.Equal(got, ids[:len(got)]) {
			t.Errorf("%s ran as\n%v, inserted as\n%v", key, got, ids[:len(got)])
		}
	}
	// An entry or two of an index and the row, for each that is let in or looked up.
	if read := rowsRead(t, pool, "job_gated") - before; read > 2_000 {
		t.Errorf("%d rows of the lines were read to let %d jobs in", read, free+2*moves)
	}
}

// Keys that nothing happens to cost nothing: when the jobs of a great many have
// run, the gates have no rows, and the worker asks as little as before. With
// SIMPLEQUEUE_TEST_LONG=1 there are a million keys, else 3,000.
func TestIdleKeysCostNothing(t *testing.T) {
	t.Parallel()
	keys := 3_000
	if os.Getenv(longVariable) != "" {
		keys = 1_000_000
	}
	url := pgtest.Database(t)
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	var sent counting // by the engine too: its pools are made as this one
	config.ConnConfig.Tracer = &sent
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	opts, other := handler("q", nothing), pgtest.Pool(t, url, 2)
	opts.ReaperInterval = time.Hour // a sweep is many statements at once
	start(t, newQueue(t, pool, opts))
	q := newQueue(t, other, simplequeue.Options{})
	atRest := func() int64 {
		eventually(t, "it is at rest", func() bool {
			before := sent.batches.Load() + sent.others.Load()
			time.Sleep(500 * time.Millisecond)
			return sent.batches.Load()+sent.others.Load() < before+30
		})
		before := sent.batches.Load() + sent.others.Load()
		time.Sleep(2 * time.Second)
		return sent.batches.Load() + sent.others.Load() - before
	}
	awaitState(t, q, insert(t, q, simplequeue.NewJob{Queue: "q", OrderKey: "first", FairnessKey: "first"}), simplequeue.StateCompleted)
	before := atRest()
	for from := 0; from < keys; from += 10_000 {
		var jobs []simplequeue.NewJob
		for i := from; i < min(keys, from+10_000); i++ {
			job := simplequeue.NewJob{Queue: "q", OrderKey: fmt.Sprint("o", i)}
			if i%2 == 0 {
				job.FairnessKey = fmt.Sprint("f", i)
			}
			jobs = append(jobs, job)
		}
		if _, err := q.InsertMany(t.Context(), jobs); err != nil {
			t.Fatal(err)
		}
		awaitCompleted(t, q, "q", int64(1+from+len(jobs)))
	}
	awaitNoGates(t, other)
	after := atRest()
	t.Logf("statements in 2 s at rest: %d before, %d after", before, after)
	if after > 2*before+30 {
		t.Errorf("%d statements in 2 s at rest, want about as many as before %d keys were used: %d", after, keys, before)
	}
}
