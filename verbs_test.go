package simplequeue_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/backoff"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// All verbs at once on the same jobs: two workers with their sweeps, inserts
// with keys, cancels of many ids in any order and by fingerprint. Nobody
// deadlocks, every job ends, and nothing is left behind.
func TestAllVerbsAtOnceDoNotDeadlock(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t, pgtest.Database(t), 20)
	var logged errorLog
	opts := handler("a", func(context.Context, *simplequeue.Job) error {
		switch rand.IntN(8) {
		case 0:
			return simplequeue.RescheduleAfter(0)
		case 1, 2, 3:
			return errors.New("again")
		case 4:
			return simplequeue.Critical(nil)
		}
		return nil
	})
	opts.Logger = logged.logger(slog.LevelError)
	opts.Backoff = backoff.Constant(5 * time.Millisecond)
	opts.JanitorInterval = 10 * time.Millisecond
	opts.HeartbeatInterval = 500 * time.Millisecond
	q := newQueue(t, pool, opts)
	start(t, q)
	start(t, newQueue(t, pool, opts))

	var mu sync.Mutex
	var ids []uuid.UUID
	some := func(n int) []uuid.UUID {
		mu.Lock()
		defer mu.Unlock()
		var list []uuid.UUID
		for range min(n, len(ids)) {
			list = append(list, ids[len(ids)-1-rand.IntN(min(len(ids), 500))])
		}
		return list
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	var all sync.WaitGroup
	verb := func(name string, f func() error) {
		for range 3 {
			all.Go(func() {
				for ctx.Err() == nil {
					if err := f(); err != nil && !errors.Is(err, simplequeue.ErrUniqueContention) {
						t.Errorf("%s: %v", name, err)
						return
					}
				}
			})
		}
	}
	verb("insert", func() error {
		jobs := make([]simplequeue.NewJob, 1+rand.IntN(30))
		for i := range jobs {
			jobs[i] = simplequeue.NewJob{Queue: "a", Fingerprint: fmt.Sprint(rand.IntN(20)), Priority: rand.IntN(2)}
			if rand.IntN(3) == 0 {
				jobs[i].UniqueKey = fmt.Sprint(rand.IntN(200))
			}
			if rand.IntN(4) == 0 {
				jobs[i].Payload = strings.Repeat("x", 2000)
			}
		}
		r, err := q.InsertMany(context.Background(), jobs)
		mu.Lock()
		defer mu.Unlock()
		for _, one := range r {
			ids = append(ids, one.ID)
		}
		return err
	})
	verb("cancel by ids", func() error {
		f := simplequeue.Filter{IDs: append(some(20), uuid.New())}
		_, err := q.CancelMatching(context.Background(), f, "")
		return err
	})
	verb("cancel by fingerprint", func() error {
		_, err := q.CancelMatching(context.Background(), simplequeue.Filter{Fingerprint: fmt.Sprint(rand.IntN(20))}, "")
		return err
	})
	all.Wait()
	eventually(t, "all jobs ended", func() bool {
		return queryOne[int](t, pool, `SELECT (SELECT count(*) FROM simplequeue.job_queue) + (SELECT count(*) FROM simplequeue.job_waiting)
			+ (SELECT count(*) FROM simplequeue.job_running) + (SELECT count(*) FROM simplequeue.job_finished)`) == 0
	})
	for _, table := range []string{"job_unique", "job_fingerprint", "job_payload"} {
		if n := queryOne[int](t, pool, "SELECT count(*) FROM simplequeue."+table); n != 0 {
			t.Errorf("%s holds %d rows when all jobs have ended", table, n)
		}
	}
	distinct := map[uuid.UUID]bool{}
	for _, id := range ids {
		distinct[id] = true
	}
	if n := queryOne[int](t, pool, "SELECT count(*) FROM simplequeue.job"); n != len(distinct) {
		t.Errorf("%d jobs were inserted, %d ended", len(distinct), n)
	}
	if n := queryOne[int](t, pool, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"); n != 0 {
		t.Errorf("the server counted %d deadlocks", n)
	}
	// A sweep that meets another one's locks for too long leaves its work to it.
	errs := slices.DeleteFunc(logged.lines(), func(line string) bool {
		return strings.Contains(line, "reaper sweep failed") && (strings.Contains(line, "55P03") || strings.Contains(line, "57014"))
	})
	if len(errs) > 0 {
		t.Errorf("logged: %v", errs)
	}
}

// Somebody's transaction takes the rows of two jobs the wrong way round, and the
// server ends the call of the two. The call is made again.
func TestCancelAndChangeAreMadeAgainAfterADeadlock(t *testing.T) {
	t.Parallel()
	for name, call := range map[string]func(q *simplequeue.SimpleQueue, f simplequeue.Filter) (int, error){
		"cancel": func(q *simplequeue.SimpleQueue, f simplequeue.Filter) (int, error) {
			return q.CancelMatching(t.Context(), f, "")
		},
		"change": func(q *simplequeue.SimpleQueue, f simplequeue.Filter) (int, error) {
			return q.ChangeMatching(t.Context(), f, simplequeue.Change{Payload: "new"})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := pgtest.Database(t)
			config, err := pgxpool.ParseConfig(url)
			if err != nil {
				t.Fatal(err)
			}
			config.ConnConfig.RuntimeParams["deadlock_timeout"] = "5s" // the other's wait begins before this one is looked at
			pool, err := pgxpool.NewWithConfig(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(pool.Close)
			q, other := newQueue(t, pool, simplequeue.Options{}), pgtest.Pool(t, url, 2)
			ids := []uuid.UUID{insert(t, q, simplequeue.NewJob{Queue: "a"}), insert(t, q, simplequeue.NewJob{Queue: "a"})}
			tx, err := other.Begin(t.Context())
			if err == nil {
				_, err = tx.Exec(t.Context(), "SET LOCAL deadlock_timeout = '1min'")
			}
			const lock = "SELECT FROM simplequeue.job_queue WHERE id = $1 FOR UPDATE"
			if err == nil {
				_, err = tx.Exec(t.Context(), lock, ids[1])
			}
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = tx.Rollback(context.Background()) }()
			done := make(chan struct{})
			var n int
			var failed error
			go func() {
				defer close(done)
				n, failed = call(q, simplequeue.Filter{IDs: ids})
			}()
			eventually(t, "the call waits", func() bool {
				return queryOne[int](t, other, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'") == 1
			})
			if _, err := tx.Exec(t.Context(), lock, ids[0]); err != nil {
				t.Fatalf("the other transaction: %v, want the call to be ended", err)
			}
			if err := tx.Rollback(t.Context()); err != nil {
				t.Fatal(err)
			}
			if <-done; failed != nil || n != len(ids) {
				t.Errorf("%d jobs, %v, want %d", n, failed, len(ids))
			}
		})
	}
}
