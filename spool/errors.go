package spool

import (
	"context"
	"errors"
	"fmt"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/store"
)

var (
	// ErrFull is returned by an insert that the database cannot take now and for
	// which there is no room in the spool: nothing was stored. The error is a
	// [*FullError].
	ErrFull = errors.New("spool: full")
	// ErrHold is returned by an insert with a Hold that the database cannot take
	// now, or that would overtake what waits in the file: nothing was stored. It
	// does not go to the file, for CommitHeld would not find it there. The error
	// wraps why the database did not take the jobs.
	ErrHold = errors.New("spool: a job with Hold is not kept in the file: insert it when the database is back")
	// ErrInUse is returned by Open while another process, or another Spool of
	// this one, has the file open.
	ErrInUse = errors.New("spool: file is in use")
	// ErrClosed is returned after Close.
	ErrClosed = errors.New("spool: closed")
	// ErrRunning is returned by Run while another call of it is at work.
	ErrRunning = errors.New("spool: Run is at work already")
	// ErrNoEntry is returned by Retry and Discard for a number that is not set
	// aside.
	ErrNoEntry = errors.New("spool: no such entry is set aside")
)

// FullError is the error behind [ErrFull]. What is set aside counts, too.
type FullError struct {
	Jobs, MaxJobs   int   // in the file
	Bytes, MaxBytes int64 // in the file
	Err             error // why the database did not take the jobs; nil where it was not asked
}

func (e *FullError) Error() string {
	text := fmt.Sprintf("spool: full: it holds %d of at most %d jobs and %d of at most %d bytes (Options.MaxJobs, MaxBytes)",
		e.Jobs, e.MaxJobs, e.Bytes, e.MaxBytes)
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text
}

// Is makes errors.Is(err, ErrFull) true.
func (e *FullError) Is(target error) bool { return target == ErrFull }

func (e *FullError) Unwrap() error { return e.Err }

// CorruptError tells what is wrong with a spool file as a whole. Nothing in it
// has been changed: [Repair] saves what can be read.
type CorruptError struct {
	Path    string
	Problem string
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("spool: file %s is damaged: %s: spool.Repair saves what can be read of it", e.Path, e.Problem)
}

// InvalidOptionError tells which option Open refuses, and why.
type InvalidOptionError struct {
	Option string
	Value  any
	Reason string
}

func (e *InvalidOptionError) Error() string {
	return fmt.Sprintf("spool: Options.%s = %v: %s", e.Option, e.Value, e.Reason)
}

// away reports whether an insert failed because the database cannot be reached,
// or takes no writes, so that the jobs are to be kept for later. What the library
// or the server says about the jobs themselves goes to the caller, and so does
// the end of a caller's context that was cancelled.
func away(ctx context.Context, err error) bool {
	var invalid *simplequeue.InvalidJobError
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return false
	case errors.As(err, &invalid), errors.Is(err, simplequeue.ErrQueueFull), errors.Is(err, simplequeue.ErrUniqueContention):
		return false
	case errors.Is(err, simplequeue.ErrInsertUnknown), !store.Answered(err):
		return true
	}
	code := store.Code(err)
	return store.Transient(err) && code[:2] != "40" && code != "42501"
}

// refused reports whether the database, or the library, will never take the jobs
// as they are. Whatever else goes wrong is tried again: a schema that is not
// there yet, a role without its grants, a row of a transaction in doubt that is
// about to be known.
func refused(err error) bool {
	var invalid *simplequeue.InvalidJobError
	if errors.As(err, &invalid) {
		return true
	}
	return store.Answered(err) && !store.Transient(err) && !store.SchemaMissing(err) && store.Code(err) != "23505"
}

// tooSlow reports whether a smaller transaction may be in time.
func tooSlow(err error) bool {
	return store.TookTooLong(err) || errors.Is(err, context.DeadlineExceeded)
}
