package simplequeue

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// nilError is an error whose Error method does not bear a nil pointer.
type nilError struct{ text string }

func (e *nilError) Error() string { return e.text }

// TestDecide is the table of outcomes: what a handler returned, why its context
// had ended, and what is written.
func TestDecide(t *testing.T) {
	t.Parallel()
	const fixed = 7 * time.Second
	p := policy{backoff: func(*Job, error) time.Duration { return fixed }, maxReschedules: 5}
	at := time.Date(2031, 2, 3, 4, 5, 6, 0, time.UTC)
	plain := errors.New("broke")
	panicked := &panicError{text: "panic: oh", stack: "stack"}
	first := Job{Attempt: 1, MaxAttempts: 3}
	last := Job{Attempt: 3, MaxAttempts: 3}
	over := Job{Attempt: 4, MaxAttempts: 3} // max_attempts was lowered
	looping := Job{Attempt: 1, MaxAttempts: 3, ReprocessCount: 4}
	park := &outcome{action: actPark}

	retry := func(text string, after time.Duration) verdict {
		return verdict{action: actRetry, reason: "retry", text: text, after: after}
	}
	failed := func(text string) verdict {
		return verdict{action: actFail, state: StateFailed, reason: "failed 3 of 3 attempts", text: text}
	}
	cancelled := func(reason, text string) verdict {
		return verdict{action: actCancel, state: StateCancelled, reason: reason, text: text}
	}
	complete := verdict{action: actComplete, state: StateCompleted}
	giveBack := verdict{action: actGiveBack}

	for _, tt := range []struct {
		name     string
		job      Job
		err      error
		cause    error
		deferral bool
		want     verdict
	}{
		{name: "nil completes", job: first, want: complete},
		{name: "nil completes although timed out", job: first, cause: ErrTimeout, want: complete},
		{name: "nil completes although cancelled", job: first, cause: ErrCancelled, want: complete},
		{name: "nil completes although shutting down", job: first, cause: ErrShutdown, want: complete},
		{name: "error retries", job: first, err: plain, want: retry("broke", fixed)},
		{name: "error on the last attempt fails", job: last, err: plain, want: failed("broke")},
		{
			name: "error beyond the last attempt fails", job: over, err: plain,
			want: verdict{action: actFail, state: StateFailed, reason: "failed 4 of 3 attempts", text: "broke"},
		},
		{name: "RetryAfter", job: first, err: RetryAfter(time.Minute, plain), want: retry("broke", time.Minute)},
		{name: "RetryAfter of the past is now", job: first, err: RetryAfter(-time.Minute, plain), want: retry("broke", 0)},
		{name: "RetryAfter wrapped", job: first, err: fmt.Errorf("w: %w", RetryAfter(time.Minute, plain)), want: retry("w: broke", time.Minute)},
		{name: "RetryAfter of nil", job: first, err: RetryAfter(time.Minute, nil), want: retry("retry after 1m0s", time.Minute)},
		{
			name: "RetryAt", job: first, err: RetryAt(at, plain),
			want: verdict{action: actRetry, reason: "retry", text: "broke", at: at},
		},
		{name: "RetryAfter on the last attempt fails", job: last, err: RetryAfter(0, plain), want: failed("broke")},
		{
			name: "RescheduleAfter", job: first, err: RescheduleAfter(time.Minute),
			want: verdict{action: actReschedule, reason: "rescheduled", after: time.Minute},
		},
		{
			name: "RescheduleAfter of the past is now", job: first, err: RescheduleAfter(-time.Minute),
			want: verdict{action: actReschedule, reason: "rescheduled"},
		},
		{
			name: "RescheduleAt on the last attempt still reschedules", job: last, err: RescheduleAt(at),
			want: verdict{action: actReschedule, reason: "rescheduled", at: at},
		},
		{
			name: "reschedule too often", job: looping, err: fmt.Errorf("w: %w", RescheduleAfter(0)),
			want: verdict{action: actBadJob, state: StateBadJob, reason: "rescheduled 5 times", text: "w: reschedule after 0s"},
		},
		{
			name: "deferral by a permit does not count", job: looping, err: RescheduleAfter(time.Second), deferral: true,
			want: verdict{action: actDefer, reason: "deferred", after: time.Second},
		},
		{name: "Cancel", job: first, err: Cancel(plain), want: cancelled("broke", "broke")},
		{name: "Cancel of nil", job: first, err: Cancel(nil), want: cancelled("cancelled by its handler", "cancelled by its handler")},
		{name: "Cancel joined", job: first, err: errors.Join(plain, Cancel(errors.New("enough"))), want: cancelled("enough", "broke\nenough")},
		{
			name: "Critical", job: first, err: fmt.Errorf("w: %w", Critical(plain)),
			want: verdict{action: actCritical, state: StateCritical, reason: "critical failure", text: "w: broke"},
		},
		{
			name: "Unprocessable", job: last, err: Unprocessable(nil),
			want: verdict{action: actUnprocessable, state: StateUnprocessable, reason: "unprocessable", text: "unprocessable"},
		},
		{name: "Complete", job: first, err: Complete(), want: complete},
		{name: "Complete wrapped", job: last, err: fmt.Errorf("already done: %w", Complete()), want: complete},
		{name: "the outermost outcome counts", job: first, err: Cancel(Critical(plain)), want: cancelled("broke", "broke")},
		{name: "unknown kind", job: last, err: park, want: verdict{action: actPark, reason: "unknown_kind"}},
		{
			name: "panic", job: first, err: panicked,
			want: verdict{action: actRetry, reason: "retry", text: "panic: oh", stack: "stack", after: fixed},
		},
		{
			name: "panic while shutting down is a failed attempt", job: first, err: panicked, cause: ErrShutdown,
			want: verdict{action: actRetry, reason: "retry", text: "panic: oh", stack: "stack", after: fixed},
		},
		{name: "cancelled from outside", job: first, err: context.Canceled, cause: ErrCancelled, want: cancelled("cancelled while running", "context canceled")},
		{name: "cancelled from outside beats Critical", job: first, err: Critical(plain), cause: ErrCancelled, want: cancelled("cancelled while running", "broke")},
		{name: "Complete beats cancelled from outside", job: first, err: Complete(), cause: ErrCancelled, want: complete},
		{
			name: "timeout says so", job: first, err: context.DeadlineExceeded, cause: ErrTimeout,
			want: retry("simplequeue: job timed out: context deadline exceeded", fixed),
		},
		{name: "own deadline is no timeout", job: first, err: context.DeadlineExceeded, want: retry("context deadline exceeded", fixed)},
		{name: "interrupted by a stop", job: last, err: context.Canceled, cause: ErrShutdown, want: giveBack},
		{name: "a stop does not override an outcome", job: first, err: Critical(plain), cause: ErrShutdown, want: verdict{
			action: actCritical, state: StateCritical, reason: "critical failure", text: "broke",
		}},
		{name: "permit not granted in time", job: last, err: errGiveBack, deferral: true, want: giveBack},
		{name: "permit fails", job: first, err: plain, deferral: true, want: retry("broke", fixed)},
	} {
		if got := decide(&tt.job, tt.err, tt.cause, tt.deferral, p); got != tt.want {
			t.Errorf("%s:\n got %+v\nwant %+v", tt.name, got, tt.want)
		}
	}
}

// TestDecideWithoutRescheduleLimit: a negative MaxReschedules means no limit.
func TestDecideWithoutRescheduleLimit(t *testing.T) {
	t.Parallel()
	job := &Job{Attempt: 1, MaxAttempts: 1, ReprocessCount: 1 << 30}
	if got := decide(job, RescheduleAfter(0), nil, false, policy{maxReschedules: -1}); got.action != actReschedule {
		t.Errorf("got %+v, want a reschedule", got)
	}
}

// TestDecideKeepsOutcomeOfBadErrors: an Error method that panics does not change
// what the error says about the job.
func TestDecideKeepsOutcomeOfBadErrors(t *testing.T) {
	t.Parallel()
	var bad *nilError
	p := policy{backoff: func(*Job, error) time.Duration { return 0 }, maxReschedules: 5}
	for _, tt := range []struct {
		err  error
		want action
	}{{bad, actRetry}, {Cancel(bad), actCancel}, {Critical(bad), actCritical}, {Unprocessable(bad), actUnprocessable}, {RetryAfter(1, bad), actRetry}} {
		got := decide(&Job{Attempt: 1, MaxAttempts: 3}, tt.err, nil, false, p)
		if got.action != tt.want || !strings.Contains(got.text, "*simplequeue.nilError, whose Error method panics") {
			t.Errorf("%T: action %d, text %q, want action %d and a text that names the type", tt.err, got.action, got.text, tt.want)
		}
	}
}
