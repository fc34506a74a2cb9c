package simplequeue

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"

	"github.com/simplequeue/simplequeue/internal/store"
)

// Change is what is to be different about a job that is waiting or pending, also
// between two attempts. Fields that are nil or zero leave it as it is; one at
// least has to be set.
type Change struct {
	// Priority is 0 to 9.
	Priority *int
	// RunAt is the earliest time to run, by the database's clock; a time in the
	// past means now. At most one of RunAt and Delay may be set.
	RunAt time.Time
	// Delay is how long to wait from now, by the database's clock: up to 100 years.
	Delay time.Duration
	// Payload replaces the JSON payload. json.RawMessage("null") is JSON's null.
	// Options.MaxPayloadBytes bounds what Payload and Raw give here together.
	Payload any
	// Raw replaces the raw payload; an empty slice that is not nil removes it.
	Raw []byte
}

const (
	changeBatch  = 500
	changeRounds = 5
	changeLimit  = 30 * time.Second
)

// Change changes a waiting or pending job. When it returns nil, every run of the
// job that begins from then on sees the change, and none that had begun before
// exists. A job that keeps its priority keeps its place in the queue, except
// where a new run time has it wait.
//
// A job that waits after a failed attempt can be changed too: a RunAt in the past
// makes its next attempt now. So can one whose kind is unknown, which ignores a run
// time. A job that waits at a gate or is held stays there, and a new run time
// counts from when it is let in or committed. A job that is the first of its order
// key stays the first, and keeps the others waiting until its new run time.
//
// Errors: [ErrStarted] where the job is running, [ErrFinished] where it has
// ended, [ErrNotFound]; [*InvalidJobError] for what no job may be. A change that
// sets nothing is an error too, and so is, rarely, a job that kept moving.
func (q *SimpleQueue) Change(ctx context.Context, id uuid.UUID, c Change) error {
	sc, err := q.changeOf(&c)
	if err != nil {
		return err
	}
	done, err := q.change(ctx, []uuid.UUID{id}, sc)
	if err != nil || done == 1 {
		return err
	}
	info, err := q.Get(ctx, id)
	switch {
	case err != nil:
		return err
	case info.State.Terminal():
		return fmt.Errorf("%w: %v is %s", ErrFinished, id, info.State)
	case info.State == StateRunning || info.State == StateCancelling:
		return fmt.Errorf("%w: %v is %s", ErrStarted, id, info.State)
	}
	return fmt.Errorf("simplequeue: job %v kept moving, try again", id)
}

// ChangeMatching changes every waiting or pending job that matches and returns
// how many. Jobs that start meanwhile are left alone, jobs inserted meanwhile may
// be missed. It goes in batches of a transaction each and stops at the first
// error. A filter that selects everything is refused, as is one with a limit.
func (q *SimpleQueue) ChangeMatching(ctx context.Context, f Filter, c Change) (total int, err error) {
	sc, err := q.changeOf(&c)
	if err != nil {
		return 0, err
	}
	if !f.narrow() {
		return 0, errTooWide
	}
	if len(f.States) == 0 {
		f.States = []State{StateWaiting, StatePending}
	}
	for _, s := range f.States {
		if s != StateWaiting && s != StatePending {
			return 0, &InvalidFilterError{Field: "States", Value: string(s), Reason: "is of jobs that cannot be changed: only waiting and pending ones can"}
		}
	}
	err = q.ids(ctx, f, changeBatch, func(ids []uuid.UUID) error {
		n, err := q.change(ctx, ids, sc)
		total += n
		return err
	})
	return total, err
}

// changeOf checks and encodes a change.
func (q *SimpleQueue) changeOf(c *Change) (store.Change, error) {
	invalid := func(field, value, reason string) error {
		return &InvalidJobError{Field: field, Value: shorten(value), Reason: reason}
	}
	var sc store.Change
	if c.Priority != nil {
		if problem := priorityProblem(*c.Priority); problem != "" {
			return sc, invalid("Priority", strconv.Itoa(*c.Priority), problem)
		}
		p := int16(*c.Priority)
		sc.Priority = &p
	}
	if field, value, problem := timeProblem(c.RunAt, c.Delay); problem != "" {
		return sc, invalid(field, value, problem)
	}
	if c.Priority == nil && c.RunAt.IsZero() && c.Delay == 0 && c.Payload == nil && c.Raw == nil {
		return sc, errors.New("simplequeue: the change is empty: set a field")
	}
	sc.RunAt, sc.AfterUS = nonZero(c.RunAt), positive(c.Delay)
	r := ready{job: &NewJob{Payload: c.Payload, Raw: c.Raw}}
	if err := r.encodePayload(q.opts.MaxPayloadBytes, 0); err != nil {
		return sc, err
	}
	sc.NewPayload, sc.Payload, sc.NewRaw = r.payload != nil, r.payload, c.Raw != nil
	if len(c.Raw) > 0 {
		sc.Raw = c.Raw
	}
	return sc, nil
}

// change returns how many of the jobs it has changed. One that moved against the
// flow of the tables meanwhile is met in a later round.
func (q *SimpleQueue) change(ctx context.Context, ids []uuid.UUID, c store.Change) (total int, err error) {
	for range changeRounds {
		done, err := q.db.Change(ctx, changeLimit, rawIDs(ids), c)
		if err != nil {
			return total, fmt.Errorf("simplequeue: change: %w", err)
		}
		total += len(done.IDs)
		q.wakes.jobs(slices.Collect(maps.Keys(done.Lanes)), len(done.IDs))
		if e := q.engine.Load(); e != nil && done.Waits {
			e.promoter.hint(0)
		}
		var rest []uuid.UUID
		for _, id := range ids {
			if !done.IDs[id] {
				rest = append(rest, id)
			}
		}
		if len(rest) == 0 {
			return total, nil
		}
		list, err := q.List(ctx, Filter{IDs: rest, Limit: len(rest), States: []State{StateWaiting, StatePending}})
		if err != nil || len(list) == 0 {
			return total, err
		}
		ids = ids[:0:0]
		for i := range list {
			ids = append(ids, list[i].ID)
		}
	}
	return total, nil
}
