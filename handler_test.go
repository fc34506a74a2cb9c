package simplequeue_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/backoff"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

type letter struct {
	To    string `json:"to"`
	Pages int    `json:"pages"`
}

// TestTypedDecodesThePayload: the handler gets the decoded payload; one that does
// not decode ends the job at once as unprocessable, with the payload kept.
func TestTypedDecodesThePayload(t *testing.T) {
	t.Parallel()
	got := make(chan letter, 1)
	q := newQueue(t, pgtest.New(t), simplequeue.Options{Handlers: []simplequeue.Handler{
		simplequeue.Typed("letters", func(_ context.Context, _ *simplequeue.Job, l letter) error {
			got <- l
			return nil
		}),
	}})
	start(t, q)
	want := letter{"you", 3}
	awaitState(t, q, insert(t, q, simplequeue.NewJob{Queue: "letters", Payload: want}), simplequeue.StateCompleted)
	if l := <-got; l != want {
		t.Errorf("payload %+v, want %+v", l, want)
	}
	for name, payload := range map[string]any{
		"other type":      map[string]any{"to": 7},
		"number too big":  json.RawMessage(`{"pages": 99999999999999999999}`),
		"not an object":   []int{1},
		"nothing":         nil,
		"text for number": json.RawMessage(`{"pages": "three"}`),
	} {
		info := awaitState(t, q, insert(t, q, simplequeue.NewJob{Queue: "letters", Payload: payload}), simplequeue.StateUnprocessable)
		if info.Attempt != 1 || !strings.HasPrefix(info.LastError(), "decode payload: ") {
			t.Errorf("%s: attempt %d, error %q", name, info.Attempt, info.LastError())
		}
		if (payload == nil) != (info.Payload == nil) {
			t.Errorf("%s: payload %s, want the one inserted", name, info.Payload)
		}
	}
	if len(got) != 0 {
		t.Error("the handler was called with a payload that does not decode")
	}
}

// TestHandlerInsertsFollowUps: a handler finds its queue and its job in its
// context, and the jobs it inserts know their parent and the first of the chain.
func TestHandlerInsertsFollowUps(t *testing.T) {
	t.Parallel()
	ids := make(chan uuid.UUID, 2)
	var q *simplequeue.SimpleQueue
	mux := simplequeue.NewMux("chain")
	next := func(kind string) func(context.Context, *simplequeue.Job) error {
		return func(ctx context.Context, job *simplequeue.Job) error {
			if simplequeue.FromContext(ctx) != q || simplequeue.JobFromContext(ctx) != job {
				return simplequeue.Critical(errors.New("context does not know queue and job"))
			}
			r, err := simplequeue.FromContext(ctx).Insert(ctx, simplequeue.NewJob{Queue: "chain", Kind: kind})
			ids <- r.ID
			return err
		}
	}
	mux.HandleFunc("first", next("second")).HandleFunc("second", next("third")).HandleFunc("third", nothing)
	q = newQueue(t, pgtest.New(t), simplequeue.Options{Handlers: []simplequeue.Handler{mux}})
	start(t, q)
	first := insert(t, q, simplequeue.NewJob{Queue: "chain", Kind: "first"})
	second, third := <-ids, <-ids
	for _, want := range []struct{ id, parent, root uuid.UUID }{{first, uuid.Nil, uuid.Nil}, {second, first, first}, {third, second, first}} {
		info := awaitState(t, q, want.id, simplequeue.StateCompleted)
		if info.ParentID != want.parent || info.RootID != want.root {
			t.Errorf("%s: parent %v, root %v, want %v, %v", info.Kind, info.ParentID, info.RootID, want.parent, want.root)
		}
	}
	if simplequeue.FromContext(t.Context()) != nil || simplequeue.JobFromContext(t.Context()) != nil {
		t.Error("a context outside a handler knows a queue or a job")
	}
}

// TestHandlerSeesTheWholeJob: every field of a job reaches the handler, at the
// first attempt and at a later one.
func TestHandlerSeesTheWholeJob(t *testing.T) {
	t.Parallel()
	seen := make(chan simplequeue.Job, 2)
	opts := handler("whole", func(_ context.Context, job *simplequeue.Job) error {
		seen <- *job
		if job.Attempt == 1 {
			return errors.New("first")
		}
		return nil
	})
	opts.Backoff = backoff.Constant(0)
	q := newQueue(t, pgtest.New(t), opts)
	start(t, q)
	in := simplequeue.NewJob{
		Queue: "whole", Kind: "k", Payload: map[string]int64{"n": 9007199254740993}, Raw: []byte{0, 1, 255}, Priority: 4,
		MaxAttempts: 7, UniqueKey: "u", Fingerprint: "f", Metadata: map[string]string{"a": "b"},
		TraceContext: map[string]string{"traceparent": "00-x"}, Timeout: 90 * time.Second,
		Retention: simplequeue.Retention{Archive: time.Hour, DeadLetter: simplequeue.KeepForever},
	}
	id := insert(t, q, in)
	awaitState(t, q, id, simplequeue.StateCompleted)
	for attempt := 1; attempt <= 2; attempt++ {
		job := <-seen
		var payload map[string]int64
		if err := job.Decode(&payload); err != nil || payload["n"] != 9007199254740993 {
			t.Errorf("payload %s, %v", job.Payload, err)
		}
		if job.ID != id || job.Queue != in.Queue || job.Kind != in.Kind || string(job.Raw) != string(in.Raw) ||
			job.Priority != in.Priority || job.MaxAttempts != in.MaxAttempts || job.UniqueKey != in.UniqueKey ||
			job.Fingerprint != in.Fingerprint || !maps.Equal(job.Metadata, in.Metadata) ||
			!maps.Equal(job.TraceContext, in.TraceContext) || job.Timeout != in.Timeout || job.Retention != in.Retention {
			t.Errorf("job %+v, want the one inserted", job)
		}
		if job.Attempt != attempt || job.CreatedAt.IsZero() || len(job.Errors) != attempt-1 {
			t.Errorf("attempt %d, created at %v, %d errors, want attempt %d", job.Attempt, job.CreatedAt, len(job.Errors), attempt)
		}
		if attempt == 2 && (job.LastError() != "first" || job.Errors[0].Attempt != 1 || job.Errors[0].Reason != "retry") {
			t.Errorf("errors %+v, want the first attempt's", job.Errors)
		}
	}
}

// TestErrorHistoryIsBounded: at most ten errors are kept, the newest ones, and
// only the newest keeps its stack.
func TestErrorHistoryIsBounded(t *testing.T) {
	t.Parallel()
	opts := handler("h", func(context.Context, *simplequeue.Job) error { panic("again") })
	opts.Backoff = backoff.Constant(0)
	q := newQueue(t, pgtest.New(t), opts)
	start(t, q)
	info := awaitState(t, q, insert(t, q, simplequeue.NewJob{Queue: "h", MaxAttempts: 13}), simplequeue.StateFailed)
	if len(info.Errors) != 10 || info.Errors[0].Attempt != 4 || info.Errors[9].Attempt != 13 {
		t.Fatalf("errors %+v, want those of the attempts 4 to 13", info.Errors)
	}
	for i, e := range info.Errors {
		if (e.Stack != "") != (i == 9) || e.At.IsZero() {
			t.Errorf("entry %d: stack of %d bytes, at %v", i, len(e.Stack), e.At)
		}
	}
}

// TestFailedJobsAreNotTheLibrarysErrors: a job that fails, panics or is
// unprocessable is the handler's business; the library logs no warning.
func TestFailedJobsAreNotTheLibrarysErrors(t *testing.T) {
	t.Parallel()
	var logged logRecord
	mux := simplequeue.NewMux("q").
		HandleFunc("error", func(context.Context, *simplequeue.Job) error { return errors.New("secret") }).
		HandleFunc("panic", func(context.Context, *simplequeue.Job) error { panic("secret") }).
		HandleFunc("critical", func(context.Context, *simplequeue.Job) error { return simplequeue.Critical(errors.New("secret")) }).
		HandleFunc("timeout", func(ctx context.Context, _ *simplequeue.Job) error { <-ctx.Done(); return ctx.Err() })
	q := newQueue(t, pgtest.New(t), simplequeue.Options{
		Handlers: []simplequeue.Handler{mux}, MaxAttempts: 1, Timeout: 20 * time.Millisecond,
		Logger: slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	start(t, q)
	for _, kind := range []string{"error", "panic", "critical", "timeout"} {
		insert(t, q, simplequeue.NewJob{Queue: "q", Kind: kind, Payload: "secret"})
	}
	eventually(t, "all jobs have failed", func() bool { return q.Stats().DeadLettered == 4 })
	for _, lines := range [][]string{logged.with("level=WARN"), logged.with("level=ERROR"), logged.with("secret")} {
		if len(lines) > 0 {
			t.Errorf("logged %q", lines)
		}
	}
}
