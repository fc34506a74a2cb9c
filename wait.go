package simplequeue

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"

	"github.com/simplequeue/simplequeue/internal/store"
)

// outcomeKept is for how many seconds the outcome of a job with NewJob.Awaited
// stays at least.
const outcomeKept = 600

// InsertAndWait inserts a job, as [SimpleQueue.Insert] does, and waits for its
// end, as [SimpleQueue.Wait] does, whichever process runs it. [ResultOf] decodes
// what its handler has set as result. It sets job.Awaited. Where a live job holds
// the unique key it waits for that one.
//
// When ctx ends the job goes on: JobInfo.ID says which it is, and it can be waited
// for again, or cancelled. Errors are those of Insert and of Wait, and [ErrSpooled],
// with which JobInfo has the ID only.
func (q *SimpleQueue) InsertAndWait(ctx context.Context, job NewJob) (JobInfo, error) {
	job.Awaited = true
	in, err := q.Insert(ctx, job)
	if err != nil {
		return JobInfo{}, err
	}
	if in.Spooled {
		return JobInfo{Job: Job{ID: in.ID}}, fmt.Errorf("%w: %v", ErrSpooled, in.ID)
	}
	return q.await(ctx, in.ID, waitUntil{end: true, tells: !in.Duplicate})
}

// Wait waits until a job has ended, wherever it runs, or ctx ends. It returns the
// job without its payload. A job that has completed is returned without error,
// another one with a [*NotCompletedError]; a job that is nowhere is [ErrNotFound]:
// it was deleted, or has ended and its retention keeps nothing, or the transaction
// that inserts it has not committed. With any other error, that of ctx for
// example, JobInfo has the ID only, and the job goes on.
//
// A job that was inserted with NewJob.Awaited tells when it ends, and its outcome
// can be waited for during ten minutes at least after that, also where retention
// keeps nothing. Any number of calls in a process, for any jobs, share one
// connection that listens, which closes when nobody has waited for a while. A
// notification that is lost costs seconds at most, not the outcome. For other
// jobs, and with Options.PollOnly, the calls share looks at the database, every
// few milliseconds at first and four times a second later.
func (q *SimpleQueue) Wait(ctx context.Context, id uuid.UUID) (JobInfo, error) {
	return q.await(ctx, id, waitUntil{end: true})
}

// WaitAttempt is Wait for the end of the job's first attempt, whatever comes of
// it: it returns as soon as an attempt has been made, and JobInfo shows what
// became of it. State is [StateWaiting] for one that failed and is to be repeated,
// and JobInfo.LastError says why. A job that is given back without having run is
// waited for further. The error is nil as long as the job lives, and that of Wait
// when it has ended.
func (q *SimpleQueue) WaitAttempt(ctx context.Context, id uuid.UUID) (JobInfo, error) {
	return q.await(ctx, id, waitUntil{})
}

// CancelAndWait is [SimpleQueue.Cancel], and then waits until the job has ended,
// wherever it runs, or ctx ends. It returns the state in which the job ended:
// [StateCancelled], or [StateCompleted] where its handler finished first. With
// ctx's error comes the state the job was last seen in; the request to cancel
// stands.
//
// It waits as [SimpleQueue.Wait] does, on the connection that all calls share.
// Errors are those of Cancel; [ErrNotFound] also where the job has ended and its
// retention keeps nothing of it.
func (q *SimpleQueue) CancelAndWait(ctx context.Context, id uuid.UUID, reason string) (State, error) {
	state, err := q.Cancel(ctx, id, reason)
	if err != nil || state.Terminal() {
		return state, err
	}
	info, err := q.await(ctx, id, waitUntil{end: true})
	switch {
	case info.State != "":
		return info.State, nil // it need not have completed
	case ctx.Err() != nil:
		return state, err
	}
	return "", err
}

// errWaitWithin: the calls of a queue inside a transaction are for one goroutine,
// so nobody can run the job while it is waited for.
var errWaitWithin = errors.New("simplequeue: inside a transaction nobody runs a job while it is waited for: call simplequeuetest.Work first")

// await waits for a job. Inside a transaction it looks once.
func (q *SimpleQueue) await(ctx context.Context, id uuid.UUID, what waitUntil) (JobInfo, error) {
	if q.db.Within == nil {
		return q.waits.await(ctx, id, what)
	}
	found, err := q.waits.look(ctx, [][16]byte{id})
	row := found[id]
	if err == nil && row != nil && !what.over(row) {
		err = errWaitWithin
	}
	if err != nil {
		return JobInfo{Job: Job{ID: id}}, fmt.Errorf("simplequeue: wait for job %v: %w", id, err)
	}
	return infoOfWait(id, row)
}

// waitUntil is what a call waits for.
type waitUntil struct {
	end   bool // the job's, or that of an attempt
	tells bool // the job has just been inserted, as one that tells
}

// over reports whether the wait is.
func (w waitUntil) over(i *store.Info) bool {
	if w.end {
		return State(i.State).Terminal()
	}
	return attempted(i)
}

// attempted reports whether an attempt of the job has ended. A reschedule gives
// its attempt back, and counts; what is given back has not been attempted.
func attempted(i *store.Info) bool {
	switch State(i.State) {
	case StateRunning, StateCancelling:
		return i.Attempt > 1 || i.ReprocessCount > 0
	case StateWaiting, StatePending:
		return i.Attempt > 0 || i.ReprocessCount > 0
	}
	return true
}

// infoOfWait is what a wait returns.
func infoOfWait(id uuid.UUID, row *store.Info) (JobInfo, error) {
	if row == nil {
		return JobInfo{Job: Job{ID: id}}, fmt.Errorf("%w: %v", ErrNotFound, id)
	}
	info := infoOf(row)
	info.Result = bytes.Clone(info.Result) // others may wait for the same job
	if info.State.Terminal() && info.State != StateCompleted {
		return info, &NotCompletedError{Job: info}
	}
	return info, nil
}

// awaitedOf are the jobs of a batch of outcomes that somebody may be waiting for
// and that have been attempted.
func awaitedOf(batch []outcomeOf) (ids []uuid.UUID) {
	for _, o := range batch {
		if o.claim.job.awaited && (o.verdict.state != "" || o.verdict.action == actRetry || o.verdict.action == actReschedule) {
			ids = append(ids, o.claim.job.ID)
		}
	}
	return ids
}

// newWaits returns what waits for a queue's jobs.
func newWaits(q *SimpleQueue) *waits {
	w := &waits{
		jobs: map[uuid.UUID]*waited{}, woken: make(chan struct{}, 1),
		look: func(ctx context.Context, ids [][16]byte) (map[[16]byte]*store.Info, error) {
			return q.db.Outcomes(ctx, lookLimit, ids)
		},
	}
	if !q.opts.PollOnly {
		w.listen = func(ctx context.Context) {
			l := &listener{
				config: q.pool.Config(), channel: endedChannel(q.wakes.channel), receive: w.received, away: w.away,
				log: q.log, health: (&health{}).loop("listener of those who wait", probeEvery),
			}
			l.run(ctx)
		}
	}
	return w
}
