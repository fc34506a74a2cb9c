package simplequeue_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/backoff"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// TestBackoffOfEachQueue: a queue's policy is used in its place, the global one
// elsewhere, and the delay is the one until the row's run time.
func TestBackoffOfEachQueue(t *testing.T) {
	t.Parallel()
	type seen struct {
		attempt int
		err     error
	}
	calls := make(chan seen, 100)
	fails := errors.New("fails")
	custom := func(d time.Duration) simplequeue.QueueOptions {
		return simplequeue.QueueOptions{Backoff: simplequeue.BackoffFunc(func(*simplequeue.Job, error) time.Duration { return d })}
	}
	const day = 24 * time.Hour
	opts := handler("*", func(context.Context, *simplequeue.Job) error { return fmt.Errorf("w: %w", fails) })
	opts.Backoff = backoff.Constant(5 * time.Hour)
	opts.Queues = map[string]simplequeue.QueueOptions{
		"linear":      {Backoff: backoff.Linear{Step: 2 * time.Hour, Cap: day}},
		"exponential": {Backoff: backoff.Exponential{Base: 3 * time.Hour, Cap: day, NoJitter: true}},
		"jitter":      {Backoff: backoff.Exponential{Base: 3 * time.Hour, Cap: day}},
		"func": {Backoff: simplequeue.BackoffFunc(func(job *simplequeue.Job, err error) time.Duration {
			calls <- seen{job.Attempt, err}
			return time.Duration(len(job.Kind)) * time.Hour
		})},
		"negative": custom(-time.Hour),
		"huge":     custom(math.MaxInt64),
		"panics":   {Backoff: simplequeue.BackoffFunc(func(*simplequeue.Job, error) time.Duration { panic("oh") })},
		"exits":    {Backoff: simplequeue.BackoffFunc(func(*simplequeue.Job, error) time.Duration { runtime.Goexit(); return 0 })},
	}
	pool := pgtest.New(t)
	q := newQueue(t, pool, opts)
	start(t, q)
	ids := map[string]uuid.UUID{}
	before := scalar[time.Time](t, pool, "SELECT clock_timestamp()")
	for _, want := range []struct {
		queue     string
		low, high time.Duration
	}{
		{"global", 5 * time.Hour, 5 * time.Hour},
		{"linear", 2 * time.Hour, 2 * time.Hour},
		{"exponential", 3 * time.Hour, 3 * time.Hour},
		{"jitter", 0, 3 * time.Hour},
		{"func", 4 * time.Hour, 4 * time.Hour},
		{"huge", backoff.MaxDelay, backoff.MaxDelay},
	} {
		ids[want.queue] = insert(t, q, simplequeue.NewJob{Queue: want.queue, Kind: "kind"})
		eventually(t, want.queue+" has failed once", func() bool { return len(get(t, q, ids[want.queue]).Errors) == 1 })
		info := awaitState(t, q, ids[want.queue], simplequeue.StateWaiting)
		after := scalar[time.Time](t, pool, "SELECT clock_timestamp()")
		if info.RunAt.Before(before.Add(want.low)) || info.RunAt.After(after.Add(want.high)) {
			t.Errorf("%s: runs again at %v, want %v to %v after %v", want.queue, info.RunAt, want.low, want.high, before)
		}
	}
	if s := <-calls; s.attempt != 1 || !errors.Is(s.err, fails) {
		t.Errorf("the policy saw attempt %d and error %v", s.attempt, s.err)
	}
	// No delay below zero, and no policy costs a job its outcome.
	for _, queue := range []string{"negative", "panics", "exits"} {
		info := awaitState(t, q, insert(t, q, simplequeue.NewJob{Queue: queue, MaxAttempts: 2}), simplequeue.StateFailed)
		if info.Attempt != 2 || len(info.Errors) != 2 {
			t.Errorf("%s: attempt %d, %d errors, want 2 and 2", queue, info.Attempt, len(info.Errors))
		}
	}
	eventually(t, "all permits are free", func() bool { return idle(q, 500) })
}

// TestDefaultBackoffHasJitter: many jobs that fail together do not come back
// together.
func TestDefaultBackoffHasJitter(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, handler("p", func(context.Context, *simplequeue.Job) error { return errors.New("x") }))
	stop := start(t, q)
	for range 40 {
		insert(t, q, simplequeue.NewJob{Queue: "p", MaxAttempts: 2})
	}
	eventually(t, "all jobs have failed twice", func() bool { return q.Stats().DeadLettered == 40 })
	if err := stop(); err != nil {
		t.Error(err)
	}
	spread := scalar[float64](t, pool, `
		SELECT extract(epoch FROM max(d) - min(d))::float8
		FROM (SELECT (errors -> 1 ->> 'at')::timestamptz - (errors -> 0 ->> 'at')::timestamptz AS d FROM simplequeue.job_queue_dlq) AS x`)
	if spread < 0.3 {
		t.Errorf("the delays of 40 jobs differ by %v s, want most of a second", spread)
	}
}
