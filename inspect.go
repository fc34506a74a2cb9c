package simplequeue

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/simplequeue/simplequeue/internal/store"
)

// JobInfo is a job of any state, with its times by the database's clock.
type JobInfo struct {
	Job
	State       State
	Reason      string    // why it waits, or why it ended as it did
	RunAt       time.Time // of a waiting job
	StartedAt   time.Time // of the last attempt
	FinishedAt  time.Time
	WorkerID    uuid.UUID
	DuplicateOf uuid.UUID // an older live job with the same fingerprint, if the reaper found one
	// Result is what the handler has set by [Job.SetResult], nil if it has set
	// none or the job has not completed. [ResultOf] decodes it.
	Result json.RawMessage
}

// Filter selects jobs. Zero fields select all.
type Filter struct {
	IDs    []uuid.UUID
	Queue  string
	Kind   string
	States []State
	// UniqueKey selects jobs that were inserted with the key: in Queue, or in
	// any queue if that is empty.
	UniqueKey   string
	Fingerprint string
	// After and Limit page through a List: jobs with greater ids, at most Limit
	// of them. Ids made by the library grow with time. Default limit 100.
	After uuid.UUID
	Limit int
}

func (f *Filter) store() store.Filter {
	s := store.Filter{
		Queue: f.Queue, Kind: f.Kind, UniqueKey: f.UniqueKey, Fingerprint: f.Fingerprint,
		Limit: f.Limit, LiveOnly: len(f.States) > 0,
	}
	def(&s.Limit, 100)
	if f.IDs != nil {
		s.IDs = []string{}
	}
	for _, id := range f.IDs {
		s.IDs = append(s.IDs, id.String())
	}
	for _, state := range f.States {
		s.States = append(s.States, string(state))
		s.LiveOnly = s.LiveOnly && !state.Terminal()
	}
	if f.After != uuid.Nil {
		s.After = f.After.String()
	}
	return s
}

// Get returns one job, wherever it is, or [ErrNotFound]. It is read in one
// statement, so a job that moves meanwhile is not missed.
func (q *SimpleQueue) Get(ctx context.Context, id uuid.UUID) (JobInfo, error) {
	list, err := q.List(ctx, Filter{IDs: []uuid.UUID{id}, Limit: 1})
	if err != nil {
		return JobInfo{}, err
	}
	if len(list) == 0 {
		return JobInfo{}, fmt.Errorf("%w: %v", ErrNotFound, id)
	}
	return list[0], nil
}

// List returns the jobs that match, by id.
func (q *SimpleQueue) List(ctx context.Context, f Filter) ([]JobInfo, error) {
	rows, err := q.db.List(ctx, q.pool, f.store())
	if err != nil {
		return nil, fmt.Errorf("simplequeue: list jobs: %w", err)
	}
	list := make([]JobInfo, len(rows))
	for i := range rows {
		list[i] = infoOf(&rows[i])
	}
	return list, nil
}

// Count returns how many jobs match, by state. It reads them all: give a filter
// that an index serves where there are many.
func (q *SimpleQueue) Count(ctx context.Context, f Filter) (map[State]int64, error) {
	found, err := q.db.Count(ctx, q.pool, f.store())
	if err != nil {
		return nil, fmt.Errorf("simplequeue: count jobs: %w", err)
	}
	counts := make(map[State]int64, len(found))
	for state, n := range found {
		counts[State(state)] = n
	}
	return counts, nil
}

func infoOf(r *store.Info) JobInfo {
	i := JobInfo{
		Job: Job{
			ID: r.ID, Queue: r.Queue, Kind: r.Kind, Payload: r.Payload, Raw: r.Raw, Priority: int(r.Priority),
			Attempt: int(r.Attempt), MaxAttempts: int(r.MaxAttempts), ReprocessCount: int(r.ReprocessCount),
			CrashCount: int(r.CrashCount), UniqueKey: deref(r.UniqueKey), Fingerprint: deref(r.Fingerprint), CreatedAt: r.CreatedAt,
		},
		State: State(r.State), Reason: deref(r.Reason),
		Result: r.Result,
		RunAt:  orZero(r.RunAt), StartedAt: orZero(r.StartedAt), FinishedAt: orZero(r.FinishedAt),
	}
	i.fill(r.Errors, r.Props)
	if r.WorkerID != nil {
		i.WorkerID = *r.WorkerID
	}
	if r.DuplicateOf != nil {
		i.DuplicateOf = *r.DuplicateOf
	}
	return i
}

func orZero(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return *t
}
