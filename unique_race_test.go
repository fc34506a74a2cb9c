package simplequeue_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// beforeQuery is called with each statement that a connection is about to send.
type beforeQuery func(sql string)

func (f beforeQuery) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	f(data.SQL)
	return ctx
}

func (beforeQuery) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// The holder of a key may be gone when it is looked up. The insert then tries
// again, and where that goes on it gives up with an error that says so, having
// changed nothing.
func TestAHolderThatIsGoneWhenItIsLookedUp(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		tx   bool
		key  string // order key of the jobs
		gone int64  // how often
		err  error
	}{
		"once": {gone: 1}, "five times": {gone: 5}, "always": {gone: 1000, err: simplequeue.ErrUniqueContention},
		"in a transaction, twice": {tx: true, gone: 2}, "in a transaction, always": {tx: true, gone: 1000, err: simplequeue.ErrUniqueContention},
		// The second of the list would stand behind the third.
		"in order, in a transaction": {tx: true, key: "k", gone: 1, err: simplequeue.ErrUniqueContention},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := pgtest.Database(t)
			other := pgtest.Pool(t, url, 2)
			config := other.Config().Copy()
			var times atomic.Int64
			config.ConnConfig.Tracer = beforeQuery(func(sql string) {
				switch {
				case strings.Contains(sql, "taken AS") && times.Load() < c.gone:
					execute(t, other, "INSERT INTO simplequeue.job_unique VALUES ('a', 'k', gen_random_uuid())")
				case strings.Contains(sql, "k(scope, key, ord)") && times.Load() < c.gone:
					times.Add(1)
					execute(t, other, "DELETE FROM simplequeue.job_unique WHERE key = 'k'")
				}
			})
			pool, err := pgxpool.NewWithConfig(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(pool.Close)
			q := newQueue(t, pool, simplequeue.Options{})
			path := "InsertMany"
			if c.tx {
				path = "InsertManyTx"
			}
			r, err := insertPaths(t, pool, q)[path]([]simplequeue.NewJob{
				{Queue: "a"}, {Queue: "a", OrderKey: c.key, UniqueKey: "k"}, {Queue: "a", OrderKey: c.key, UniqueKey: "other"},
			})
			if !errors.Is(err, c.err) || errors.Is(err, simplequeue.ErrInsertUnknown) {
				t.Fatalf("InsertMany: %v, want %v", err, c.err)
			}
			want := int64(3)
			if c.err != nil {
				want = 0
			}
			for _, one := range r {
				if one.Duplicate || state(t, q, one.ID) != simplequeue.StatePending {
					t.Errorf("results %+v, want three jobs that are pending", r)
				}
			}
			if got := counts(t, q, "a")[simplequeue.StatePending]; got != want {
				t.Errorf("%d jobs are pending, want %d", got, want)
			}
		})
	}
}

// An insert that tries again lets go of the keys it has first: another one that
// has got the key meanwhile, and waits for the next, would wait for ever.
func TestAnInsertThatTriesAgainHoldsNoKeys(t *testing.T) {
	t.Parallel()
	url := pgtest.Database(t)
	other := pgtest.Pool(t, url, 4)
	config := other.Config().Copy()
	config.ConnConfig.RuntimeParams["deadlock_timeout"] = "1min"
	rival := newQueue(t, other, simplequeue.Options{PollOnly: true})
	jobs := []simplequeue.NewJob{{Queue: "a", UniqueKey: "1"}, {Queue: "a", UniqueKey: "2"}}
	execute(t, other, "INSERT INTO simplequeue.job_unique VALUES ('a', '1', gen_random_uuid())")
	won := make(chan []simplequeue.Inserted, 1)
	var once sync.Once
	config.ConnConfig.Tracer = beforeQuery(func(sql string) {
		if !strings.Contains(sql, "k(scope, key, ord)") {
			return
		}
		once.Do(func() { // the insert has key 2, has lost key 1, and looks for its holder
			execute(t, other, "DELETE FROM simplequeue.job_unique WHERE key = '1'")
			go func() {
				r, err := rival.InsertMany(context.Background(), jobs)
				if err != nil {
					t.Errorf("the rival: %v", err)
				}
				won <- r
			}()
			eventually(t, "the rival has key 1 and waits for key 2", func() bool {
				return queryOne[bool](t, other, "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')")
			})
		})
	})
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	r, err := newQueue(t, pool, simplequeue.Options{PollOnly: true}).InsertMany(ctx, jobs)
	if err != nil {
		t.Fatalf("InsertMany: %v", err)
	}
	for i, w := range <-won {
		if w.Duplicate || !r[i].Duplicate || r[i].ID != w.ID {
			t.Errorf("job %d: %+v, want a duplicate of the rival's %+v", i, r[i], w)
		}
	}
}
