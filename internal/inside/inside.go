// Package inside is how package simplequeuetest gets at what the root package
// has for it and nobody else. The root package fills the functions in; a queue
// is a *simplequeue.SimpleQueue, and so on by their names.
package inside

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// Attempt is one attempt of a job.
type Attempt struct {
	JobInfo any
	Err     error // what the handler, or its permit, returned
	Exited  bool  // the handler ended its goroutine
}

var (
	// Within returns a queue like the given one whose every call runs inside tx.
	Within func(queue any, tx pgx.Tx) any
	// Worker returns a function that runs the next job of the queues named, or
	// of all that are served, and returns nil when there is none, and one that
	// ends the worker.
	Worker func(ctx context.Context, queue any, queues []string) (next func() (*Attempt, error), stop func(), err error)
	// Process runs a newJob, changed as the functions of a *simplequeue.Job say,
	// by a handler, without a database.
	Process func(ctx context.Context, handler, newJob, as any) (*Attempt, error)
	// Advance brings forward by d whatever waits for a time.
	Advance func(ctx context.Context, queue any, d time.Duration) error
	// RunAt is when a jobInfo is to run, also where that is not all it waits for.
	RunAt func(ctx context.Context, queue, job any) (time.Time, error)
)
