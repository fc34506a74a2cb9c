package spool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/google/uuid"

	"github.com/simplequeue/simplequeue"
)

// Bounds of one transaction of the replay.
const (
	mostJobs    = 500
	mostBytes   = 4 << 20
	replayLimit = 30 * time.Second
	replayJob   = 2 * time.Millisecond // more for each job: a call may have many
)

// Run replays what waits in the file, and what comes to it, until ctx ends; it
// then returns nil, and the rest waits for the next Run. While the database
// cannot be reached it tries again at growing intervals, of 4.5 seconds at most.
//
// Jobs are replayed in the order in which they were written. Those of a queue
// that is full wait, in their order, while others pass. Calls that the database
// refuses for good, or that have more jobs for a queue than its limit, are set
// aside, see [Spool.Aside].
//
// Run fails with [ErrRunning], [ErrClosed], and a [*CorruptError] where the file
// cannot be read any more.
func (s *Spool) Run(ctx context.Context) error {
	if s.target == nil {
		return errors.New("spool: give the spool to a SimpleQueue first, as Options.Spool")
	}
	if !s.running.CompareAndSwap(false, true) {
		return ErrRunning
	}
	defer s.running.Store(false)
	defer s.file.replays(false)
	r := &replay{spool: s, most: mostJobs}
	retry := newRetry()
	for {
		err := r.pass(ctx)
		s.file.replays(false)
		if ctx.Err() != nil {
			return nil
		}
		var corrupt *CorruptError
		if errors.Is(err, ErrClosed) || errors.As(err, &corrupt) {
			return err
		}
		s.note(ctx, err)
		if err == nil || r.progress {
			retry.Reset()
		}
		if s.wait(ctx, err, retry) != nil {
			return nil
		}
	}
}

// wait waits for more, or, after a failure, for the time to try again: new jobs
// are no reason to do so sooner.
func (s *Spool) wait(ctx context.Context, failed error, retry *backoff.ExponentialBackOff) error {
	if failed == nil {
		select {
		case <-s.added:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	t := time.NewTimer(retry.NextBackOff())
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// newRetry paces the tries while the database is away. They are spread, for the
// spools of many machines see it return in the same moment.
func newRetry() *backoff.ExponentialBackOff {
	return backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(100*time.Millisecond),
		backoff.WithMaxInterval(3*time.Second),
		backoff.WithMaxElapsedTime(0),
	)
}

// note keeps what Stats and Problem tell, and logs changes.
func (s *Spool) note(ctx context.Context, err error) {
	s.mu.Lock()
	before := s.err
	s.err = err
	s.mu.Unlock()
	if err == nil {
		s.said.Store(false)
	}
	switch {
	case err != nil && before == nil:
		s.opts.Logger.WarnContext(ctx, "spool: replay fails", "path", s.path, "err", err)
	case err == nil && before != nil:
		s.opts.Logger.InfoContext(ctx, "spool: replayed all that waited", "path", s.path, "jobs", s.replayed.Load())
	}
}

// replay is the state of Run.
type replay struct {
	spool    *Spool
	most     int             // jobs of one transaction
	progress bool            // the last pass inserted something
	full     map[string]bool // queues that are, in this pass
	fullErr  error
}

// call is a record that has been read.
type call struct {
	number uint64
	jobs   simplequeue.SpooledJobs
}

// pass goes through the file once, and again for what was added meanwhile. It
// returns nil when the file is empty.
func (r *replay) pass(ctx context.Context) error {
	r.progress, r.full, r.fullErr = false, map[string]bool{}, nil
	var last uint64
	for ctx.Err() == nil {
		records, err := r.spool.file.after(last, r.most, mostBytes)
		if err != nil || len(records) == 0 {
			return errors.Join(err, r.fullErr)
		}
		for len(records) > 0 {
			var batch []call
			if batch, records, err = r.batch(records); err != nil {
				return err
			}
			if err := r.insert(ctx, batch); err != nil {
				return err
			}
			if len(batch) > 0 {
				last = batch[len(batch)-1].number
			}
		}
	}
	return ctx.Err()
}

// batch takes records from the front that can share a transaction. One that
// cannot be read is set aside.
func (r *replay) batch(records []record) (batch []call, rest []record, err error) {
	jobs := 0
	ids := map[uuid.UUID]bool{}
	for i, rec := range records {
		c := call{number: rec.number}
		body, _, problem := decode(rec.value)
		if problem == "" {
			if err := c.jobs.UnmarshalBinary(body); err != nil {
				problem = err.Error()
			}
		}
		if problem != "" {
			problem = fmt.Sprintf("record %d of %s cannot be read: %s", rec.number, r.spool.path, problem)
			if err := r.setAside(rec.number, problem); err != nil {
				return nil, nil, err
			}
			continue
		}
		if len(batch) > 0 && (jobs+len(c.jobs.Jobs) > r.most || c.jobs.ParentID != batch[0].jobs.ParentID ||
			slices.ContainsFunc(c.jobs.Jobs, func(j simplequeue.NewJob) bool { return ids[j.ID] })) {
			return batch, records[i:], nil
		}
		for _, j := range c.jobs.Jobs {
			ids[j.ID] = true
		}
		batch, jobs = append(batch, c), jobs+len(c.jobs.Jobs)
	}
	return batch, nil, nil
}

// insert inserts calls in one transaction, and by halves where one of them is
// refused. A call for a queue that is full stays, and so do those behind it that
// have a queue in common with it.
func (r *replay) insert(ctx context.Context, batch []call) error {
	batch = slices.DeleteFunc(slices.Clone(batch), r.held)
	if len(batch) == 0 {
		return nil
	}
	calls, numbers, jobs := make([]simplequeue.SpooledJobs, len(batch)), make([]uint64, len(batch)), 0
	for i, c := range batch {
		calls[i], numbers[i], jobs = c.jobs, c.number, jobs+len(c.jobs.Jobs)
	}
	limited, stop := context.WithTimeout(ctx, replayLimit+time.Duration(jobs)*replayJob)
	_, err := r.spool.target.Replay(limited, calls)
	stop()
	full := errors.Is(err, simplequeue.ErrQueueFull)
	switch {
	case err == nil:
		r.progress, r.most = true, min(mostJobs, 2*r.most)
		r.spool.file.replays(true)
		if err := r.spool.file.remove(numbers); err != nil {
			return err
		}
		r.spool.replayed.Add(int64(jobs))
		return nil
	case full && len(batch) == 1:
		if problem := neverFits(batch[0], err); problem != "" {
			return r.setAside(numbers[0], problem)
		}
		r.fullErr = err
		for _, j := range calls[0].Jobs {
			r.full[j.Queue] = true
		}
		return nil
	case refused(err) && len(batch) == 1:
		return r.setAside(numbers[0], err.Error())
	case full || refused(err):
		if err := r.insert(ctx, batch[:len(batch)/2]); err != nil {
			return err
		}
		return r.insert(ctx, batch[len(batch)/2:])
	case tooSlow(err):
		r.most = max(1, r.most/2)
	}
	return err
}

// neverFits says why a call that was refused by a full queue would be refused by
// an empty one, too; "" if it would not.
func neverFits(c call, err error) string {
	var full *simplequeue.QueueFullError
	if !errors.As(err, &full) {
		return ""
	}
	jobs := 0
	for _, j := range c.jobs.Jobs {
		if j.Queue == full.Queue {
			jobs++
		}
	}
	if jobs <= full.Limit {
		return ""
	}
	return fmt.Sprintf("it has %d jobs for queue %q: %v", jobs, full.Queue, err)
}

// held reports whether a call has to wait for a queue that is full, and holds
// back what comes behind it.
func (r *replay) held(c call) bool {
	inQueue := func(j simplequeue.NewJob) bool { return r.full[j.Queue] }
	if len(r.full) == 0 || !slices.ContainsFunc(c.jobs.Jobs, inQueue) {
		return false
	}
	for _, j := range c.jobs.Jobs {
		r.full[j.Queue] = true
	}
	return true
}

func (r *replay) setAside(number uint64, reason string) error {
	if err := r.spool.file.setAside(number, reason); err != nil {
		return err
	}
	r.spool.opts.Logger.Error("spool: jobs were set aside", "path", r.spool.path, "entry", number, "reason", reason)
	return nil
}
