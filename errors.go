package simplequeue

import (
	"errors"
	"fmt"
	"strings"
	"unicode"

	"github.com/google/uuid"
)

// Causes of a handler's context, told apart with [context.Cause].
var (
	// ErrLeaseLost: the job belongs to another claim now, or to none. Nothing
	// that this attempt still writes has any effect.
	ErrLeaseLost = errors.New("simplequeue: lease lost")
	// ErrTimeout: the job ran longer than its timeout allows.
	ErrTimeout = errors.New("simplequeue: job timed out")
	// ErrCancelled: an operator or the program cancelled the job. Whoever waits
	// for such a job gets it too, as a [*NotCompletedError].
	ErrCancelled = errors.New("simplequeue: job cancelled")
	// ErrShutdown: Run is stopping and the time to drain is over. The job is
	// given back without using up the attempt.
	ErrShutdown = errors.New("simplequeue: shutting down")
)

var (
	// ErrNotFound is returned when no job has the id, and by ReleaseKey when no dead
	// job keeps the order key closed.
	ErrNotFound = errors.New("simplequeue: job not found")
	// ErrFinished is returned by Cancel and Change when the job has already ended.
	ErrFinished = errors.New("simplequeue: job already finished")
	// ErrStarted is returned by Change when an attempt of the job is running. It can
	// be changed again while it waits for the next one, if there is one.
	ErrStarted = errors.New("simplequeue: job is running")
	// ErrUniqueContention is returned by an insert that met, several times in a
	// row, a unique key whose holder was gone when it was looked up; once is enough
	// for a list with order or fairness keys in a transaction of the caller's. The insert changed nothing and can be
	// repeated; a transaction of the caller's is to be rolled back first, for other
	// jobs of the list may be in it.
	ErrUniqueContention = errors.New("unique key is contended, try again")
	// ErrInsertUnknown is returned when the connection broke while an insert
	// was being committed, or the caller's context or the library's patience
	// ended: the jobs may or may not be there, or come yet. The error is an
	// [*InsertUnknownError], which carries their ids; an insert repeated with
	// these ids inserts none of them twice.
	ErrInsertUnknown = errors.New("simplequeue: outcome of insert unknown")
	// ErrNotCommitted is the error of an attempt whose handler returned nil
	// although the transaction given to [Job.CompleteTx] was rolled back.
	ErrNotCommitted = errors.New("simplequeue: the transaction that completes the job was rolled back")
	// ErrNoResult is returned by ResultOf for a job that has no result.
	ErrNoResult = errors.New("simplequeue: job has no result")
	// ErrQueueFull is returned by an insert into a queue that has as many live
	// jobs as [SimpleQueue.SetQueueLimit] allows, or would have. The insert
	// changed nothing. The error is a [*QueueFullError].
	ErrQueueFull = errors.New("simplequeue: queue full")
	// ErrSpooled is returned by [SimpleQueue.InsertAndWait] for a job that is in
	// [Options].Spool. It is going to be inserted; wait for it then.
	ErrSpooled = errors.New("simplequeue: job waits in the spool")
	// ErrSchema is returned by Run when the database's schema is missing or
	// older than this version of the library needs.
	ErrSchema = errors.New("simplequeue: database schema not ready")
	// ErrRunning is returned by Run when the SimpleQueue has been run before.
	ErrRunning = errors.New("simplequeue: Run was already called")
)

// NotCompletedError is the error of a wait for a job that has ended, but has not
// completed. It is [ErrCancelled] for one that was cancelled.
type NotCompletedError struct {
	Job JobInfo // without its payload
}

func (e *NotCompletedError) Error() string {
	text := fmt.Sprintf("simplequeue: job %v has ended as %s", e.Job.ID, e.Job.State)
	if e.Job.Reason != "" {
		text += " (" + e.Job.Reason + ")"
	}
	if last := e.Job.LastError(); last != "" {
		text += ": " + last
	}
	return text
}

// Is makes errors.Is(err, ErrCancelled) true for a job that was cancelled.
func (e *NotCompletedError) Is(target error) bool {
	return target == ErrCancelled && e.Job.State == StateCancelled
}

// StopError is what [SimpleQueue.Run] returns when a stop has left something
// over. No job is lost by that: what handlers return that still run is dropped,
// and a job whose outcome was not written runs again once its lease is over,
// unless a transaction that completes it commits before.
type StopError struct {
	GivenBack int // handlers that did not return in time; their jobs were given back
	GivenUp   int // handlers that still run after their jobs were given up as stuck, or their leases lost
	Unsettled int // jobs whose outcomes were not written
}

func (e *StopError) Error() string {
	var left []string
	if e.GivenBack > 0 {
		left = append(left, fmt.Sprintf("%d handlers that still run, whose jobs were given back", e.GivenBack))
	}
	if e.GivenUp > 0 {
		left = append(left, fmt.Sprintf("%d handlers that still run, which had been given up as stuck or had lost their leases", e.GivenUp))
	}
	if e.Unsettled > 0 {
		left = append(left, fmt.Sprintf("%d jobs that are not settled, and run again when their leases are over", e.Unsettled))
	}
	return "simplequeue: the stop has left " + strings.Join(left, "; ")
}

// InvalidJobError tells which field of a job cannot be stored, and why. An
// insert that returns it has changed nothing.
type InvalidJobError struct {
	Index  int    // position in the list given to InsertMany, 0 for a single insert
	Field  string // name of the field of NewJob
	Value  string // the value, shortened
	Reason string // what is wrong, and the way out
	Err    error  // the encoder's error, if there is one
}

func (e *InvalidJobError) Error() string {
	text := fmt.Sprintf("simplequeue: job %d: %s %s", e.Index, e.Field, e.Reason)
	if e.Value != "" {
		text = fmt.Sprintf("simplequeue: job %d: %s %q %s", e.Index, e.Field, e.Value, e.Reason)
	}
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text
}

func (e *InvalidJobError) Unwrap() error { return e.Err }

// InvalidValueError tells why something that a running job wants to store, its
// result for example, cannot be stored. Nothing has changed.
type InvalidValueError struct {
	Name   string // what it is: "result"
	Reason string // what is wrong, and the way out
	Err    error  // the encoder's error, if there is one
}

func (e *InvalidValueError) Error() string {
	text := fmt.Sprintf("simplequeue: %s %s", e.Name, e.Reason)
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text
}

func (e *InvalidValueError) Unwrap() error { return e.Err }

// InvalidOptionError tells which option New refuses, and why; or which argument
// one of the methods does that set something about a queue: SetQueuePermits,
// SetQueueLimit, SetFairWeight.
type InvalidOptionError struct {
	Option string // name of the field of Options, or of the argument, which begins with a small letter
	Value  any    // as it was given, a default filled in
	Reason string // what is wrong, and the way out
}

func (e *InvalidOptionError) Error() string {
	name := e.Option
	if name == "" || !unicode.IsLower(rune(name[0])) {
		name = "Options." + name
	}
	return fmt.Sprintf("simplequeue: %s = %v: %s", name, e.Value, e.Reason)
}

// InvalidFilterError tells which field of a filter, or which cursor, makes no
// sense, and why. Pause, Resume and Drain return it for the name of the queue.
type InvalidFilterError struct {
	Field  string // name of the field of Filter, or "cursor"
	Value  string // shortened
	Reason string // what is wrong, and the way out
}

func (e *InvalidFilterError) Error() string {
	if e.Value == "" {
		return fmt.Sprintf("simplequeue: Filter.%s %s", e.Field, e.Reason)
	}
	return fmt.Sprintf("simplequeue: Filter.%s %q %s", e.Field, e.Value, e.Reason)
}

// errTooWide keeps a slip from changing all jobs there are.
var errTooWide = &InvalidFilterError{
	Field: "Queue", Reason: "and the others are empty, which matches every job: name ids, a queue, a kind, a unique key, a fingerprint, an order or fairness key, or metadata",
}

// InsertUnknownError is the error behind [ErrInsertUnknown].
type InsertUnknownError struct {
	IDs []uuid.UUID // the ids of the jobs, in the order of the insert
	Err error       // what broke
}

func (e *InsertUnknownError) Error() string {
	return fmt.Sprintf("%v (%d jobs, first %v): %v", ErrInsertUnknown, len(e.IDs), e.IDs[0], e.Err)
}

// Is makes errors.Is(err, ErrInsertUnknown) true.
func (e *InsertUnknownError) Is(target error) bool { return target == ErrInsertUnknown }

func (e *InsertUnknownError) Unwrap() error { return e.Err }

// QueueFullError is the error behind [ErrQueueFull].
type QueueFullError struct {
	Queue string
	Limit int
}

func (e *QueueFullError) Error() string {
	return fmt.Sprintf("simplequeue: queue %q is full: its limit is %d live jobs", e.Queue, e.Limit)
}

// Is makes errors.Is(err, ErrQueueFull) true.
func (e *QueueFullError) Is(target error) bool { return target == ErrQueueFull }
