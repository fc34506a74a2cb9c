package simplequeue

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/simplequeue/simplequeue/internal/store"
)

// Lease is a job claimed by hand with [SimpleQueue.Claim], under the same fence
// as those that handlers run. It is for one goroutine at a time.
type Lease struct {
	// Job is what was claimed. No handler runs it, so [Step], and Checkpoint and
	// CompleteTx of the Job with their twins, return [ErrLeaseLost]: end it with
	// Settle.
	Job *Job

	queue *SimpleQueue
	claim *claim
	ended bool
}

const (
	minLease = 100 * time.Millisecond
	maxLease = 24 * time.Hour
)

// Claim claims up to n runnable jobs of a queue, in its order, without a worker
// and without a handler: whoever calls runs them and settles each. At most 1,000
// are claimed at once. None is no error; there is no wait for jobs, and of a
// paused queue there are none. Jobs that crashed their worker come one at a time.
//
// The jobs are the caller's for the time of the lease, 100 ms to 24 h, and longer
// when it is extended. A job whose lease has ended is reaped like that of a worker
// that died, by whatever worker or [reaper.Reaper] runs on the schema: the attempt
// is used, and it counts as a crash.
//
// After an error of the connection jobs may have been claimed all the same; they
// come back when their leases end.
func (q *SimpleQueue) Claim(ctx context.Context, queue string, n int, lease time.Duration) ([]*Lease, error) {
	switch problem := queueNameProblem(queue); {
	case problem != "":
		return nil, fmt.Errorf("simplequeue: claim: queue %q %s", shorten(queue), problem)
	case n < 1:
		return nil, fmt.Errorf("simplequeue: claim: n = %d: must be at least 1", n)
	case lease < minLease || lease > maxLease:
		return nil, fmt.Errorf("simplequeue: claim: lease = %v: must be %v to %v", lease, minLease, maxLease)
	}
	paused, err := q.db.Paused(ctx, claimLimit, queue)
	if err != nil {
		return nil, fmt.Errorf("simplequeue: claim: %w", err)
	}
	if paused {
		return nil, nil
	}
	r := q.claimAll([]string{queue}, min(n, maxClaim), lease)
	asked := time.Now()
	rows, err := q.db.Claim(ctx, claimLimit, r)
	if err != nil {
		return nil, fmt.Errorf("simplequeue: claim: %w", err)
	}
	leases, err := q.leases(ctx, rows, r.Nonce, asked)
	if len(leases) == 0 {
		return nil, err
	}
	// A Drain that did not see these claims has paused the queue before it looked.
	if paused, err = q.db.Paused(ctx, claimLimit, queue); paused || err != nil {
		if err != nil {
			err = fmt.Errorf("simplequeue: claim: %w", err)
		}
		return nil, giveBack(ctx, leases, err)
	}
	return leases, nil
}

// giveBack gives claimed jobs back that the caller does not get, because of err
// or without an error.
func giveBack(ctx context.Context, leases []*Lease, err error) error {
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), settleLimit)
	defer stop()
	for _, l := range leases {
		err = errors.Join(err, l.GiveBack(ctx))
	}
	return err
}

// claimAll asks for n jobs of queues, one after the other, each in its order:
// first one that crashed its worker, then the others.
func (q *SimpleQueue) claimAll(queues []string, n int, lease time.Duration) store.ClaimRequest {
	r := store.ClaimRequest{
		Worker: q.hand, Nonce: int64(rand.Uint64()), LeaseMS: int(lease.Milliseconds()), Limit: n, Chunk: store.AllChunks,
	}
	for _, queue := range queues {
		at := int32(len(r.Queue))
		r.First, r.Last = append(r.First, at+1, at+2), append(r.Last, at+1, at+12)
		r.Budget = append(r.Budget, 1, int32(n))
		for lane := int16(store.SuspectLane); lane <= 9; lane++ {
			r.Queue, r.Lane, r.After = append(r.Queue, queue), append(r.Lane, lane), append(r.After, 0)
		}
	}
	return r
}

// leases makes leases of claimed rows. Without their payloads they are of no
// use, and are given back.
func (q *SimpleQueue) leases(ctx context.Context, rows []store.Claimed, nonce int64, asked time.Time) ([]*Lease, error) {
	slices.SortFunc(rows, byLane)
	list := make([]*Lease, len(rows))
	var apart [][16]byte
	for i := range rows {
		c := newClaim(&rows[i], nonce, asked)
		c.route = q.routes.byHand(c.job.Queue)
		if list[i] = (&Lease{Job: c.job, queue: q, claim: c}); c.apart() {
			apart = append(apart, rows[i].ID)
		}
	}
	if len(apart) == 0 {
		return list, nil
	}
	found, err := q.db.Payloads(ctx, claimLimit, apart)
	if err != nil {
		return nil, giveBack(ctx, list, fmt.Errorf("simplequeue: fetch payloads: %w", err))
	}
	for _, l := range list {
		if p, ok := found[l.Job.ID]; ok {
			l.claim.fetched(p)
			l.Job = l.claim.full()
		}
	}
	return list, nil
}

// byHand is what a queue's settings say about a job that no handler runs here.
func (r *routes) byHand(queue string) *queueRoute {
	o := r.opts.Queues[queue]
	policy := r.opts.Backoff
	if o.Backoff != nil {
		policy = o.Backoff
	}
	return &queueRoute{name: queue, retention: o.Retention.or(r.opts.Retention), backoff: delayBy(policy)}
}

// Extend renews the lease: it ends its whole length from now. Errors:
// [ErrLeaseLost]; and [ErrCancelled] where the job is to be cancelled, for which
// the lease is renewed too: end the work and settle, whatever it is settled with
// then ends it as cancelled, or as completed.
func (l *Lease) Extend(ctx context.Context) error {
	if l.ended {
		return ErrLeaseLost
	}
	l.claim.beaten.Store(true)
	alive, err := l.queue.db.Beat(ctx, claimLimit, []int64{l.claim.id}, []int64{l.claim.nonce})
	if err != nil {
		return fmt.Errorf("simplequeue: extend the lease: %w", err)
	}
	if !alive[l.claim.id] {
		return ErrLeaseLost
	}
	requests, err := l.queue.db.CancelRequests(ctx, claimLimit)
	if err != nil {
		return fmt.Errorf("simplequeue: look for cancels: %w", err)
	}
	for _, r := range requests {
		if r.ClaimID == l.claim.id && r.Nonce == l.claim.nonce {
			return cancelledBecause(r.Reason)
		}
	}
	return nil
}

// Settle ends the lease with what a handler would return: nil completes the job,
// an error is a failed attempt, [RetryAfter], [RescheduleAfter], [Cancel],
// [Critical] and the other constructors say what they say there. [ErrLeaseLost]
// is returned when the lease had been lost, or the job settled, before: nothing
// has changed then. After another error the outcome may have been written or not;
// called again, Settle writes it, or returns ErrLeaseLost if there is nothing
// left to write.
func (l *Lease) Settle(ctx context.Context, err error) error {
	v := decide(l.Job, err, nil, false, policy{backoff: l.claim.route.backoff, maxReschedules: l.queue.opts.MaxReschedules})
	v.text, v.reason = clean(v.text, maxErrorText), clean(v.reason, maxErrorText)
	return l.settle(ctx, v)
}

// GiveBack ends the lease as if the job had never been claimed: it is pending
// again, before the others, with the attempt given back. Errors are those of
// Settle.
func (l *Lease) GiveBack(ctx context.Context) error {
	return l.settle(ctx, verdict{action: actGiveBack})
}

func (l *Lease) settle(ctx context.Context, v verdict) error {
	if l.ended {
		return ErrLeaseLost
	}
	batch := []outcomeOf{{claim: l.claim, verdict: v}}
	moved, err := l.write(ctx, batch, l.queue.opts.finishAside)
	if store.NoPartition(err) {
		moved, err = l.write(ctx, batch, true) // the janitor makes the partition
	}
	if err != nil {
		return fmt.Errorf("simplequeue: settle: %w", err)
	}
	if l.ended = true; !moved {
		return ErrLeaseLost
	}
	l.queue.wakes.ended(awaitedOf(batch))
	lanes, due, waits := wakesFor(batch)
	l.queue.wakes.jobs(lanes, 1)
	if len(l.claim.job.gates) > 0 {
		l.queue.wakes.gates()
	}
	if e := l.queue.engine.Load(); e != nil && waits {
		e.promoter.hint(due)
	}
	return nil
}

func (l *Lease) write(ctx context.Context, batch []outcomeOf, aside bool) (moved bool, err error) {
	steps := settleSteps(batch, aside)
	for i := range steps {
		if steps[i].Statement != store.LockClaims {
			steps[i].Scan = func(pgx.Rows) error { moved = true; return nil }
		}
	}
	err = l.queue.db.Tx(ctx, settleLimit, steps...)
	return moved && err == nil, err
}
