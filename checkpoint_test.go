package simplequeue_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// checkpointer is one of the ways to make a checkpoint.
type checkpointer func(ctx context.Context, pool *pgxpool.Pool, job *simplequeue.Job, payload any, raw []byte) error

var checkpointers = map[string]checkpointer{
	"alone": func(ctx context.Context, _ *pgxpool.Pool, job *simplequeue.Job, payload any, raw []byte) error {
		return job.Checkpoint(ctx, payload, raw)
	},
	"pgx": func(ctx context.Context, pool *pgxpool.Pool, job *simplequeue.Job, payload any, raw []byte) error {
		return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return job.CheckpointTx(ctx, tx, payload, raw) })
	},
	"database/sql": func(ctx context.Context, pool *pgxpool.Pool, job *simplequeue.Job, payload any, raw []byte) error {
		db := stdlib.OpenDBFromPool(pool)
		defer db.Close()
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		if err := job.CheckpointSQLTx(ctx, tx, payload, raw); err != nil {
			return errors.Join(err, tx.Rollback())
		}
		return tx.Commit()
	},
}

// Either part of a payload becomes anything, of any size, or nothing, from
// attempt to attempt; the job in memory shows it at once, and nothing is left
// behind.
func TestCheckpointReplacesThePayload(t *testing.T) {
	t.Parallel()
	large, larger := strings.Repeat("x", 2000), strings.Repeat("y", 9000)
	type payload struct {
		json any
		raw  []byte
	}
	path := []payload{
		{"small", nil},
		{large, nil},
		{larger, nil},
		{nil, []byte("small")},
		{nil, []byte(large)},
		{"small", []byte("small")},
		{large, []byte("small")},
		{"small", []byte(large)},
		{nil, nil},
		{json.RawMessage(nil), []byte{}},
		{large, []byte(larger)},
		{nil, nil},
		{"last", nil},
	}
	text := func(p any) string {
		if raw, ok := p.(json.RawMessage); p == nil || ok && raw == nil {
			return ""
		}
		encoded, _ := json.Marshal(p)
		return string(encoded)
	}
	same := func(job *simplequeue.Job, want payload) error {
		if got := string(job.Payload); got != text(want.json) || string(job.Raw) != string(want.raw) {
			return simplequeue.Critical(fmt.Errorf("attempt %d: payload %.40s, raw %.40s, want %.40s and %.40s", job.Attempt, got, job.Raw, text(want.json), want.raw))
		}
		return nil
	}
	for name, checkpoint := range checkpointers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.New(t)
			var q *simplequeue.SimpleQueue
			q = newQueue(t, pool, handler("path", func(ctx context.Context, job *simplequeue.Job) error {
				if err := same(job, path[job.Attempt-1]); err != nil {
					return err
				}
				if job.Attempt == len(path) {
					return nil
				}
				next := path[job.Attempt]
				if err := checkpoint(ctx, pool, job, next.json, next.raw); err != nil {
					return simplequeue.Critical(err)
				}
				info, err := q.Get(ctx, job.ID)
				if err := errors.Join(err, same(job, next), same(&info.Job, next)); err != nil {
					return err
				}
				return simplequeue.RetryAfter(0, errors.New("go on"))
			}))
			start(t, q)
			id := insert(t, q, simplequeue.NewJob{Queue: "path", Payload: path[0].json, MaxAttempts: len(path)})
			info := awaitEnd(t, q, id)
			if info.State != simplequeue.StateCompleted || string(info.Payload) != `"last"` || info.Raw != nil {
				t.Errorf("%s: %s, payload %.40s, raw %.40s", info.State, info.LastError(), info.Payload, info.Raw)
			}
			if n := countRows(t, pool, "job_payload"); n != 0 {
				t.Errorf("%d payloads are left behind", n)
			}
		})
	}
}

// awaitEnd waits until a job has ended, however.
func awaitEnd(t testing.TB, q *simplequeue.SimpleQueue, id uuid.UUID) simplequeue.JobInfo {
	t.Helper()
	eventually(t, "job "+id.String()+" has ended", func() bool { return state(t, q, id).Terminal() })
	return get(t, q, id)
}

func countRows(t testing.TB, pool *pgxpool.Pool, from string) (n int) {
	t.Helper()
	if err := pool.QueryRow(context.Background(), "SELECT count(*) FROM simplequeue."+from).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// What a checkpoint has stored is there after every way in which an attempt ends
// without the job.
func TestCheckpointTravels(t *testing.T) {
	t.Parallel()
	ends := map[string]error{"retry": errors.New("again"), "reschedule": simplequeue.RescheduleAfter(0)}
	for _, size := range []int{10, 3000} {
		for name, end := range ends {
			opts := handler("travel", func(ctx context.Context, job *simplequeue.Job) error {
				if job.ReprocessCount > 0 || job.Attempt > 1 {
					return nil
				}
				if err := job.Checkpoint(ctx, strings.Repeat("x", size), []byte("raw")); err != nil {
					return err
				}
				return end
			})
			opts.Backoff = simplequeue.BackoffFunc(func(*simplequeue.Job, error) time.Duration { return 0 })
			q := newQueue(t, pgtest.New(t), opts)
			start(t, q)
			info := awaitState(t, q, insert(t, q, simplequeue.NewJob{Queue: "travel", Payload: "first"}), simplequeue.StateCompleted)
			if len(info.Payload) != size+2 || string(info.Raw) != "raw" {
				t.Errorf("%s, %d bytes: payload %.40s, raw %s", name, size, info.Payload, info.Raw)
			}
		}
	}
}

// A stop that gives the job back, and a reaper that finds its worker silent,
// pass on what the checkpoint has stored, and use up what they always do.
func TestCheckpointSurvivesStopAndCrash(t *testing.T) {
	t.Parallel()
	for _, crash := range []bool{false, true} {
		pool := pgtest.New(t)
		begun := make(chan uuid.UUID, 1)
		first := newQueue(t, pool, simplequeue.Options{
			GlobalPermits:  1, // only the second may run it again
			ReaperInterval: time.Hour, Stop: simplequeue.StopTimeouts{Drain: -1},
			Handlers: []simplequeue.Handler{simplequeue.HandlerFunc("q", func(ctx context.Context, job *simplequeue.Job) error {
				if err := job.Checkpoint(ctx, "stored", nil); err != nil {
					return err
				}
				begun <- job.ID
				<-ctx.Done()
				return ctx.Err()
			})},
		})
		stop := start(t, first)
		insert(t, first, simplequeue.NewJob{Queue: "q", Payload: "first"})
		id := <-begun
		want := 1
		if crash {
			expire(t, pool, id)
			want = 2
		} else if err := stop(); err != nil {
			t.Fatal(err)
		}
		second := newQueue(t, pool, simplequeue.Options{
			ReaperInterval: 200 * time.Millisecond,
			Handlers: []simplequeue.Handler{simplequeue.HandlerFunc("q", func(_ context.Context, job *simplequeue.Job) error {
				return job.SetResult(job.Payload)
			})},
		})
		start(t, second)
		info := awaitState(t, second, id, simplequeue.StateCompleted)
		if string(info.Result) != `"stored"` || info.Attempt != want {
			t.Errorf("crash %t: result %s, attempt %d, want the payload of the checkpoint and attempt %d", crash, info.Result, info.Attempt, want)
		}
	}
}

// A checkpoint on the last attempt makes the job no more claimable than before:
// there is one run, and its failure is the end.
func TestCheckpointOnTheLastAttempt(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	var runs atomic.Int64
	opts := handler("last", func(ctx context.Context, job *simplequeue.Job) error {
		runs.Add(1)
		for i := range 20 {
			if err := job.Checkpoint(ctx, i, nil); err != nil {
				return err
			}
		}
		return errors.New("failed all the same")
	})
	opts.PollInterval = 10 * time.Millisecond
	q := newQueue(t, pool, opts)
	start(t, q)
	start(t, newQueue(t, pool, opts))
	info := awaitEnd(t, q, insert(t, q, simplequeue.NewJob{Queue: "last", MaxAttempts: 1}))
	if info.State != simplequeue.StateFailed || info.Attempt != 1 || runs.Load() != 1 || string(info.Payload) != "19" {
		t.Errorf("%s, attempt %d, %d runs, payload %s, want failed, 1, 1 and the last checkpoint's", info.State, info.Attempt, runs.Load(), info.Payload)
	}
}

// A stale owner whose transaction holds the only connection of its pool is told
// that the lease is lost all the same.
func TestStaleOwnerIsToldWithoutASecondConnection(t *testing.T) {
	t.Parallel()
	all := pgtest.New(t)
	pool := pgtest.Pool(t, all.Config().ConnString(), 1)
	answer := make(chan error, 1)
	opts := handler("q", func(ctx context.Context, job *simplequeue.Job) error {
		tx, err := pool.Begin(ctx)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback(context.Background()) }()
		if _, err := all.Exec(ctx, "DELETE FROM simplequeue.job_running"); err != nil {
			return err
		}
		answer <- job.CheckpointTx(ctx, tx, "late", nil)
		return nil
	})
	opts.HeartbeatInterval = time.Minute // or the beat ends the handler
	start(t, newQueue(t, pool, opts))
	insert(t, newQueue(t, all, simplequeue.Options{}), simplequeue.NewJob{Queue: "q"})
	if err := <-answer; !errors.Is(err, simplequeue.ErrLeaseLost) {
		t.Errorf("CheckpointTx: %v, want %v", err, simplequeue.ErrLeaseLost)
	}
}

// A stale owner's checkpoints and steps are refused and change nothing.
func TestCheckpointOfAStaleOwner(t *testing.T) {
	t.Parallel()
	for name, checkpoint := range checkpointers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.New(t)
			begun, reaped, answer := make(chan uuid.UUID, 1), make(chan struct{}), make(chan error, 2)
			old := newQueue(t, pool, simplequeue.Options{
				GlobalPermits:  1, // only the next owner may run it again
				ReaperInterval: time.Hour,
				Handlers: []simplequeue.Handler{simplequeue.HandlerFunc("q", func(_ context.Context, job *simplequeue.Job) error {
					begun <- job.ID
					<-reaped
					ctx := context.Background()
					answer <- checkpoint(ctx, pool, job, "stale", nil)
					if string(job.Payload) != `"first"` {
						t.Errorf("payload in memory %s after a refused checkpoint", job.Payload)
					}
					_, err := simplequeue.Step(ctx, job, "stale", func(context.Context) (int, error) { return 1, nil })
					answer <- err
					return nil
				})},
			})
			start(t, old)
			insert(t, old, simplequeue.NewJob{Queue: "q", Payload: "first"})
			id := <-begun
			expire(t, pool, id)
			release := make(chan struct{})
			next := newQueue(t, pool, simplequeue.Options{
				ReaperInterval: 200 * time.Millisecond,
				Handlers: []simplequeue.Handler{simplequeue.HandlerFunc("q", func(_ context.Context, job *simplequeue.Job) error {
					<-release
					return nil
				})},
			})
			start(t, next)
			eventually(t, "the next owner runs it", func() bool { return next.Stats().Running == 1 })
			close(reaped)
			for range 2 {
				if err := <-answer; !errors.Is(err, simplequeue.ErrLeaseLost) {
					t.Errorf("the stale owner is told %v, want %v", err, simplequeue.ErrLeaseLost)
				}
			}
			close(release)
			if info := awaitState(t, next, id, simplequeue.StateCompleted); string(info.Payload) != `"first"` {
				t.Errorf("payload %s, want the one at insert", info.Payload)
			}
			if n := countRows(t, pool, "job_payload"); n != 0 {
				t.Errorf("%d payloads are left behind", n)
			}
		})
	}
}

// A checkpoint in a transaction that is rolled back was none.
func TestCheckpointRolledBack(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, handler("q", func(ctx context.Context, job *simplequeue.Job) error {
		if job.Attempt == 2 {
			return nil
		}
		tx, err := pool.Begin(ctx)
		if err != nil {
			return err
		}
		return errors.Join(job.CheckpointTx(ctx, tx, strings.Repeat("x", 2000), nil), tx.Rollback(ctx), simplequeue.RetryAfter(0, errors.New("again")))
	}))
	start(t, q)
	info := awaitState(t, q, insert(t, q, simplequeue.NewJob{Queue: "q", Payload: "first"}), simplequeue.StateCompleted)
	if string(info.Payload) != `"first"` || len(info.Errors) != 1 || info.LastError() != "again" {
		t.Errorf("payload %s, errors %+v", info.Payload, info.Errors)
	}
}

// moveRunning does to the rows of job_running what rotate does.
func moveRunning(t testing.TB, pool *pgxpool.Pool) {
	t.Helper()
	for slot := range 4 {
		_, err := pool.Exec(context.Background(), strings.ReplaceAll(`
			DO $$
			DECLARE rows simplequeue.job_running[];
			BEGIN
				SELECT array_agg(t::simplequeue.job_running) FROM simplequeue.job_running_N AS t INTO rows;
				TRUNCATE simplequeue.job_running_N;
				INSERT INTO simplequeue.job_running_N OVERRIDING SYSTEM VALUE SELECT (u.r).* FROM (SELECT unnest(rows) AS r) AS u;
			END $$`, "_N", fmt.Sprint("_", slot)))
		if err != nil {
			t.Fatal(err)
		}
	}
}

// A transaction whose snapshot is older than the rows of job_running is told to
// be repeated, not that the lease is lost.
func TestCheckpointInAnOldSnapshot(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, handler("q", func(ctx context.Context, job *simplequeue.Job) error {
		for _, level := range []pgx.TxIsoLevel{pgx.RepeatableRead, pgx.Serializable} {
			tx, err := pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: level})
			if err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, "SELECT 1"); err != nil {
				return err
			}
			moveRunning(t, pool)
			err = job.CheckpointTx(ctx, tx, "second", nil)
			_ = tx.Rollback(ctx)
			if sqlState(err) != "40001" || errors.Is(err, simplequeue.ErrLeaseLost) {
				return simplequeue.Critical(fmt.Errorf("%s: %w, want 40001", level, err))
			}
		}
		return job.Checkpoint(ctx, "second", nil)
	}))
	start(t, q)
	info := awaitEnd(t, q, insert(t, q, simplequeue.NewJob{Queue: "q"}))
	if info.State != simplequeue.StateCompleted || string(info.Payload) != `"second"` {
		t.Errorf("%s: %s, payload %s", info.State, info.LastError(), info.Payload)
	}
}

// What cannot be stored is refused and leaves the job as it is; so is a job that
// nobody runs.
func TestCheckpointsThatCannotBeMade(t *testing.T) {
	t.Parallel()
	q := newQueue(t, pgtest.New(t), handler("q", func(ctx context.Context, job *simplequeue.Job) error {
		before := *job
		for what, err := range map[string]error{
			"a channel":        job.Checkpoint(ctx, make(chan int), nil),
			"NUL":              job.Checkpoint(ctx, "\x00", nil),
			"a large one":      job.Checkpoint(ctx, nil, make([]byte, 1<<20+1)),
			"numbers":          job.Checkpoint(ctx, json.RawMessage("["+strings.Repeat("1e100000,", 10)+"1e50000]"), nil),
			"a sum of numbers": job.Checkpoint(ctx, json.RawMessage("["+strings.Repeat("1e100000,", 5)+"1]"), make([]byte, 1<<19+50_000)),
			"a large sum":      job.Checkpoint(ctx, strings.Repeat("x", 1<<19), make([]byte, 1<<19)),
		} {
			var invalid *simplequeue.InvalidValueError
			if !errors.As(err, &invalid) || invalid.Name != "payload" {
				return simplequeue.Critical(fmt.Errorf("%s: %w", what, err))
			}
		}
		if !reflect.DeepEqual(before, *job) {
			return simplequeue.Critical(errors.New("the job has changed"))
		}
		return nil
	}))
	start(t, q)
	info := awaitEnd(t, q, insert(t, q, simplequeue.NewJob{Queue: "q", Payload: 1}))
	if info.State != simplequeue.StateCompleted || string(info.Payload) != "1" {
		t.Errorf("%s: %s, payload %s", info.State, info.LastError(), info.Payload)
	}
	if err := info.Checkpoint(t.Context(), 2, nil); !errors.Is(err, simplequeue.ErrLeaseLost) {
		t.Errorf("checkpoint of an inspected job: %v", err)
	}
	if err := info.CheckpointSQLTx(t.Context(), (*sql.Tx)(nil), 2, nil); !errors.Is(err, simplequeue.ErrLeaseLost) {
		t.Errorf("checkpoint of an inspected job: %v", err)
	}
}
