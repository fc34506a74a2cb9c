package simplequeue

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/simplequeue/simplequeue/internal/store"
)

const (
	drainFirst = 10 * time.Millisecond
	drainMost  = 250 * time.Millisecond
	workerGone = 2*workerEvery + workerEvery/2 // without a sign of life
)

// Pause keeps every process from claiming jobs of a queue until
// [SimpleQueue.Resume], across restarts and for workers that start later. Jobs
// can be inserted meanwhile; those that run go on, and those that a process has
// claimed already still start. The note is made in the database when Pause
// returns; workers learn of it by notification within milliseconds, and within a
// second or PollInterval without. [SimpleQueue.Drain] waits for them. The reason
// is for operators. Pausing a paused queue changes its reason. Errors: an
// [*InvalidFilterError] for the queue's name, and those of the database.
func (q *SimpleQueue) Pause(ctx context.Context, queue, reason string) error {
	if problem := queueNameProblem(queue); problem != "" {
		return &InvalidFilterError{Field: "Queue", Value: shorten(queue), Reason: problem}
	}
	if err := q.db.Pause(ctx, claimLimit, queue, clean(reason, maxErrorText)); err != nil {
		return fmt.Errorf("simplequeue: pause %q: %w", queue, err)
	}
	q.wakes.pauses()
	return nil
}

// Resume ends a pause: every process claims jobs of the queue again, as soon as
// it learns of it. A queue that is not paused is left as it is. Errors are those
// of [SimpleQueue.Pause].
func (q *SimpleQueue) Resume(ctx context.Context, queue string) error {
	if problem := queueNameProblem(queue); problem != "" {
		return &InvalidFilterError{Field: "Queue", Value: shorten(queue), Reason: problem}
	}
	if err := q.db.Resume(ctx, claimLimit, queue); err != nil {
		return fmt.Errorf("simplequeue: resume %q: %w", queue, err)
	}
	q.wakes.pauses()
	return nil
}

// Drain pauses a queue, and returns when every worker that serves it has noted
// the pause and nothing of the queue runs: no job of it begins from then on until
// it is resumed. A worker that has died counts as one that has not noted the
// pause for 75 seconds after its last sign of life, and its jobs run until their
// leases expire. When ctx ends first, the queue stays paused. Errors are those of
// [SimpleQueue.Pause], that of ctx, and one where somebody resumes the queue
// meanwhile.
func (q *SimpleQueue) Drain(ctx context.Context, queue, reason string) error {
	if err := q.Pause(ctx, queue, reason); err != nil {
		return err
	}
	var last store.Draining
	for wait := drainFirst; ; wait = min(2*wait, drainMost) {
		d, err := q.db.Draining(ctx, claimLimit, queue, workerGone)
		switch {
		case err != nil && ctx.Err() != nil:
			return drainEnded(queue, last, ctx.Err())
		case err != nil:
			return fmt.Errorf("simplequeue: drain %q: %w", queue, err)
		case !d.Paused:
			return fmt.Errorf("simplequeue: drain %q: the queue was resumed meanwhile", queue)
		case d.Running == 0 && d.Unaware == 0:
			return nil
		}
		last = d
		if err := waitFor(ctx, jittered(wait)); err != nil {
			return drainEnded(queue, last, err)
		}
	}
}

func drainEnded(queue string, last store.Draining, err error) error {
	return fmt.Errorf("simplequeue: drain %q: at the last look %d jobs ran and %d workers had not noted the pause: %w",
		queue, last.Running, last.Unaware, err)
}

// pauseBook is what the poller knows of pauses. But for look and lost it belongs
// to the poller's goroutine.
type pauseBook struct {
	look   atomic.Bool // read them again now
	lost   atomic.Bool // what was noted has gone with the worker's row
	heeded []string    // nothing is claimed from these queues; sorted
	noted  bool        // so it is noted in the database
}

func (p *poller) lookForPauses() {
	p.pauses.look.Store(true)
	p.wake()
}

// noteAgain tells the poller that the database knows nothing of what it heeds: the
// worker was forgotten in a long silence, or by a failover.
func (p *poller) noteAgain() {
	p.pauses.lost.Store(true)
	p.lookForPauses()
}

// heed stops claiming from the queues that are paused and says so in the
// database; what it has said it takes back before it claims again. A claim whose
// commit is in doubt may still bring jobs, so that is waited for. Where no queue
// is paused, and none was, nothing is written.
func (p *poller) heed(ctx context.Context, paused []string) error {
	b := &p.pauses
	if b.lost.Swap(false) {
		b.noted = false
	}
	if len(paused) == 0 && len(b.heeded) == 0 {
		return nil
	}
	slices.Sort(paused)
	for _, name := range paused {
		if r := p.routes.find(name); r != nil {
			r.paused.Store(true)
		}
		// Known also where the rest has to wait: it is to be taken back one day.
		if i, found := slices.BinarySearch(b.heeded, name); !found {
			b.heeded, b.noted = slices.Insert(b.heeded, i, name), false
		}
	}
	if !b.noted || !slices.Equal(paused, b.heeded) {
		b.noted = false
		if len(p.doubtful) > 0 {
			return nil
		}
		known, err := p.db.HeedPauses(ctx, claimLimit, p.worker, paused)
		if err != nil {
			return fmt.Errorf("note pauses: %w", err)
		}
		b.noted = known
	}
	for _, name := range b.heeded {
		if _, still := slices.BinarySearch(paused, name); still {
			continue
		}
		if r := p.routes.find(name); r != nil {
			r.paused.Store(false)
		}
		p.book.addQueue(name)
	}
	b.heeded = paused
	return nil
}
