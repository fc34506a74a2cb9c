package simplequeue_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/backoff"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// errorLog collects what is logged from a level on.
type errorLog struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *errorLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *errorLog) logger(from slog.Level) *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: from}))
}

func (l *errorLog) lines() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.FieldsFunc(l.buf.String(), func(r rune) bool { return r == '\n' })
}

// A pool may be set to any way of pgx to run a query, as poolers demand:
// insert, claim, settle, beat, cancel and inspect work, and every value comes
// back as it went in.
func TestEveryQueryExecModeWorks(t *testing.T) {
	t.Parallel()
	for _, mode := range []pgx.QueryExecMode{
		pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec,
		pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol,
	} {
		t.Run(strings.ReplaceAll(mode.String(), " ", "_"), func(t *testing.T) {
			t.Parallel()
			config := pgtest.Pool(t, pgtest.Database(t), 1).Config()
			config.MaxConns = 5
			config.ConnConfig.DefaultQueryExecMode = mode
			pool, err := pgxpool.NewWithConfig(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(pool.Close)
			wholeLife(t, pool)
		})
	}
}

// wholeLife sends jobs every way through an engine on the pool.
func wholeLife(t *testing.T, pool *pgxpool.Pool) {
	var logged errorLog
	type thing struct {
		N json.Number `json:"n"`
		S string      `json:"s"`
	}
	small := thing{"9007199254740993", `'"\$1 ?` + "\n☃"}
	big := thing{"1", strings.Repeat(`'\☃`, 10_000)}
	bytes20k := bytes.Repeat([]byte{0, 1, '\'', '\\', 0xff}, 4000)
	check := func(job *simplequeue.Job, want thing) error {
		var got thing
		if err := job.Decode(&got); err != nil {
			return err
		}
		if got != want || len(job.Raw) > 0 && !bytes.Equal(job.Raw, bytes20k) && !bytes.Equal(job.Raw, []byte{0, 0xff}) {
			return simplequeue.Critical(errors.New("payload differs"))
		}
		return nil
	}
	q := newQueue(t, pool, simplequeue.Options{
		Logger: logged.logger(slog.LevelError), HeartbeatInterval: time.Second, JanitorInterval: 20 * time.Millisecond,
		Backoff: backoff.Constant(time.Millisecond),
		Handlers: []simplequeue.Handler{
			simplequeue.HandlerFunc("small", func(_ context.Context, job *simplequeue.Job) error {
				switch job.Attempt + job.ReprocessCount {
				case 1:
					return errors.New("first \x00\xff' $1")
				case 2:
					return simplequeue.RescheduleAfter(time.Millisecond)
				case 3:
					return simplequeue.RetryAt(time.Now(), errors.New("third"))
				}
				return check(job, small)
			}),
			simplequeue.HandlerFunc("big", func(_ context.Context, job *simplequeue.Job) error { return check(job, big) }),
			simplequeue.HandlerFunc("dead", func(context.Context, *simplequeue.Job) error { panic("\x00\xff' $1") }),
			simplequeue.HandlerFunc("slow", func(ctx context.Context, _ *simplequeue.Job) error { <-ctx.Done(); return context.Cause(ctx) }),
			simplequeue.NewMux("mux").HandleFunc("known", func(context.Context, *simplequeue.Job) error { return nil }),
		},
	})
	start(t, q)
	many, err := q.InsertMany(t.Context(), []simplequeue.NewJob{
		{Queue: "small", Payload: small, Raw: []byte{0, 0xff}, Metadata: map[string]string{"k": `'\`}, Fingerprint: "f'", MaxAttempts: 9},
		{Queue: "big", Payload: big, Raw: bytes20k},
	})
	if err != nil {
		t.Fatal(err)
	}
	keyed, err := q.InsertMany(t.Context(), []simplequeue.NewJob{
		{Queue: "small", Payload: small, UniqueKey: `k'\`, Delay: time.Millisecond, Fingerprint: "f'", MaxAttempts: 9},
		{Queue: "big", Payload: big, Raw: bytes20k, UniqueKey: "b", RunAt: time.Now().Add(-time.Hour)},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range append(many, keyed...) {
		awaitState(t, q, r.ID, simplequeue.StateCompleted)
	}
	if got := get(t, q, many[0].ID); len(got.Errors) != 2 || got.Errors[0].Error != "first \ufffd\ufffd' $1" || got.ReprocessCount != 1 {
		t.Errorf("history of a retried job: %+v", got.Errors)
	}
	dead := insert(t, q, simplequeue.NewJob{Queue: "dead", MaxAttempts: 1})
	if got := awaitState(t, q, dead, simplequeue.StateFailed); got.LastError() != "panic: \ufffd\ufffd' $1" || got.Errors[0].Stack == "" {
		t.Errorf("dead job: %+v", got.Errors)
	}
	parked := insert(t, q, simplequeue.NewJob{Queue: "mux", Kind: "unknown"})
	insert(t, q, simplequeue.NewJob{Queue: "mux", Kind: "known"})
	slow := insert(t, q, simplequeue.NewJob{Queue: "slow"})
	awaitState(t, q, slow, simplequeue.StateRunning)
	eventually(t, "the lease is beaten", func() bool { return queryOne[int](t, pool, "SELECT count(*) FROM simplequeue.job_lease") > 0 })
	awaitState(t, q, parked, simplequeue.StateWaiting)
	idle := insert(t, q, simplequeue.NewJob{Queue: "nobody", UniqueKey: "k"})
	for _, id := range []simplequeue.Filter{{Fingerprint: "none'"}, {Queue: "slow"}, {Queue: "mux", Kind: "unknown"}, {Queue: "nobody", UniqueKey: "k"}} {
		if _, err := q.CancelMatching(t.Context(), id, `it's over\`); err != nil {
			t.Error(err)
		}
	}
	awaitState(t, q, slow, simplequeue.StateCancelled)
	if got := awaitState(t, q, parked, simplequeue.StateCancelled); got.Reason != `it's over\` {
		t.Errorf("reason of a cancelled job: %q", got.Reason)
	}
	awaitState(t, q, idle, simplequeue.StateCancelled)
	if errs := logged.lines(); len(errs) > 0 {
		t.Errorf("logged: %v", errs)
	}
}
