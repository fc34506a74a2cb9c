package simplequeue_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

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
// again, and where that happens three times it gives up with an error that
// says so, having changed nothing.
func TestAHolderThatIsGoneWhenItIsLookedUp(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		gone int64 // how often
		err  error
	}{"once": {1, nil}, "twice": {2, nil}, "always": {1000, simplequeue.ErrUniqueContention}} {
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
			r, err := q.InsertMany(t.Context(), []simplequeue.NewJob{{Queue: "a"}, {Queue: "a", UniqueKey: "k"}, {Queue: "a", UniqueKey: "other"}})
			if !errors.Is(err, c.err) || errors.Is(err, simplequeue.ErrInsertUnknown) {
				t.Fatalf("InsertMany: %v, want %v", err, c.err)
			}
			want := int64(3)
			if c.err != nil {
				want = 0
			}
			for _, one := range r {
				if one.Duplicate {
					t.Errorf("results %+v, want no duplicates", r)
				}
			}
			if got := counts(t, q, "a")[simplequeue.StatePending]; got != want {
				t.Errorf("%d jobs are pending, want %d", got, want)
			}
		})
	}
}
