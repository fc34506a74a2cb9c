package simplequeue

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// What a handler returns decides what becomes of its job. nil completes it; any
// error is a failed attempt, retried with backoff until the attempts are used
// up; the constructors below say something else. They are errors, found with
// errors.As, so they may be wrapped.

type action int

const (
	actComplete action = iota
	actFail
	actRetry
	actReschedule
	actCancel
	actCritical
	actUnprocessable
	actPark     // unknown kind: wait for a program that knows it
	actDefer    // a permit said later: neither attempt nor reprocess count
	actGiveBack // back to the front of the queue, as if never claimed
	actBadJob
)

// outcome is the error behind the constructors.
type outcome struct {
	action action
	at     time.Time     // absolute, by the database's clock
	after  time.Duration // relative, when at is zero
	tail   bool          // of a reschedule: lose the place in the order
	err    error
}

func (o *outcome) Error() string {
	if o.err != nil {
		return textOf(o.err)
	}
	switch o.action {
	case actComplete:
		return "complete"
	case actRetry:
		return "retry " + o.when()
	case actReschedule:
		return "reschedule " + o.when()
	case actCancel:
		return "cancelled by its handler"
	case actCritical:
		return "critical failure"
	case actUnprocessable:
		return "unprocessable"
	}
	return "outcome"
}

func (o *outcome) when() string {
	if o.at.IsZero() {
		return "after " + o.after.String()
	}
	return "at " + o.at.Format(time.RFC3339)
}

func (o *outcome) Unwrap() error { return o.err }

// RetryAt fails the attempt and makes the next one at t, by the database's
// clock, instead of after the backoff. err is recorded; it may be nil.
func RetryAt(t time.Time, err error) error { return &outcome{action: actRetry, at: t, err: err} }

// RetryAfter is RetryAt, d from now.
func RetryAfter(d time.Duration, err error) error {
	return &outcome{action: actRetry, after: max(d, 0), err: err}
}

// RescheduleAt puts the job off until t, by the database's clock, without using
// up an attempt. Each reschedule counts; at Options.MaxReschedules the job ends
// as bad_job. From a [Permitter] it does not count.
func RescheduleAt(t time.Time) error { return &outcome{action: actReschedule, at: t} }

// RescheduleAfter is RescheduleAt, d from now.
func RescheduleAfter(d time.Duration) error {
	return &outcome{action: actReschedule, after: max(d, 0)}
}

// RescheduleToTail is RescheduleAfter for a job with an order key, or of a queue
// that is first in, first out: it also gives the job's place up, so that those
// behind it go first. The job lines up anew, behind all that have come since.
func RescheduleToTail(d time.Duration) error {
	return &outcome{action: actReschedule, after: max(d, 0), tail: true}
}

// Cancel ends the job as cancelled. err, which may be nil, is the reason.
func Cancel(err error) error { return &outcome{action: actCancel, err: err} }

// Critical ends the job as critical_failure, without another attempt.
func Critical(err error) error { return &outcome{action: actCritical, err: err} }

// Unprocessable ends the job as unprocessable, without another attempt: its
// payload will not get better.
func Unprocessable(err error) error { return &outcome{action: actUnprocessable, err: err} }

// Complete ends the job as completed, like nil. It is for a [Permitter] that
// finds the work already done, and for code deep inside a handler.
func Complete() error { return &outcome{action: actComplete} }

// panicError is the failure of a handler that panicked or called
// runtime.Goexit.
type panicError struct {
	text  string
	stack string
}

func (e *panicError) Error() string { return e.text }

// policy is what decide needs to know beside the job and the error.
type policy struct {
	backoff        func(job *Job, err error) time.Duration
	maxReschedules int // negative: no limit
}

// verdict is what the completer writes for one job.
type verdict struct {
	action action
	state  State  // of a terminal action
	reason string // of a terminal or waiting action
	text   string // error text to record, "" for none
	stack  string
	at     time.Time
	after  time.Duration
	result string // of a completed job, "" for none
	// otherwise is what holds instead if the transaction in which the handler
	// completed the job was rolled back, nil if there was none
	otherwise *verdict
}

// decide turns what a handler returned into what is to be written. cause is the
// cause of the handler's context at its return, nil if it had not ended;
// deferral is true for the error of a permit.
func decide(job *Job, err, cause error, deferral bool, p policy) verdict {
	if err == nil {
		return verdict{action: actComplete, state: StateCompleted, result: job.result}
	}
	var o *outcome
	explicit := errors.As(err, &o)
	switch {
	case explicit && o.action == actComplete:
		return verdict{action: actComplete, state: StateCompleted, result: job.result}
	case errors.Is(cause, ErrCancelled):
		return verdict{action: actCancel, state: StateCancelled, reason: "cancelled while running", text: textOf(err)}
	case explicit && o.action == actCancel:
		return verdict{action: actCancel, state: StateCancelled, reason: o.Error(), text: textOf(err)}
	case explicit && o.action == actCritical:
		return verdict{action: actCritical, state: StateCritical, reason: "critical failure", text: textOf(err)}
	case explicit && o.action == actUnprocessable:
		return verdict{action: actUnprocessable, state: StateUnprocessable, reason: "unprocessable", text: textOf(err)}
	case explicit && o.action == actPark:
		return verdict{action: actPark, reason: "unknown_kind"}
	case explicit && o.action == actGiveBack:
		return verdict{action: actGiveBack}
	case explicit && o.action == actReschedule && deferral:
		return verdict{action: actDefer, reason: "deferred", at: o.at, after: o.after}
	case explicit && o.action == actReschedule:
		if p.maxReschedules >= 0 && job.ReprocessCount+1 >= p.maxReschedules {
			return verdict{
				action: actBadJob, state: StateBadJob,
				reason: fmt.Sprintf("rescheduled %d times", job.ReprocessCount+1), text: textOf(err),
			}
		}
		if o.tail && job.ordered() {
			return verdict{action: actReschedule, reason: reasonGated, after: o.after}
		}
		return verdict{action: actReschedule, reason: "rescheduled", at: o.at, after: o.after}
	}
	v := verdict{text: textOf(err)}
	var pe *panicError
	if errors.As(err, &pe) {
		v.stack = pe.stack
	} else if errors.Is(cause, ErrShutdown) && !explicit {
		return verdict{action: actGiveBack}
	}
	if errors.Is(cause, ErrTimeout) && errors.Is(err, context.DeadlineExceeded) {
		v.text = ErrTimeout.Error() + ": " + v.text
	}
	if job.Attempt >= job.MaxAttempts {
		v.action, v.state = actFail, StateFailed
		v.reason = fmt.Sprintf("failed %d of %d attempts", job.Attempt, job.MaxAttempts)
		return v
	}
	v.action, v.reason = actRetry, "retry"
	if explicit && o.action == actRetry {
		v.at, v.after = o.at, o.after
		return v
	}
	v.after = p.backoff(job, err)
	return v
}

// textOf is an error's text. The Error method of a nil pointer in an error, a
// common mistake, panics: that must not cost the job its outcome.
func textOf(err error) (text string) {
	defer func() {
		if p := recover(); p != nil {
			text = fmt.Sprintf("error of type %T, whose Error method panics: %v", err, p)
		}
	}()
	if text = err.Error(); text == "" {
		return fmt.Sprintf("error of type %T without a text", err) // an attempt without an entry would look like none
	}
	return text
}
