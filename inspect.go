package simplequeue

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
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

	Redrives int       // how often it was taken from the dead letter queue to run again
	ReplayOf uuid.UUID // the archived job of which this one is a copy
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

// List returns the first Filter.Limit jobs that match, by id. It looks for as
// long as it takes to find so many: see [SimpleQueue.Page] for many jobs, of
// which few match.
func (q *SimpleQueue) List(ctx context.Context, f Filter) ([]JobInfo, error) {
	if err := f.validate(); err != nil {
		return nil, err
	}
	def(&f.Limit, 100)
	var list []JobInfo
	limit := f.Limit
	for cursor := ""; ; {
		f.Limit = limit - len(list)
		page, err := q.Page(ctx, f, cursor)
		if err != nil {
			return nil, err
		}
		list = append(list, page.Jobs...)
		if cursor = page.Next; cursor == "" || len(list) == limit {
			return list, nil
		}
	}
}

// Page is a part of the jobs that match a filter.
type Page struct {
	Jobs []JobInfo
	Next string // the cursor of the page after this one, "" if this is the last
}

// pageSlice is how many rows of a table are read for one page at most.
const pageSlice = 10_000

// Page returns the jobs that match behind a cursor: an empty one for the
// beginning, or Page.Next of the page before. A page reads a bounded part of the
// tables, whatever the filter and however many jobs there are: it may hold fewer
// than Filter.Limit jobs, or none, and still not be the last. Pages go by id, and
// each sees the jobs of all states at one moment. So a job that is there from the
// first page to the last and matches all the while is returned exactly once, as
// often as it or others may move from state to state meanwhile; one that is
// inserted, or begins or ceases to match, may be returned or not.
//
// A filter or a cursor that makes no sense is an [*InvalidFilterError].
func (q *SimpleQueue) Page(ctx context.Context, f Filter, cursor string) (Page, error) {
	place, err := f.check(cursor)
	if err != nil {
		return Page{}, err
	}
	rows, next, err := q.db.Page(ctx, f.store(), place, f.Limit, pageSlice)
	if err != nil {
		return Page{}, fmt.Errorf("simplequeue: list jobs: %w", err)
	}
	page := Page{Jobs: make([]JobInfo, len(rows)), Next: f.cursor(next)}
	for i := range rows {
		page.Jobs[i] = infoOf(&rows[i])
	}
	return page, nil
}

// check checks the filter and fills in its default.
func (f *Filter) check(cursor string) (store.Place, error) {
	if err := f.validate(); err != nil {
		return store.Place{}, err
	}
	def(&f.Limit, 100)
	return f.place(cursor)
}

// ids calls do with the ids of all jobs that match, page by page, each of at
// most so many. A limit, which says nothing about which jobs, is refused.
func (q *SimpleQueue) ids(ctx context.Context, f Filter, size int, do func(ids []uuid.UUID) error) error {
	if err := f.validate(); err != nil {
		return err
	}
	if f.Limit != 0 {
		return &InvalidFilterError{
			Field: "Limit", Value: strconv.Itoa(f.Limit),
			Reason: "is only for List and Page, and all that match would be meant here: leave it out, or name the ids that List returns",
		}
	}
	place := store.Place{Newest: f.Newest}
	for {
		rows, next, err := q.db.PageIDs(ctx, f.store(), place, size, pageSlice)
		if err != nil {
			return fmt.Errorf("simplequeue: look for jobs: %w", err)
		}
		if len(rows) > 0 {
			ids := make([]uuid.UUID, len(rows))
			for i := range rows {
				ids[i] = rows[i]
			}
			if err := do(ids); err != nil {
				return err
			}
		}
		if place.After = next; next == "" {
			return nil
		}
	}
}

// Count returns how many jobs match, by state. It reads them all: give a filter
// that an index serves where there are many (ids, or the unique key or
// fingerprint of live jobs).
func (q *SimpleQueue) Count(ctx context.Context, f Filter) (map[State]int64, error) {
	if err := f.validate(); err != nil {
		return nil, err
	}
	found, err := q.db.Count(ctx, f.store())
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
	i.fillHistory(r.Props)
	if i.Reason == reasonGated {
		i.Reason = behind(i.gates)
	}
	if r.WorkerID != nil {
		i.WorkerID = *r.WorkerID
	}
	if r.DuplicateOf != nil {
		i.DuplicateOf = *r.DuplicateOf
	}
	return i
}

// fillHistory decodes what operators have done.
func (i *JobInfo) fillHistory(properties []byte) {
	var p struct {
		Redrives int        `json:"redrives"`
		ReplayOf *uuid.UUID `json:"replay_of"`
	}
	if properties != nil {
		_ = json.Unmarshal(properties, &p)
	}
	if i.Redrives = p.Redrives; p.ReplayOf != nil {
		i.ReplayOf = *p.ReplayOf
	}
}

func orZero(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return *t
}
