package simplequeue_test

import (
	"context"
	"io"
	"log/slog"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

func TestMain(m *testing.M) {
	if processMain() {
		return // this was a worker process of some test
	}
	pgtest.Main(m)
}

// processMain runs the binary as a worker process if a test started it as one.
var processMain = func() bool { return false }

// newQueue returns a queue on a pool, quiet unless the test brings a logger.
func newQueue(t testing.TB, pool *pgxpool.Pool, opts simplequeue.Options) *simplequeue.SimpleQueue {
	t.Helper()
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	q, err := simplequeue.New(pool, opts)
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	return q
}

// start runs the queue until the test ends or stop is called; stop returns what
// Run returned.
func start(t testing.TB, q *simplequeue.SimpleQueue) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	var err error
	go func() {
		defer close(done)
		err = q.Run(ctx)
	}()
	stop = func() error {
		cancel()
		select {
		case <-done:
			return err
		case <-time.After(60 * time.Second):
			t.Fatal("Run did not return within a minute")
			return nil
		}
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Logf("Run: %v", err)
		}
	})
	return stop
}

// eventually waits for a condition, two minutes at most: a machine may be busy
// with other tests.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for {
		asked := time.Now()
		if cond() {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within two minutes: %s", what)
		}
		time.Sleep(max(5*time.Millisecond, 4*time.Since(asked))) // leave the machine to what is waited for
	}
}

// insert stores one job that must go in.
func insert(t testing.TB, q *simplequeue.SimpleQueue, job simplequeue.NewJob) uuid.UUID {
	t.Helper()
	r, err := q.Insert(t.Context(), job)
	if err != nil {
		t.Fatalf("Insert: %v", err)
	}
	if r.Duplicate {
		t.Fatalf("Insert: duplicate of %v", r.ID)
	}
	return r.ID
}

// state is the state of a job, "" if it is nowhere.
func state(t testing.TB, q *simplequeue.SimpleQueue, id uuid.UUID) simplequeue.State {
	t.Helper()
	list, err := q.List(context.Background(), simplequeue.Filter{IDs: []uuid.UUID{id}})
	if err != nil {
		t.Fatalf("List: %v", err)
	}
	if len(list) == 0 {
		return ""
	}
	return list[0].State
}

// get returns a job that must be there.
func get(t testing.TB, q *simplequeue.SimpleQueue, id uuid.UUID) simplequeue.JobInfo {
	t.Helper()
	info, err := q.Get(context.Background(), id)
	if err != nil {
		t.Fatalf("Get: %v", err)
	}
	return info
}

// awaitState waits until a job is in a state.
func awaitState(t testing.TB, q *simplequeue.SimpleQueue, id uuid.UUID, want simplequeue.State) simplequeue.JobInfo {
	t.Helper()
	eventually(t, "job "+id.String()+" is "+string(want), func() bool { return state(t, q, id) == want })
	return get(t, q, id)
}

// counts are the jobs of a queue by state.
func counts(t testing.TB, q *simplequeue.SimpleQueue, queue string) map[simplequeue.State]int64 {
	t.Helper()
	c, err := q.Count(context.Background(), simplequeue.Filter{Queue: queue})
	if err != nil {
		t.Fatalf("Count: %v", err)
	}
	return c
}

// handler is a handler of a queue by a function.
func handler(queue string, process func(ctx context.Context, job *simplequeue.Job) error) simplequeue.Options {
	return simplequeue.Options{Handlers: []simplequeue.Handler{simplequeue.HandlerFunc(queue, process)}}
}
