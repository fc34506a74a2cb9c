package simplequeue

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/simplequeue/simplequeue/internal/store"
)

const (
	cancelBatch  = 500
	cancelRounds = 8
	cancelLimit  = 30 * time.Second
	cancelPause  = 5 * time.Millisecond // after the first round, then twice as long each time
)

// Cancel cancels a job. A waiting or pending job ends at once as cancelled. A
// running one is asked to stop: its context is cancelled with [ErrCancelled],
// and it ends as cancelled when its handler returns, or as completed if that
// finished first; it is never tried again. Cancel returns the state the job is
// in now: [StateCancelled] or [StateCancelling].
//
// Errors: [ErrNotFound], and [ErrFinished] with the state in which the job had
// ended before.
func (q *SimpleQueue) Cancel(ctx context.Context, id uuid.UUID, reason string) (State, error) {
	done, err := q.cancel(ctx, []uuid.UUID{id}, liveStates, reason)
	if err != nil {
		return "", err
	}
	if state, ok := done[id]; ok {
		return state, nil
	}
	info, err := q.Get(ctx, id)
	switch {
	case err != nil:
		return "", err
	case info.State.Terminal():
		return info.State, fmt.Errorf("%w: %v is %s", ErrFinished, id, info.State)
	}
	return "", fmt.Errorf("simplequeue: job %v kept moving, try again", id)
}

// CancelMatching cancels every live job that matches and returns how many ended
// or were asked to stop. One that has left the states asked for by then is left
// alone: where only waiting or pending jobs are asked for, no handler is
// interrupted. Jobs inserted meanwhile may be missed. A filter that selects
// everything is refused, as is one with a limit.
func (q *SimpleQueue) CancelMatching(ctx context.Context, f Filter, reason string) (int, error) {
	if !f.narrow() {
		return 0, errTooWide
	}
	if len(f.States) == 0 {
		f.States = []State{StateWaiting, StatePending, StateRunning}
	}
	if f.States = slices.DeleteFunc(slices.Clone(f.States), State.Terminal); len(f.States) == 0 {
		return 0, f.validate() // of those there are none that live
	}
	total := 0
	err := q.ids(ctx, f, cancelBatch, func(ids []uuid.UUID) error {
		done, err := q.cancel(ctx, ids, f.States, reason)
		total += len(done)
		return err
	})
	return total, err
}

// cancel returns the new states of those ids that were in the live states asked
// for. A job that moved against the flow of the tables, back into the queue, is
// met in a later round; so is one whose outcome was just being written. What is
// still locked after all rounds is in a transaction of its handler, and is asked
// without the lock.
func (q *SimpleQueue) cancel(ctx context.Context, ids []uuid.UUID, states []State, reason string) (map[uuid.UUID]State, error) {
	reason = clean(reason, maxErrorText)
	done := map[uuid.UUID]State{}
	open := ids
	if slices.Contains(states, StateRunning) {
		states = append(slices.Clip(states), StateCancelling) // somebody else may have asked one meanwhile
	}
	within := store.Live{
		Waiting: slices.Contains(states, StateWaiting),
		Pending: slices.Contains(states, StatePending),
		Running: slices.Contains(states, StateCancelling),
	}
	asked, gated := false, false
	for round := range cancelRounds {
		if round > 0 {
			if err := waitFor(ctx, cancelPause<<(round-1)); err != nil {
				return done, err
			}
		}
		c, err := q.db.Cancel(ctx, cancelLimit, rawIDs(open), within, reason)
		if err != nil {
			return done, fmt.Errorf("simplequeue: cancel: %w", err)
		}
		gated = gated || c.Gated
		q.wakes.ended(c.Awaited)
		var rest []uuid.UUID
		for _, id := range open {
			switch {
			case c.Ended[id]:
				done[id] = StateCancelled
			case c.Asked[id]:
				done[id], asked = StateCancelling, true
			default:
				rest = append(rest, id)
			}
		}
		if open, err = q.among(ctx, rest, states); err != nil {
			return done, err
		}
		if len(open) == 0 {
			break
		}
	}
	if len(open) > 0 && within.Running {
		locked, err := q.db.CancelLocked(ctx, cancelLimit, rawIDs(open), reason)
		if err != nil {
			return done, fmt.Errorf("simplequeue: cancel: %w", err)
		}
		for id := range locked {
			done[id], asked = StateCancelling, true
		}
	}
	if asked {
		q.wakes.cancels()
	}
	if gated {
		q.wakes.gates()
	}
	return done, nil
}

func rawIDs(ids []uuid.UUID) [][16]byte {
	raw := make([][16]byte, len(ids))
	for i, id := range ids {
		raw[i] = id
	}
	return raw
}

// among returns those of the ids that are in the states, as one statement sees
// them.
func (q *SimpleQueue) among(ctx context.Context, ids []uuid.UUID, states []State) ([]uuid.UUID, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	list, err := q.List(ctx, Filter{IDs: ids, Limit: len(ids), States: states})
	found := make([]uuid.UUID, len(list))
	for i := range list {
		found[i] = list[i].ID
	}
	return found, err
}
