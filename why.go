package simplequeue

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/simplequeue/simplequeue/internal/store"
)

// FindingCode says what sort of answer it is.
type FindingCode string

// What [SimpleQueue.Why] may find.
const (
	FindingUnknownJob  FindingCode = "unknown_job"  // no job has the id, or nothing of it is kept
	FindingEnded       FindingCode = "ended"        // it will not run again
	FindingRunning     FindingCode = "running"      // it runs
	FindingCancelling  FindingCode = "cancelling"   // it runs, and has been asked to stop
	FindingLeaseOver   FindingCode = "lease_over"   // it is held by a worker that may be dead, and will be taken from it
	FindingWaits       FindingCode = "waits"        // its time has not come
	FindingHeld        FindingCode = "held"         // it was inserted to be committed later, and has not been
	FindingGate        FindingCode = "gate"         // others of its order key come first, or it is not its fairness key's turn
	FindingUnknownKind FindingCode = "unknown_kind" // no live worker of its queue takes its kind
	FindingNoWorker    FindingCode = "no_worker"    // no live worker serves its queue
	FindingPaused      FindingCode = "paused"       // its queue is paused
	FindingSuspect     FindingCode = "suspect"      // it crashed a worker: it has to wait for other suspects
	FindingBehind      FindingCode = "behind"       // others of its queue come first
	FindingNext        FindingCode = "next"         // nothing holds it back: it is about to be claimed
)

// Finding is one answer to why a job is not running.
type Finding struct {
	Code FindingCode
	Text string // a sentence for people
	// Until is when this ends, where that is known.
	Until time.Time
	// Jobs is how many come first.
	Jobs int64
	// Job is the one that has to end first, of an order key.
	Job uuid.UUID
	// Worker is who holds the job.
	Worker uuid.UUID
}

// Why says why a job is not running, or what it does: everything that holds it
// back now, not just the first. There is always at least one answer. What it looks
// at is read at one moment, the workers a moment later.
func (q *SimpleQueue) Why(ctx context.Context, id uuid.UUID) ([]Finding, error) {
	c := &whyCase{}
	var err error
	if c.job, err = q.Get(ctx, id); err != nil {
		if errors.Is(err, ErrNotFound) {
			return []Finding{{Code: FindingUnknownJob, Text: fmt.Sprintf("No job has the id %v, or it has ended and nothing of it is kept.", id)}}, nil
		}
		return nil, err
	}
	found, err := q.db.Holds(ctx, inspectLimit, id)
	if err != nil {
		return nil, fmt.Errorf("simplequeue: look at what holds job %v: %w", id, err)
	}
	if found != nil {
		c.Holds = *found
	}
	if c.in(StateWaiting) && (len(c.job.gates) > 0 || c.job.Reason == reasonHeld) {
		if err := q.lookAtGate(ctx, c); err != nil {
			return nil, fmt.Errorf("simplequeue: look at the gate of job %v: %w", id, err)
		}
	}
	if c.workers, err = q.Workers(ctx); err != nil {
		return nil, err
	}
	var list []Finding
	for _, look := range whyLooks {
		list = append(list, look(c)...)
	}
	if len(list) == 0 {
		list = []Finding{{Code: FindingNext, Text: "Nothing holds it back: a worker will claim it as soon as it has a permit free."}}
	}
	return list, nil
}

// whyCase is a job and what may hold it back.
type whyCase struct {
	store.Holds
	job     JobInfo
	gate    store.GateSight
	first   JobInfo // who has to go before the job, of an order key
	workers []WorkerInfo
}

// whyLooks are the questions, each of which knows one sort of thing. A feature
// that holds jobs back adds its own.
var whyLooks = []func(*whyCase) []Finding{whyEnded, whyRuns, whyHeld, whyGate, whyWaits, whyPaused, whyWorkers, whySuspect, whyBehind}

func (c *whyCase) in(states ...State) bool { return slices.Contains(states, c.job.State) }

func (c *whyCase) at(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

func whyEnded(c *whyCase) []Finding {
	if !c.job.State.Terminal() {
		return nil
	}
	text := fmt.Sprintf("It ended as %s at %s.", c.job.State, c.at(c.job.FinishedAt))
	if c.job.Reason != "" {
		text = fmt.Sprintf("It ended as %s at %s: %s.", c.job.State, c.at(c.job.FinishedAt), c.job.Reason)
	}
	return []Finding{{Code: FindingEnded, Text: text, Until: c.job.FinishedAt}}
}

func whyRuns(c *whyCase) (list []Finding) {
	if !c.in(StateRunning, StateCancelling) {
		return nil
	}
	owner := "a program that claimed it by hand, or a worker that has gone"
	for _, w := range c.workers {
		if w.ID == c.job.WorkerID {
			owner = w.Name
			if !w.Alive {
				owner += ", not seen since " + c.at(w.SeenAt)
			}
		}
	}
	beat, last := "no heartbeat yet", c.job.StartedAt
	if c.BeatAt != nil {
		beat, last = "last heartbeat "+c.at(*c.BeatAt), *c.BeatAt
	}
	text := fmt.Sprintf("It runs on %s (%v) since %s, %s.", owner, c.job.WorkerID, c.at(c.job.StartedAt), beat)
	list = []Finding{{Code: FindingRunning, Text: text, Worker: c.job.WorkerID}}
	if c.CancelAt != nil {
		list = append(list, Finding{
			Code: FindingCancelling, Worker: c.job.WorkerID,
			Text: fmt.Sprintf("It was asked to stop at %s, and its handler has not returned.", c.at(*c.CancelAt)),
		})
	}
	if c.SweptSince != nil && c.SweptSince.After(last) {
		last = *c.SweptSince
	}
	if c.LeaseMS != nil {
		if end := last.Add(time.Duration(*c.LeaseMS) * time.Millisecond); end.Before(c.Now) {
			list = append(list, Finding{
				Code: FindingLeaseOver, Until: end, Worker: c.job.WorkerID,
				Text: fmt.Sprintf("Its lease ended at %s: the next sweep of a reaper takes it back.", c.at(end)),
			})
		}
	}
	return list
}

func whyWaits(c *whyCase) []Finding {
	if at := c.gate.RunAt; c.in(StateWaiting) && at != nil && at.After(c.Now) {
		return []Finding{{Code: FindingWaits, Text: fmt.Sprintf("It is scheduled for %s.", c.at(*at)), Until: *at}}
	}
	if !c.in(StateWaiting) || c.job.RunAt.IsZero() {
		return nil
	}
	why := map[string]string{
		"scheduled": "It is scheduled for", "retry": "After a failed attempt it waits until",
		"rescheduled": "Its handler put it off until", "deferred": "A permit put it off until",
	}[c.job.Reason]
	if why == "" {
		why = fmt.Sprintf("It waits (%s) until", c.job.Reason)
	}
	text := fmt.Sprintf("%s %s.", why, c.at(c.job.RunAt))
	if c.job.RunAt.Before(c.Now) {
		text = fmt.Sprintf("%s %s, which has come: a worker will move it to the queue, if one runs.", why, c.at(c.job.RunAt))
	}
	return []Finding{{Code: FindingWaits, Text: text, Until: c.job.RunAt}}
}

func whyHeld(c *whyCase) []Finding {
	if !c.in(StateWaiting) || c.job.Reason != reasonHeld || c.gate.ExpiresAt == nil {
		return nil
	}
	end := *c.gate.ExpiresAt
	return []Finding{{Code: FindingHeld, Until: end, Text: fmt.Sprintf("It is held until CommitHeld commits it, or it is deleted: at %s.", c.at(end))}}
}

// lookAtGate fills in what the job waits at.
func (q *SimpleQueue) lookAtGate(ctx context.Context, c *whyCase) error {
	var err error
	if c.gate, err = q.db.SeeGate(ctx, inspectLimit, c.job.ID); err != nil || c.gate.First == nil {
		return err
	}
	c.first, err = q.Get(ctx, *c.gate.First)
	if errors.Is(err, ErrNotFound) {
		c.first, err = JobInfo{Job: Job{ID: *c.gate.First}}, nil
	}
	return err
}

func whyGate(c *whyCase) []Finding {
	if !c.in(StateWaiting) || c.gate.Gate == "" {
		return nil
	}
	h := Finding{Code: FindingGate, Jobs: c.gate.Ahead}
	kind, rest, _ := strings.Cut(c.gate.Gate, "\t")
	queue, key, _ := strings.Cut(rest, "\t")
	line := fmt.Sprintf("order key %q", key)
	if key == "" {
		line = fmt.Sprintf("queue %q, which is first in, first out", queue)
	}
	switch {
	case kind == "f":
		h.Text = fmt.Sprintf("It waits for its fairness key's turn: %d jobs of queue %q come first.", h.Jobs, queue)
	case c.gate.BlockedAt != nil && c.first.State == "":
		h.Job = c.first.ID
		h.Text = fmt.Sprintf("Job %v, of which nothing is kept, has closed the %s at %s: ReleaseKey opens it.", h.Job, line, c.at(*c.gate.BlockedAt))
	case c.gate.BlockedAt != nil:
		h.Job = c.first.ID
		h.Text = fmt.Sprintf("Job %v, which is %s, has closed the %s at %s: ReleaseKey opens it, and Redrive runs that job again.",
			h.Job, c.first.State, line, c.at(*c.gate.BlockedAt))
	case c.gate.First != nil && c.first.State != "":
		h.Job = c.first.ID
		h.Text = fmt.Sprintf("It is behind %d others of the %s: job %v, which is %s, comes first.", h.Jobs, line, h.Job, c.first.State)
	case c.job.Reason == reasonHeld:
		return nil // it is first, and its hold is all that is between it and its run
	default:
		h.Text = fmt.Sprintf("It is the first of the %s: a worker will let it in, if one runs.", line)
	}
	return []Finding{h}
}

func whyPaused(c *whyCase) []Finding {
	if c.PausedAt == nil || !c.in(StateWaiting, StatePending) {
		return nil
	}
	text := fmt.Sprintf("Queue %q is paused since %s.", c.job.Queue, c.at(*c.PausedAt))
	if *c.PauseReason != "" {
		text = fmt.Sprintf("Queue %q is paused since %s: %s.", c.job.Queue, c.at(*c.PausedAt), *c.PauseReason)
	}
	return []Finding{{Code: FindingPaused, Text: text}}
}

func whyWorkers(c *whyCase) []Finding {
	if !c.in(StateWaiting, StatePending) {
		return nil
	}
	served, known := false, false
	for i := range c.workers {
		if !c.workers[i].Alive {
			continue
		}
		serves, knows := c.workers[i].serves(c.job.Queue, c.job.Kind)
		served, known = served || serves, known || knows
	}
	switch {
	case !served:
		return []Finding{{Code: FindingNoWorker, Text: fmt.Sprintf("No live worker serves queue %q.", c.job.Queue)}}
	case !known:
		return []Finding{{Code: FindingUnknownKind, Text: fmt.Sprintf("No live worker of queue %q takes kind %q.", c.job.Queue, c.job.Kind)}}
	}
	return nil
}

func whySuspect(c *whyCase) []Finding {
	if c.Lane == nil || *c.Lane != store.SuspectLane {
		return nil
	}
	text := "Its worker died while it ran: such jobs run one at a time in each worker."
	if c.Suspect != nil {
		text = fmt.Sprintf("Its worker died while it ran: such jobs run one at a time in each worker, and job %v runs now.", uuid.UUID(*c.Suspect))
	}
	return []Finding{{Code: FindingSuspect, Text: text, Jobs: c.Ahead}}
}

func whyBehind(c *whyCase) []Finding {
	if !c.in(StatePending) || c.Ahead == 0 || c.Lane == nil || *c.Lane == store.SuspectLane {
		return nil
	}
	return []Finding{{
		Code: FindingBehind, Jobs: c.Ahead,
		Text: fmt.Sprintf("%d jobs of queue %q come first, by priority or by age; %d of the queue run.", c.Ahead, c.job.Queue, c.Running),
	}}
}
