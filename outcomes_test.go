package simplequeue_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/backoff"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// pointerError is an error whose Error method panics on a nil pointer.
type pointerError struct{ text string }

func (e *pointerError) Error() string { return e.text }

// hostileError panics wherever the engine may touch it.
type hostileError struct{}

func (hostileError) Error() string   { panic("Error") }
func (hostileError) Is(error) bool   { panic("Is") }
func (hostileError) As(any) bool     { panic("As") }
func (hostileError) Unwrap() []error { panic("Unwrap") }

// exitError ends the goroutine that asks for its text.
type exitError struct{}

func (exitError) Error() string { runtime.Goexit(); return "" }

// TestOutcomesEndWhereTheySay: whatever a handler does, its job ends in the
// state that this stands for, with the reason, and no permit leaks.
func TestOutcomesEndWhereTheySay(t *testing.T) {
	t.Parallel()
	var nilPointer *pointerError
	plain := errors.New("broke")
	tests := map[string]struct {
		process func(ctx context.Context, job *simplequeue.Job) error
		state   simplequeue.State
		runs    int
		text    string // of the last error
		reason  string
	}{
		"nil":   {func(context.Context, *simplequeue.Job) error { return nil }, simplequeue.StateCompleted, 1, "", ""},
		"error": {func(context.Context, *simplequeue.Job) error { return plain }, simplequeue.StateFailed, 3, "broke", "failed 3 of 3 attempts"},
		"heals": {func(_ context.Context, job *simplequeue.Job) error {
			if job.Attempt < 3 {
				return plain
			}
			return nil
		}, simplequeue.StateCompleted, 3, "broke", ""},
		"retry wrapped": {func(context.Context, *simplequeue.Job) error {
			return fmt.Errorf("again: %w", simplequeue.RetryAfter(time.Millisecond, plain))
		}, simplequeue.StateFailed, 3, "again: broke", "failed 3 of 3 attempts"},
		"retry in the far past": {func(context.Context, *simplequeue.Job) error {
			return simplequeue.RetryAt(time.Unix(-1<<60, 0), plain)
		}, simplequeue.StateFailed, 3, "broke", "failed 3 of 3 attempts"},
		"cancel wrapped": {func(context.Context, *simplequeue.Job) error {
			return fmt.Errorf("stop: %w", simplequeue.Cancel(errors.New("not needed")))
		}, simplequeue.StateCancelled, 1, "stop: not needed", "not needed"},
		"cancel joined": {func(context.Context, *simplequeue.Job) error {
			return errors.Join(plain, simplequeue.Cancel(nil))
		}, simplequeue.StateCancelled, 1, "broke\ncancelled by its handler", "cancelled by its handler"},
		"critical":      {func(context.Context, *simplequeue.Job) error { return simplequeue.Critical(plain) }, simplequeue.StateCritical, 1, "broke", "critical failure"},
		"unprocessable": {func(context.Context, *simplequeue.Job) error { return simplequeue.Unprocessable(plain) }, simplequeue.StateUnprocessable, 1, "broke", "unprocessable"},
		"complete early": {func(context.Context, *simplequeue.Job) error {
			return fmt.Errorf("deep inside: %w", simplequeue.Complete())
		}, simplequeue.StateCompleted, 1, "", ""},
		"panic":     {func(context.Context, *simplequeue.Job) error { panic("oh") }, simplequeue.StateFailed, 3, "panic: oh", "failed 3 of 3 attempts"},
		"panic nil": {func(context.Context, *simplequeue.Job) error { panic(nil) }, simplequeue.StateFailed, 3, "panic: panic called with nil argument", ""},
		"panic with an error": {
			func(context.Context, *simplequeue.Job) error { panic(simplequeue.Critical(plain)) },
			simplequeue.StateFailed, 3, "panic: broke", "",
		},
		"goexit": {
			func(context.Context, *simplequeue.Job) error { runtime.Goexit(); return nil },
			simplequeue.StateFailed, 3, "handler ended its goroutine (runtime.Goexit)", "",
		},
		"panic in a deferred call": {func(context.Context, *simplequeue.Job) error {
			defer func() { panic("second") }()
			panic("first")
		}, simplequeue.StateFailed, 3, "panic: second", ""},
		"nil pointer as error": {
			func(context.Context, *simplequeue.Job) error { return nilPointer },
			simplequeue.StateFailed, 3, "error of type *simplequeue_test.pointerError, whose Error method panics", "",
		},
		"cancel with a nil pointer": {
			func(context.Context, *simplequeue.Job) error { return simplequeue.Cancel(nilPointer) },
			simplequeue.StateCancelled, 1, "error of type *simplequeue_test.pointerError, whose Error method panics", "",
		},
		"hostile error": {
			func(context.Context, *simplequeue.Job) error { return hostileError{} },
			simplequeue.StateFailed, 1, "no outcome of an error of type simplequeue_test.hostileError", "",
		},
		"error that ends the goroutine": {
			func(context.Context, *simplequeue.Job) error { return exitError{} },
			simplequeue.StateFailed, 1, "no outcome of an error of type simplequeue_test.exitError", "",
		},
		"bytes that PostgreSQL does not take": {func(context.Context, *simplequeue.Job) error {
			return simplequeue.Critical(errors.New("a\x00b\xffc" + strings.Repeat("é", 4000)))
		}, simplequeue.StateCritical, 1, "a\uFFFDb\uFFFDc", ""},
	}

	mux := simplequeue.NewMux("outcomes")
	for kind, tt := range tests {
		mux.HandleFunc(kind, tt.process)
	}
	q := newQueue(t, pgtest.New(t), simplequeue.Options{
		Handlers: []simplequeue.Handler{mux}, Backoff: backoff.Constant(time.Millisecond), GlobalPermits: 10,
	})
	start(t, q)
	for kind, tt := range tests {
		job := simplequeue.NewJob{Queue: "outcomes", Kind: kind, Payload: map[string]any{"kept": kind}}
		if tt.state == simplequeue.StateFailed {
			job.MaxAttempts = tt.runs
		}
		id := insert(t, q, job)
		t.Run(kind, func(t *testing.T) {
			info := awaitState(t, q, id, tt.state)
			if info.Attempt != tt.runs {
				t.Errorf("ran %d times, want %d", info.Attempt, tt.runs)
			}
			if got := info.LastError(); !strings.HasPrefix(got, tt.text) || tt.text == "" && got != "" {
				t.Errorf("last error %q, want %q", got, tt.text)
			}
			if tt.reason != "" && info.Reason != tt.reason {
				t.Errorf("reason %q, want %q", info.Reason, tt.reason)
			}
			if strings.HasPrefix(tt.text, "panic") || kind == "goexit" {
				if stack := info.Errors[len(info.Errors)-1].Stack; !strings.Contains(stack, "outcomes_test.go") {
					t.Errorf("the stack does not lead here: %q", stack)
				}
			}
			var payload map[string]string
			if err := json.Unmarshal(info.Payload, &payload); err != nil || payload["kept"] != kind {
				t.Errorf("payload %s, want the one inserted", info.Payload)
			}
			if info.FinishedAt.IsZero() || info.StartedAt.IsZero() {
				t.Error("started or finished time missing")
			}
		})
	}
	eventually(t, "all permits are free", func() bool { return idle(q, 10) })
}

// idle reports whether nothing runs and every permit is free.
func idle(q *simplequeue.SimpleQueue, permits int) bool {
	s := q.Stats()
	for _, queue := range s.Queues {
		if queue.InFlight != 0 || queue.Running != 0 {
			return false
		}
	}
	return s.Running == 0 && s.Stuck == 0 && s.FreePermits == permits
}

// TestRescheduleKeepsTheAttemptUntilBadJob: each reschedule gives the attempt
// back and counts; at the limit the job is bad.
func TestRescheduleKeepsTheAttemptUntilBadJob(t *testing.T) {
	t.Parallel()
	attempts := make(chan int, 100)
	opts := handler("snooze", func(_ context.Context, job *simplequeue.Job) error {
		attempts <- job.Attempt
		return simplequeue.RescheduleAfter(0)
	})
	opts.MaxReschedules = 10
	q := newQueue(t, pgtest.New(t), opts)
	start(t, q)
	info := awaitState(t, q, insert(t, q, simplequeue.NewJob{Queue: "snooze", MaxAttempts: 2}), simplequeue.StateBadJob)
	if info.Reason != "rescheduled 10 times" || info.ReprocessCount != 10 || info.Attempt != 1 {
		t.Errorf("reason %q, reprocess count %d, attempt %d, want rescheduled 10 times, 10, 1", info.Reason, info.ReprocessCount, info.Attempt)
	}
	if n := len(attempts); n != 10 {
		t.Errorf("ran %d times, want 10", n)
	}
	close(attempts)
	for a := range attempts {
		if a != 1 {
			t.Errorf("a run was attempt %d, want 1: a reschedule uses none", a)
		}
	}
	eventually(t, "the end is counted", func() bool { return q.Stats().DeadLettered == 1 })
	if s := q.Stats(); s.Rescheduled != 9 || s.DeadLettered != 1 || s.Retried != 0 {
		t.Errorf("stats %+v, want 9 rescheduled, 1 dead-lettered", s)
	}
}

// TestRetryAndRescheduleTimesAreTheDatabases: a delay counts from the
// database's clock when the outcome is written, whatever this machine's says.
func TestRetryAndRescheduleTimesAreTheDatabases(t *testing.T) {
	t.Parallel()
	at := time.Date(2199, 3, 4, 5, 6, 7, 890_000, time.UTC)
	mux := simplequeue.NewMux("later")
	mux.HandleFunc("retry after", func(context.Context, *simplequeue.Job) error {
		return simplequeue.RetryAfter(time.Hour, errors.New("x"))
	})
	mux.HandleFunc("retry at", func(context.Context, *simplequeue.Job) error { return simplequeue.RetryAt(at, nil) })
	mux.HandleFunc("retry", func(context.Context, *simplequeue.Job) error { return errors.New("x") })
	mux.HandleFunc("reschedule after", func(context.Context, *simplequeue.Job) error { return simplequeue.RescheduleAfter(time.Hour) })
	mux.HandleFunc("reschedule at", func(context.Context, *simplequeue.Job) error { return simplequeue.RescheduleAt(at) })
	mux.HandleFunc("beyond time", func(context.Context, *simplequeue.Job) error {
		return simplequeue.RescheduleAt(time.Unix(1<<60, 0))
	})
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{Handlers: []simplequeue.Handler{mux}, Backoff: backoff.Constant(time.Hour)})
	start(t, q)
	var before time.Time
	if err := pool.QueryRow(t.Context(), "SELECT clock_timestamp()").Scan(&before); err != nil {
		t.Fatal(err)
	}
	for kind, want := range map[string]struct {
		at      time.Time // zero: in an hour
		reason  string
		attempt int
	}{
		"retry after": {time.Time{}, "retry", 1}, "retry at": {at, "retry", 1}, "retry": {time.Time{}, "retry", 1},
		"reschedule after": {time.Time{}, "rescheduled", 0}, "reschedule at": {at, "rescheduled", 0},
		"beyond time": {time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC), "rescheduled", 0},
	} {
		info := awaitState(t, q, insert(t, q, simplequeue.NewJob{Queue: "later", Kind: kind}), simplequeue.StateWaiting)
		var after time.Time
		if err := pool.QueryRow(t.Context(), "SELECT clock_timestamp()").Scan(&after); err != nil {
			t.Fatal(err)
		}
		if want.at.IsZero() {
			if info.RunAt.Before(before.Add(time.Hour)) || info.RunAt.After(after.Add(time.Hour)) {
				t.Errorf("%s: runs at %v, want an hour after %v to %v", kind, info.RunAt, before, after)
			}
		} else if !info.RunAt.Equal(want.at) {
			t.Errorf("%s: runs at %v, want %v", kind, info.RunAt, want.at)
		}
		if info.Reason != want.reason || info.Attempt != want.attempt {
			t.Errorf("%s: reason %q, attempt %d, want %q, %d", kind, info.Reason, info.Attempt, want.reason, want.attempt)
		}
	}
}

// TestLostPayloadEndsTheJob: a payload that was stored apart and has been
// deleted is not asked for again and again.
func TestLostPayloadEndsTheJob(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, handler("big", func(context.Context, *simplequeue.Job) error { return nil }))
	id := insert(t, q, simplequeue.NewJob{Queue: "big", Raw: make([]byte, 10_000)})
	if _, err := pool.Exec(t.Context(), "DELETE FROM simplequeue.job_payload"); err != nil {
		t.Fatal(err)
	}
	start(t, q)
	if info := awaitState(t, q, id, simplequeue.StateUnprocessable); !strings.Contains(info.LastError(), "payload") {
		t.Errorf("last error %q, want one about the payload", info.LastError())
	}
}
