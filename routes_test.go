package simplequeue_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// quick are options with short intervals, for tests that wait for a poll.
func quick(handlers ...simplequeue.Handler) simplequeue.Options {
	return simplequeue.Options{Handlers: handlers, PollInterval: 50 * time.Millisecond}
}

func nothing(context.Context, *simplequeue.Job) error { return nil }

// TestUnknownKindWaitsForAProgramThatKnowsIt: a job of a kind that a Mux does
// not know is parked without an attempt, and run by another program that knows
// the kind, or that takes every kind.
func TestUnknownKindWaitsForAProgramThatKnowsIt(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	old := newQueue(t, pool, quick(simplequeue.NewMux("mail").HandleFunc("old", nothing)))
	start(t, old)
	id := insert(t, old, simplequeue.NewJob{Queue: "mail", Kind: "new", MaxAttempts: 1})
	other := insert(t, old, simplequeue.NewJob{Queue: "mail", Kind: "other", MaxAttempts: 1})
	known := insert(t, old, simplequeue.NewJob{Queue: "mail", Kind: "old"})
	awaitState(t, old, known, simplequeue.StateCompleted)
	for range 3 { // for a second and third look at it, which must not happen
		if info := awaitState(t, old, id, simplequeue.StateWaiting); info.Reason != "unknown_kind" || info.Attempt != 0 {
			t.Errorf("reason %q, attempt %d, want unknown_kind and 0", info.Reason, info.Attempt)
		}
		time.Sleep(60 * time.Millisecond)
	}
	if s := old.Stats(); s.Parked != 2 {
		t.Errorf("parked %d times, want 2", s.Parked)
	}

	renewed := newQueue(t, pool, quick(simplequeue.NewMux("mail").HandleFunc("old", nothing).HandleFunc("new", nothing)))
	start(t, renewed)
	if info := awaitState(t, old, id, simplequeue.StateCompleted); info.Attempt != 1 {
		t.Errorf("attempt %d, want 1", info.Attempt)
	}
	if got := state(t, old, other); got != simplequeue.StateWaiting {
		t.Errorf("the job of the other kind is %s", got)
	}

	plain := newQueue(t, pool, quick(simplequeue.HandlerFunc("mail", nothing)))
	start(t, plain)
	awaitState(t, old, other, simplequeue.StateCompleted)
}

// TestHiddenMuxDoesNotSpin: a Mux behind middleware that hides it still parks
// what it does not know, and does not take it up again and again.
func TestHiddenMuxDoesNotSpin(t *testing.T) {
	t.Parallel()
	mux := simplequeue.NewMux("mail").HandleFunc("known", nothing)
	opts := quick(mux)
	opts.Middleware = []simplequeue.Middleware{func(h simplequeue.Handler) simplequeue.Handler {
		return simplequeue.HandlerFunc("mail", h.Process)
	}}
	q := newQueue(t, pgtest.New(t), opts)
	start(t, q)
	id := insert(t, q, simplequeue.NewJob{Queue: "mail", Kind: "unknown"})
	awaitState(t, q, id, simplequeue.StateWaiting)
	time.Sleep(200 * time.Millisecond) // four polls
	known := insert(t, q, simplequeue.NewJob{Queue: "mail", Kind: "known"})
	awaitState(t, q, known, simplequeue.StateCompleted)
	// A claim of parked jobs may be under way while the first one is parked.
	if s := q.Stats(); s.Parked < 1 || s.Parked > 2 || s.Claimed != s.Parked+1 {
		t.Errorf("parked %d, claimed %d, want 1 or 2, and one more", s.Parked, s.Claimed)
	}
}

// TestHandlersServeQueuesByNameAndPrefix: the exact name wins, then the longest
// prefix; several queues may share a handler, each with permits of its own.
func TestHandlersServeQueuesByNameAndPrefix(t *testing.T) {
	t.Parallel()
	var ran record
	named := func(name, queue string) simplequeue.Handler {
		return simplequeue.HandlerFunc(queue, func(_ context.Context, job *simplequeue.Job) error {
			ran.add(job.Queue + " by " + name)
			return nil
		})
	}
	opts := quick(
		named("all", "*"), named("mail", "mail.*"), named("exact", "mail.eu"),
		simplequeue.ServeQueues(named("several", "not.asked"), "x", "y", "long.mail.*"),
	)
	opts.Queues = map[string]simplequeue.QueueOptions{"y": {Permits: 3}}
	q := newQueue(t, pgtest.New(t), opts)
	start(t, q)
	want := map[string]string{
		"mail.eu": "exact", "mail.us": "mail", "mail.": "mail", "mail": "all", "x": "several", "y": "several",
		"long.mail.z": "several", "not.asked": "all", "Ümläut ☃ %_'\"\\": "all",
	}
	for queue := range want {
		insert(t, q, simplequeue.NewJob{Queue: queue})
	}
	eventually(t, "all jobs have run", func() bool { return len(ran.all()) == len(want) })
	got := ran.all()
	for queue, name := range want {
		if line := queue + " by " + name; !slices.Contains(got, line) {
			t.Errorf("not run: %s; got %q", line, got)
		}
	}
	eventually(t, "the stats show each queue", func() bool { return len(q.Stats().Queues) == len(want) })
	if s := q.Stats(); s.Queues["y"].Permits != 3 || s.Queues["x"].Permits != 100 {
		t.Errorf("permits %+v, want 3 for y and 100 for x", s.Queues)
	}
}

// TestUnservedQueueIsLeftAlone: nobody claims, parks or fails the jobs of a
// queue that no running program serves.
func TestUnservedQueueIsLeftAlone(t *testing.T) {
	t.Parallel()
	q := newQueue(t, pgtest.New(t), quick(simplequeue.HandlerFunc("served", nothing)))
	start(t, q)
	left := insert(t, q, simplequeue.NewJob{Queue: "unserved"})
	near := insert(t, q, simplequeue.NewJob{Queue: "served2"})
	awaitState(t, q, insert(t, q, simplequeue.NewJob{Queue: "served"}), simplequeue.StateCompleted)
	time.Sleep(120 * time.Millisecond) // two polls
	for _, id := range []uuid.UUID{left, near} {
		if info := get(t, q, id); info.State != simplequeue.StatePending || info.Attempt != 0 {
			t.Errorf("job of %s: %s, attempt %d, want pending, 0", info.Queue, info.State, info.Attempt)
		}
	}
	if s := q.Stats(); s.Claimed != 1 {
		t.Errorf("claimed %d jobs, want 1", s.Claimed)
	}
}

type middlewareKey struct{}

// TestMiddlewareWrapsInOrder: the first middleware is the outermost one, its
// context reaches the handler, and what it returns is the outcome.
func TestMiddlewareWrapsInOrder(t *testing.T) {
	t.Parallel()
	var ran record
	layer := func(name string) simplequeue.Middleware {
		return func(h simplequeue.Handler) simplequeue.Handler {
			return simplequeue.Wrap(h, func(ctx context.Context, job *simplequeue.Job) error {
				ran.add(name + " before")
				seen, _ := ctx.Value(middlewareKey{}).(string)
				err := h.Process(context.WithValue(ctx, middlewareKey{}, seen+name), job)
				ran.add(name + " after")
				return fmt.Errorf("%s: %w", name, err)
			})
		}
	}
	opts := handler("m", func(ctx context.Context, _ *simplequeue.Job) error {
		ran.add(fmt.Sprint("handler ", ctx.Value(middlewareKey{})))
		return simplequeue.Cancel(errors.New("no"))
	})
	opts.Middleware = []simplequeue.Middleware{layer("a"), layer("b"), layer("c")}
	q := newQueue(t, pgtest.New(t), opts)
	start(t, q)
	info := awaitState(t, q, insert(t, q, simplequeue.NewJob{Queue: "m"}), simplequeue.StateCancelled)
	if info.LastError() != "a: b: c: no" {
		t.Errorf("error %q, want a: b: c: no", info.LastError())
	}
	want := []string{"a before", "b before", "c before", "handler abc", "c after", "b after", "a after"}
	if got := ran.all(); !slices.Equal(got, want) {
		t.Errorf("order %q, want %q", got, want)
	}
}

// permitted is a handler with a permit of its own.
type permitted struct {
	simplequeue.Handler
	acquire func(ctx context.Context, job *simplequeue.Job) (func(), error)
}

func (p permitted) Acquire(ctx context.Context, job *simplequeue.Job) (func(), error) {
	return p.acquire(ctx, job)
}

// TestWrapKeepsWhatAHandlerIs: behind any number of Wraps and ServeQueues a
// Permitter is still asked, a Mux still knows its kinds, a Multi its queues.
func TestWrapKeepsWhatAHandlerIs(t *testing.T) {
	t.Parallel()
	var asked, wrapped atomic.Int64
	around := func(h simplequeue.Handler) simplequeue.Handler {
		return simplequeue.Wrap(h, func(ctx context.Context, job *simplequeue.Job) error {
			wrapped.Add(1)
			return h.Process(ctx, job)
		})
	}
	asking := permitted{simplequeue.HandlerFunc("not asked", nothing), func(context.Context, *simplequeue.Job) (func(), error) {
		asked.Add(1)
		return nil, nil
	}}
	mux := simplequeue.NewMux("mux").Handle("asks", around(asking)).HandleFunc("does not", nothing)
	opts := quick(around(simplequeue.ServeQueues(around(asking), "one", "two")), around(mux))
	opts.Middleware = []simplequeue.Middleware{around, around}
	q := newQueue(t, pgtest.New(t), opts)
	start(t, q)
	for _, job := range []simplequeue.NewJob{
		{Queue: "one"},
		{Queue: "two"},
		{Queue: "mux", Kind: "asks"},
		{Queue: "mux", Kind: "does not"},
	} {
		awaitState(t, q, insert(t, q, job), simplequeue.StateCompleted)
	}
	if n := asked.Load(); n != 3 {
		t.Errorf("the permit was asked %d times, want 3", n)
	}
	if n := wrapped.Load(); n != 4+4+4+3 {
		t.Errorf("wrappers ran %d times, want 15", n)
	}
	parked := insert(t, q, simplequeue.NewJob{Queue: "mux", Kind: "unknown"})
	awaitState(t, q, parked, simplequeue.StateWaiting)
	if wrapped.Load() != 15 {
		t.Error("a wrapper ran for a job of an unknown kind")
	}
}

// TestNewRefusesHandlersThatClash: each queue has one handler, and every name
// must be one.
func TestNewRefusesHandlersThatClash(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	serve := func(queue string) simplequeue.Handler { return simplequeue.HandlerFunc(queue, nothing) }
	for name, handlers := range map[string][]simplequeue.Handler{
		"nil":               {nil},
		"twice":             {serve("a"), serve("a")},
		"prefix twice":      {serve("a*"), simplequeue.ServeQueues(serve(""), "b", "a*")},
		"empty":             {serve("")},
		"no queues":         {simplequeue.ServeQueues(serve("a"))},
		"star inside":       {serve("a*b")},
		"control character": {serve("a\nb")},
		"bad prefix":        {serve("a\x00*")},
	} {
		_, err := simplequeue.New(pool, simplequeue.Options{Handlers: handlers})
		var invalid *simplequeue.InvalidOptionError
		if !errors.As(err, &invalid) || invalid.Option != fmt.Sprintf("Handlers[%d]", len(handlers)-1) {
			t.Errorf("%s: error %v, want an InvalidOptionError about the last handler", name, err)
		}
	}
	defer func() {
		if recover() == nil {
			t.Error("a kind handled twice did not panic")
		}
	}()
	simplequeue.NewMux("m").HandleFunc("k", nothing).HandleFunc("k", nothing)
}

// A job that was parked, and is given back by the program that took it, or whose
// worker dies, is pending like any other: it has a place that claims find.
func TestParkedJobIsPendingAgain(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	begun, over := make(chan struct{}, 2), make(chan struct{})
	mux := func(kind string, process func(context.Context, *simplequeue.Job) error) simplequeue.Options {
		return simplequeue.Options{
			Handlers: []simplequeue.Handler{simplequeue.NewMux("m").HandleFunc(kind, process)},
			Stop:     simplequeue.StopTimeouts{Drain: -1, Cancel: -1},
			// Leases are short enough to see one end.
			HeartbeatInterval: 500 * time.Millisecond, ReaperInterval: 100 * time.Millisecond,
		}
	}
	old := newQueue(t, pool, mux("old", func(context.Context, *simplequeue.Job) error { return nil }))
	stop := start(t, old)
	back, dead := insert(t, old, simplequeue.NewJob{Queue: "m", Kind: "new"}), insert(t, old, simplequeue.NewJob{Queue: "m", Kind: "new"})
	awaitState(t, old, back, simplequeue.StateWaiting)
	awaitState(t, old, dead, simplequeue.StateWaiting)
	if err := stop(); err != nil {
		t.Fatal(err)
	}

	hung := newQueue(t, pool, mux("new", func(context.Context, *simplequeue.Job) error { begun <- struct{}{}; <-over; return nil }))
	stop = start(t, hung)
	t.Cleanup(func() { close(over) })
	<-begun
	<-begun
	execute(t, pool, fmt.Sprintf("UPDATE simplequeue.job_running SET claim_nonce = 0, claimed_at = now() - interval '1 hour' WHERE id = '%v'", dead))
	_ = stop() // tells that handlers still run

	start(t, newQueue(t, pool, mux("new", func(context.Context, *simplequeue.Job) error { return nil })))
	for _, id := range []uuid.UUID{back, dead} {
		awaitState(t, old, id, simplequeue.StateCompleted)
	}
}
