package simplequeue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/simplequeue/simplequeue/internal/store"
)

const (
	redriveBatch = 500
	redriveLimit = 30 * time.Second
	maxConflicts = 1000 // listed one by one
)

// RedriveOptions say how jobs that have ended run again. The zero value takes all
// that match, as fast as it goes.
type RedriveOptions struct {
	// Rate is how many jobs a second become runnable. Default (0): no limit. A
	// negative one is an error.
	Rate float64
	// MaxAttempts is the new budget of each job, cut to 1,048,576. Default (0): the
	// one it had. A negative one is an error.
	MaxAttempts int
}

// Redriven is what a redrive or a replay has done.
type Redriven struct {
	IDs []uuid.UUID // the jobs that are live again
	// Conflicts is how many jobs could not be: a live job holds their unique key.
	Conflicts int
	// Conflicting tells the first thousand of them.
	Conflicting []KeyConflict
}

// KeyConflict is a job whose unique key a live job holds.
type KeyConflict struct {
	ID     uuid.UUID // the job that has ended, and stays where it is
	Holder uuid.UUID // the live job; zero if it has ended since
}

// Redrive makes jobs of the dead letter queue live again, the same jobs with
// the same ids: pending, with a fresh budget of attempts and reschedules, at the
// end of the lane of their priority. Error history, metadata and all else stay;
// JobInfo.Redrives counts. A job that has crashed its worker comes back as a
// suspect, with one crash counted, however many there were. A dead job that keeps
// its order key closed runs at its old place, before those behind it; any other
// job with an order or fairness key lines up anew. A job whose unique key a live
// job holds stays in the dead letter queue, which notes the holder in its row
// (props -> 'redrive_conflict').
//
// Redrive goes through the jobs that match and had ended when it was called, in
// batches of a transaction each. When it fails or ctx ends, what it returns has
// been done, except that a batch may have been committed although its answer was
// lost; call it again for the rest. Any number of processes may redrive at once,
// each job goes once. A filter that names no jobs but some of their states or
// times is good enough; an empty one is refused, as is a state that no dead job
// has, or a limit, with an [*InvalidFilterError]. Other errors are those of the
// database.
func (q *SimpleQueue) Redrive(ctx context.Context, f Filter, how RedriveOptions) (Redriven, error) {
	if len(f.States) == 0 {
		if !f.narrow() && f.FinishedFrom.IsZero() && f.FinishedBefore.IsZero() {
			return Redriven{}, errTooWide
		}
		f.States = deadStates
	}
	for _, s := range f.States {
		if !s.Terminal() || s == StateCompleted {
			return Redriven{}, &InvalidFilterError{Field: "States", Value: string(s), Reason: "is not in the dead letter queue"}
		}
	}
	var budget *int32
	if how.MaxAttempts > 0 {
		n := int32(min(how.MaxAttempts, maxAttempts))
		budget = &n
	}
	return q.again(ctx, f, how, func(ids []uuid.UUID, done *Redriven) error {
		r, err := q.db.Redrive(ctx, redriveLimit, rawIDs(ids), budget)
		if len(r.IDs) > 0 {
			q.wakes.jobs(slices.Collect(maps.Keys(r.Lanes)), len(r.IDs))
		}
		if r.Gated {
			q.wakes.gates()
		}
		for _, id := range r.IDs {
			done.IDs = append(done.IDs, id)
		}
		for _, c := range r.Conflicts {
			done.conflict(c.ID, c.Holder)
		}
		return err
	})
}

var deadStates = []State{StateFailed, StateCancelled, StateUnprocessable, StateCritical, StateBadJob}

func (r *Redriven) conflict(id, holder uuid.UUID) {
	r.Conflicts++
	if len(r.Conflicting) < maxConflicts {
		r.Conflicting = append(r.Conflicting, KeyConflict{id, holder})
	}
}

// Replay inserts copies of completed jobs that are in the archive: new jobs with
// ids of their own, which know the job they repeat (JobInfo.ReplayOf) and have
// its payload, priority, key, fingerprint, metadata and retention, but neither
// its errors nor its result. The archive is not changed: that the job with the
// old id has completed, and when, stays true, for whoever asks for its result
// too. A copy with an order or fairness key lines up behind those that are live.
// A job whose unique key a live job holds is not copied. Copies do not pass
// [InsertMiddleware]: what that made of the job is in the archive.
//
// A replay that is called again copies again. Filters, rate, batches and errors
// are those of [SimpleQueue.Redrive].
func (q *SimpleQueue) Replay(ctx context.Context, f Filter, how RedriveOptions) (Redriven, error) {
	if len(f.States) == 0 && !f.narrow() && f.FinishedFrom.IsZero() && f.FinishedBefore.IsZero() {
		return Redriven{}, errTooWide
	}
	if len(f.States) > 0 && (len(f.States) > 1 || f.States[0] != StateCompleted) {
		return Redriven{}, &InvalidFilterError{Field: "States", Value: string(f.States[0]), Reason: "is not in the archive: leave it out"}
	}
	f.States = []State{StateCompleted}
	return q.again(ctx, f, how, func(ids []uuid.UUID, done *Redriven) error {
		rows, err := q.db.Replayable(ctx, redriveLimit, rawIDs(ids))
		if err != nil || len(rows) == 0 {
			return err
		}
		b, jobs, err := q.insertCopies(ctx, rows, how)
		for try := 0; err != nil && try < boundTries && q.unaware(ctx, err, jobs); try++ {
			b, jobs, err = q.insertCopies(ctx, rows, how)
		}
		if err != nil {
			return err
		}
		q.wakes.jobs(b.runnable(), len(b.jobs))
		if b.lined() {
			q.wakes.gates()
		}
		for i, r := range b.results {
			if r.Duplicate {
				done.conflict(rows[i].ID, r.ID)
			} else {
				done.IDs = append(done.IDs, r.ID)
			}
		}
		return nil
	})
}

// insertCopies inserts new jobs like the archived ones. They are not checked
// again, nor do they pass the insert's middleware: they have. They go into a
// queue with a limit without taking a slot.
func (q *SimpleQueue) insertCopies(ctx context.Context, rows []store.Archived, how RedriveOptions) (*batch, []NewJob, error) {
	b := &batch{jobs: make([]ready, len(rows)), results: make([]Inserted, len(rows))}
	jobs := make([]NewJob, len(rows))
	for i := range rows {
		a, r := &rows[i], &b.jobs[i]
		id, err := uuid.NewV7()
		if err != nil {
			return nil, nil, fmt.Errorf("simplequeue: make an id: %w", err)
		}
		jobs[i] = NewJob{
			Queue: a.Queue, Kind: a.Kind, Priority: int(a.Priority), Raw: a.Raw, Fingerprint: deref(a.Fingerprint),
			UniqueKey: deref(a.UniqueKey), UniqueGlobal: a.UniqueKey != nil && deref(a.UniqueScope) == "",
		}
		r.job, r.bounded = &jobs[i], q.bounds.has(a.Queue)
		r.id, r.maxAttempts, r.payload, r.size = id, int(a.MaxAttempts), a.Payload, len(deref(a.Payload))+len(a.Raw)
		if how.MaxAttempts > 0 {
			r.maxAttempts = min(how.MaxAttempts, maxAttempts)
		}
		if r.props, err = replayProps(a); err != nil {
			return nil, nil, err
		}
		var p props
		if a.Props != nil {
			_ = json.Unmarshal(a.Props, &p)
		}
		if r.gates, r.blocks = p.Gates, p.BlockDead; len(r.gates) > 0 {
			r.waitsFor, b.gated = reasonGated, true
			r.job.OrderKey, r.job.FairnessKey = p.OrderKey, p.FairnessKey
		}
		b.results[i].ID = id
	}
	return b, jobs, q.insertKeyed(ctx, b)
}

// replayProps are the properties of an archived job for its copy. What a newer
// program has put there goes along, to the last digit of its numbers.
func replayProps(a *store.Archived) (*string, error) {
	p := map[string]json.RawMessage{}
	if a.Props != nil {
		if err := json.Unmarshal(a.Props, &p); err != nil {
			return nil, fmt.Errorf("simplequeue: properties of job %v: %w", uuid.UUID(a.ID), err)
		}
	}
	delete(p, "redrives")
	p["replay_of"] = json.RawMessage(`"` + uuid.UUID(a.ID).String() + `"`)
	text, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("simplequeue: properties of job %v: %w", uuid.UUID(a.ID), err)
	}
	s := string(text)
	return &s, nil
}

// again goes through the jobs that match and have ended, at the rate given.
func (q *SimpleQueue) again(ctx context.Context, f Filter, how RedriveOptions, do func([]uuid.UUID, *Redriven) error) (done Redriven, err error) {
	if how.Rate < 0 || how.MaxAttempts < 0 {
		return done, errors.New("simplequeue: RedriveOptions.Rate and MaxAttempts must be positive, or 0 for the default")
	}
	now, err := q.db.Now(ctx, claimLimit)
	if err != nil {
		return done, fmt.Errorf("simplequeue: ask for the time: %w", err)
	}
	// One that ends again meanwhile is not taken again.
	if f.FinishedBefore.IsZero() || now.Before(f.FinishedBefore) {
		f.FinishedBefore = now
	}
	size := redriveBatch
	if how.Rate > 0 {
		size = max(1, min(size, int(how.Rate/10)))
	}
	next := time.Now()
	err = q.ids(ctx, f, size, func(ids []uuid.UUID) error {
		if err := waitFor(ctx, time.Until(next)); err != nil {
			return err
		}
		before := len(done.IDs)
		if err := do(ids, &done); err != nil {
			return fmt.Errorf("simplequeue: redrive: %w", err)
		}
		if how.Rate > 0 {
			next = time.Now().Add(time.Duration(float64(len(done.IDs)-before) / how.Rate * float64(time.Second)))
		}
		return nil
	})
	return done, err
}

// Purge deletes jobs that have ended, from the archive and the dead letter
// queue, and returns how many. It goes through those that match in batches of a
// transaction each, and stops at the first error. Where completed jobs are not
// asked for, a dead one that is redriven and completes meanwhile stays. A filter
// that names neither jobs nor states is refused, as is one with a limit. Live
// jobs are not touched, whatever the filter: cancel them first.
func (q *SimpleQueue) Purge(ctx context.Context, f Filter) (total int, err error) {
	if len(f.States) == 0 {
		if !f.narrow() {
			return 0, errTooWide
		}
		f.States = append([]State{StateCompleted}, deadStates...)
	}
	for _, s := range f.States {
		if !s.Terminal() {
			return 0, &InvalidFilterError{Field: "States", Value: string(s), Reason: "has not ended: cancel first, then purge"}
		}
	}
	err = q.ids(ctx, f, redriveBatch, func(ids []uuid.UUID) error {
		n, err := q.db.Purge(ctx, redriveLimit, rawIDs(ids), f.store().States)
		total += n
		if err != nil {
			return fmt.Errorf("simplequeue: purge: %w", err)
		}
		return nil
	})
	return total, err
}
