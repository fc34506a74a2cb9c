package simplequeue

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"time"

	"github.com/google/uuid"
)

// Spool keeps jobs on this machine that the database cannot take now, and
// inserts them later. Package spool, a module of its own, has one.
//
// With Options.Spool Insert and InsertMany go through it, below the middleware.
// Inserts in a transaction of the caller's do not: they are its.
type Spool interface {
	// Attach is called once, by [New], before any other method.
	Attach(target *SpoolTarget) error
	// Insert inserts jobs, or keeps them and returns results with Spooled set.
	Insert(ctx context.Context, jobs []NewJob) ([]Inserted, error)
	// Problem is what [SimpleQueue.Health] tells of the spool, "" for nothing.
	Problem() string
}

// SpoolTarget is a queue as its [Spool] sees it.
type SpoolTarget struct{ queue *SimpleQueue }

// Schema is the schema into which jobs are inserted.
func (t *SpoolTarget) Schema() string { return t.queue.opts.Schema }

// Insert is InsertMany without middleware and spool.
func (t *SpoolTarget) Insert(ctx context.Context, jobs []NewJob) ([]Inserted, error) {
	return t.queue.insertOwn(ctx, t.remembered(jobs))
}

// remembered gives ids to jobs of which, after a doubt, only the memory of chosen
// ids could tell that they were inserted: those that may leave nothing behind when
// they end, and those with a time, which a replay may insert into another table
// than the insert that is still about to commit.
func (t *SpoolTarget) remembered(jobs []NewJob) []NewJob {
	o := &t.queue.opts
	own := false
	for i := range jobs {
		j := &jobs[i]
		keep := j.Retention.or(o.Queues[j.Queue].Retention).or(o.Retention)
		known := keep.Archive != KeepNothing && keep.DeadLetter != KeepNothing && j.RunAt.IsZero() && j.Delay == 0
		if known || j.ID != uuid.Nil {
			continue
		}
		id, err := uuid.NewV7()
		if err != nil {
			return jobs // the insert will tell
		}
		if !own {
			jobs, own = slices.Clone(jobs), true
		}
		jobs[i].ID = id
	}
	return jobs
}

// Take checks jobs as an insert does and returns what a spool is to keep of
// them. The database is not asked. With ids, those become the jobs' ids: of an
// insert that is in doubt ([InsertUnknownError.IDs]).
func (t *SpoolTarget) Take(ctx context.Context, jobs []NewJob, ids []uuid.UUID) (SpooledJobs, error) {
	parent := JobFromContext(ctx)
	s := SpooledJobs{Jobs: slices.Clone(jobs), At: time.Now()}
	seen := make(map[uuid.UUID]bool, len(jobs))
	for i := range s.Jobs {
		j := &s.Jobs[i]
		var r ready
		if err := t.queue.ready(&r, j, i); err != nil {
			return SpooledJobs{}, err
		}
		if err := r.encode(t.queue.opts.MaxPayloadBytes, parent, i); err != nil {
			return SpooledJobs{}, err
		}
		if j.ID = r.id; ids != nil {
			j.ID = ids[i]
		}
		if seen[j.ID] {
			return SpooledJobs{}, &InvalidJobError{Index: i, Field: "ID", Value: j.ID.String(), Reason: "is given twice in one insert"}
		}
		seen[j.ID] = true
		if j.Payload = nil; r.payload != nil {
			j.Payload = json.RawMessage(*r.payload)
		}
	}
	if parent != nil {
		s.ParentID, s.RootID = parent.ID, parent.RootID
	}
	return s, nil
}

// Replay inserts what Take returned, of calls with one parent, all of it or
// none. Jobs whose ids are known already are duplicates. A Delay counts from the
// time of the call, by this machine's clock. An [*InvalidJobError] counts the
// jobs of all calls.
func (t *SpoolTarget) Replay(ctx context.Context, calls []SpooledJobs) ([]Inserted, error) {
	var jobs []NewJob
	for _, c := range calls {
		if c.ParentID != calls[0].ParentID {
			return nil, errors.New("simplequeue: replay of calls that have different parents")
		}
		waited := max(0, time.Since(c.At))
		for _, j := range c.Jobs {
			if j.Delay > 0 {
				j.Delay = max(time.Microsecond, j.Delay-waited)
			}
			jobs = append(jobs, j)
		}
	}
	if len(calls) > 0 && calls[0].ParentID != uuid.Nil {
		parent := &running{queue: t.queue, job: &Job{ID: calls[0].ParentID, RootID: calls[0].RootID}}
		ctx = context.WithValue(ctx, contextKey{}, parent)
	}
	return t.queue.insertOwn(ctx, jobs)
}

// SpooledJobs are the jobs of one call of Insert or InsertMany in a [Spool].
type SpooledJobs struct {
	Jobs             []NewJob  // each with an ID, and its Payload as a json.RawMessage
	At               time.Time // of the call, by this machine's clock
	ParentID, RootID uuid.UUID // of the job whose handler made the call
}

// spooled is the form in which SpooledJobs are written: an older program that
// meets a field it does not know must not drop it.
type spooled struct {
	At     time.Time         `json:"at"`
	Parent *uuid.UUID        `json:"parent,omitempty"`
	Root   *uuid.UUID        `json:"root,omitempty"`
	Jobs   []json.RawMessage `json:"jobs"`
}

// MarshalBinary returns JSON. Fields that are zero are left out.
func (s SpooledJobs) MarshalBinary() ([]byte, error) {
	out := spooled{At: s.At}
	if s.ParentID != uuid.Nil {
		out.Parent, out.Root = &s.ParentID, &s.RootID
	}
	for i := range s.Jobs {
		v := reflect.ValueOf(s.Jobs[i])
		fields := map[string]any{}
		for _, f := range reflect.VisibleFields(v.Type()) {
			if value := v.FieldByIndex(f.Index); f.IsExported() && !value.IsZero() {
				fields[f.Name] = value.Interface()
			}
		}
		text, err := plainJSON(fields)
		if err != nil {
			return nil, fmt.Errorf("simplequeue: encode job %v for the spool: %w", s.Jobs[i].ID, err)
		}
		out.Jobs = append(out.Jobs, text)
	}
	return plainJSON(out)
}

// plainJSON keeps the length of payloads, which is bounded.
func plainJSON(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
}

// UnmarshalBinary reads what MarshalBinary wrote. What it does not know, from a
// newer version, is an error.
func (s *SpooledJobs) UnmarshalBinary(text []byte) error {
	var in spooled
	if err := strictJSON(text, &in); err != nil {
		return fmt.Errorf("simplequeue: spooled jobs: %w", err)
	}
	*s = SpooledJobs{At: in.At, Jobs: make([]NewJob, len(in.Jobs))}
	if in.Parent != nil && in.Root != nil {
		s.ParentID, s.RootID = *in.Parent, *in.Root
	}
	for i, text := range in.Jobs {
		job := struct {
			*NewJob
			Payload json.RawMessage // "null" where that was written, nil without one
		}{NewJob: &s.Jobs[i]}
		if err := strictJSON(text, &job); err != nil {
			return fmt.Errorf("simplequeue: spooled job %d of %d: %w", i+1, len(in.Jobs), err)
		}
		if job.Payload != nil {
			s.Jobs[i].Payload = job.Payload
		}
	}
	return nil
}

func strictJSON(text []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	return d.Decode(v)
}
