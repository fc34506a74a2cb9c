package simplequeuetest_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

func newQueue(t testing.TB, pool *pgxpool.Pool, opts simplequeue.Options) *simplequeue.SimpleQueue {
	t.Helper()
	opts.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	q, err := simplequeue.New(pool, opts)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

func begin(t testing.TB, pool *pgxpool.Pool) pgx.Tx {
	t.Helper()
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback(context.Background()) })
	return tx
}

func insert(t testing.TB, q *simplequeue.SimpleQueue, jobs ...simplequeue.NewJob) {
	t.Helper()
	if _, err := q.InsertMany(t.Context(), jobs); err != nil {
		t.Fatal(err)
	}
}

func counts(t testing.TB, q *simplequeue.SimpleQueue) map[simplequeue.State]int64 {
	t.Helper()
	c, err := q.Count(t.Context(), simplequeue.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within two minutes: %s", what)
		}
	}
}

// recorder notes how a test has failed.
type recorder struct {
	testing.TB
	text     string
	failed   bool
	cleanups []func()
}

func (r *recorder) Helper()      {}
func (r *recorder) Failed() bool { return r.failed }
func (r *recorder) Errorf(format string, args ...any) {
	r.text, r.failed = fmt.Sprintf(format, args...), true
}

func (r *recorder) Fatalf(format string, args ...any) { r.Errorf(format, args...); runtime.Goexit() }
func (r *recorder) Fatal(args ...any)                 { r.Fatalf("%s", fmt.Sprint(args...)) }
func (r *recorder) FailNow()                          { r.failed = true; runtime.Goexit() }
func (r *recorder) Cleanup(f func())                  { r.cleanups = append(r.cleanups, f) }

// record runs f as a test and returns whether it came to its end, and the text
// with which it has failed.
func record(t testing.TB, f func(t testing.TB)) (r *recorder, ended bool) {
	r = &recorder{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(r)
		ended = true
	}()
	<-done
	for i := range r.cleanups {
		r.cleanups[len(r.cleanups)-1-i]()
	}
	return r, ended
}

// fails returns the text with which f, as a test, has failed at once.
func fails(t testing.TB, f func(t testing.TB)) string {
	t.Helper()
	r, ended := record(t, f)
	if ended || !r.failed {
		t.Error("the test goes on, want it to fail")
	}
	return r.text
}
