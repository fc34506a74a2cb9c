package simplequeue

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/simplequeue/simplequeue/internal/store"
)

// Bounds of a job's texts, in bytes.
const (
	maxKindName     = 128
	maxKey          = 512
	maxPropsBytes   = 64 << 10
	inlinePayload   = 1 << 10 // larger payloads are stored apart
	maxDelay        = 100 * 365 * 24 * time.Hour
	maxPayloadDepth = 10_000  // levels, as deep as encoding/json decodes
	maxJSONExponent = 100_000 // PostgreSQL's numeric goes to 131072 digits,
	maxJSONDigits   = 16_000  // 16383 of them after the point
)

// batch is a list of jobs on its way into the database.
type batch struct {
	jobs    []ready
	results []Inserted
	lanes   []store.Lane
	plain   bool // runs now, no key, no chosen id, no limit, no gate
	bounded bool // some queue has a limit
	waits   bool // some job runs later
	gated   bool // some job waits at a gate
	held    bool // some job waits for CommitHeld
	soonest time.Duration

	parent  *Job
	limit   int // bytes of a payload
	encoded int // jobs, from the first
}

// ready is a job that is checked and, in time, encoded.
type ready struct {
	job         *NewJob
	id          uuid.UUID
	chosen      bool
	bounded     bool // its queue has a limit
	maxAttempts int
	payload     *string
	props       *string
	unique      *string // how the database derives the key
	key         string  // the key that was found taken
	size        int     // bytes of Payload and Raw, as the database prints them
	later       bool    // ended up in job_waiting
	waitsFor    string
	gates       []string // that it passes, one after the other
	blocks      bool     // ending dead, it keeps the first of them closed
}

// scope is where the unique key is unique.
func (r *ready) scope() string {
	if r.job.UniqueGlobal {
		return ""
	}
	return r.job.Queue
}

// prepare checks and encodes jobs. Nothing has touched the database when it
// fails.
func (q *SimpleQueue) prepare(ctx context.Context, jobs []NewJob) (*batch, error) {
	b, err := q.check(ctx, jobs)
	if err != nil {
		return nil, err
	}
	if err := b.encode(len(b.jobs)); err != nil {
		return nil, err
	}
	return b, nil
}

// check does all of prepare but for encode, which takes most of its time.
func (q *SimpleQueue) check(ctx context.Context, jobs []NewJob) (*batch, error) {
	b := &batch{
		jobs: make([]ready, len(jobs)), results: make([]Inserted, len(jobs)), plain: true, soonest: maxDelay,
		parent: JobFromContext(ctx), limit: q.opts.MaxPayloadBytes,
	}
	lanes := map[store.Lane]bool{}
	chosen := map[uuid.UUID]bool{}
	for i := range jobs {
		j := &jobs[i]
		r := &b.jobs[i]
		if err := q.ready(r, j, i); err != nil {
			return nil, err
		}
		if r.chosen {
			if chosen[r.id] {
				return nil, &InvalidJobError{Index: i, Field: "ID", Value: r.id.String(), Reason: "is given twice in one insert"}
			}
			chosen[r.id] = true
		}
		b.results[i].ID = r.id
		if l := (store.Lane{Queue: j.Queue, Priority: int16(j.Priority)}); !lanes[l] {
			lanes[l] = true
			b.lanes = append(b.lanes, l)
		}
		later := j.Delay > 0 || !j.RunAt.IsZero()
		if later {
			soon := j.Delay // this clock only decides when to look
			if soon == 0 {
				soon = max(0, time.Until(j.RunAt))
			}
			b.waits, b.soonest = true, min(b.soonest, soon)
		}
		b.plain = b.plain && !later && !r.chosen && !j.hasKey() && !r.bounded && r.waitsFor == ""
		b.bounded, b.gated, b.held = b.bounded || r.bounded, b.gated || len(r.gates) > 0, b.held || j.Hold > 0
	}
	if err := q.groups.await(ctx, chosen); err != nil {
		return nil, err
	}
	return b, nil
}

// encode encodes the jobs up to the given one that are not encoded yet.
func (b *batch) encode(to int) error {
	for ; b.encoded < to; b.encoded++ {
		if err := b.jobs[b.encoded].encode(b.limit, b.parent, b.encoded); err != nil {
			return err
		}
	}
	return nil
}

// encode encodes one job, whose payload may have so many bytes.
func (r *ready) encode(limit int, parent *Job, index int) error {
	if err := r.encodePayload(limit, index); err != nil {
		return err
	}
	if field, value, problem := r.deriveKey(); problem != "" {
		return &InvalidJobError{Index: index, Field: field, Value: shorten(value), Reason: problem}
	}
	return r.encodeProps(parent, index)
}

// ready checks what of one job needs no encoding.
func (q *SimpleQueue) ready(r *ready, j *NewJob, index int) error {
	invalid := func(field, value, reason string) error {
		return &InvalidJobError{Index: index, Field: field, Value: shorten(value), Reason: reason}
	}
	if problem := queueNameProblem(j.Queue); problem != "" {
		return invalid("Queue", j.Queue, problem)
	}
	for _, t := range []struct {
		field, value string
		limit        int
	}{{"Kind", j.Kind, maxKindName}, {"UniqueKey", j.UniqueKey, maxKey}, {"Fingerprint", j.Fingerprint, maxKey}, {"OrderKey", j.OrderKey, maxKey}, {"FairnessKey", j.FairnessKey, maxKey}} {
		if problem := textProblem(t.value, t.limit); problem != "" {
			return invalid(t.field, t.value, problem)
		}
	}
	if problem := priorityProblem(j.Priority); problem != "" {
		return invalid("Priority", strconv.Itoa(j.Priority), problem)
	}
	if field, value, problem := timeProblem(j.RunAt, j.Delay); problem != "" {
		return invalid(field, value, problem)
	}
	switch {
	case j.MaxAttempts < 0 || j.MaxAttempts > maxAttempts:
		return invalid("MaxAttempts", strconv.Itoa(j.MaxAttempts), fmt.Sprintf("must be 1 to %d, or 0 for the default", maxAttempts))
	case j.Hold < 0 || j.Hold > maxHold:
		return invalid("Hold", j.Hold.String(), "must be 0 to 7 days")
	case j.Hold > 0 && j.Unique.OnConflict != ConflictSkip:
		return invalid("Hold", j.Hold.String(), "and Unique.OnConflict are both set: a job that is live is not held anew")
	case j.Timeout < NoTimeout:
		return invalid("Timeout", j.Timeout.String(), "must be positive, 0 for the default or NoTimeout")
	case j.UniqueGlobal && !j.hasKey():
		return invalid("UniqueGlobal", "true", "needs a UniqueKey or Unique.Fields")
	}
	for _, k := range []struct {
		field string
		keep  time.Duration
	}{{"Retention.Archive", j.Retention.Archive}, {"Retention.DeadLetter", j.Retention.DeadLetter}} {
		if problem := keepProblem(k.keep); problem != "" {
			return invalid(k.field, k.keep.String(), problem)
		}
	}
	r.job, r.id, r.chosen = j, j.ID, j.ID != uuid.Nil
	if !r.chosen {
		id, err := uuid.NewV7()
		if err != nil {
			return fmt.Errorf("simplequeue: make an id: %w", err)
		}
		r.id = id
	}
	r.bounded = q.bounds.has(j.Queue)
	r.maxAttempts = j.MaxAttempts
	def(&r.maxAttempts, q.opts.Queues[j.Queue].MaxAttempts)
	def(&r.maxAttempts, q.opts.MaxAttempts)
	if r.gates = q.gatesOf(j); len(r.gates) > 0 {
		r.waitsFor = reasonGated
		r.blocks = strings.HasPrefix(r.gates[0], "o\t") && q.opts.Queues[j.Queue].BlockDead
	}
	if j.Hold > 0 {
		r.waitsFor = reasonHeld
	}
	return nil
}

// priorityProblem says what is wrong with a priority, "" for nothing.
func priorityProblem(p int) string {
	if p < 0 || p > 9 {
		return "must be 0 to 9, 0 runs first"
	}
	return ""
}

// timeProblem says what is wrong about when a job is to run.
func timeProblem(runAt time.Time, delay time.Duration) (field, value, problem string) {
	switch {
	case delay < 0 || delay > maxDelay:
		return "Delay", delay.String(), "must be 0 to 100 years"
	case delay > 0 && !runAt.IsZero():
		return "Delay", delay.String(), "and RunAt are both set: set one of them"
	case yearProblem(runAt) != "":
		return "RunAt", runAt.String(), yearProblem(runAt)
	}
	return "", "", ""
}

// yearProblem says what is wrong with a time, which may be zero.
func yearProblem(t time.Time) string {
	if !t.IsZero() && (t.Year() < 1 || t.Year() > 9999) {
		return "must be in the years 1 to 9999"
	}
	return ""
}

// given reports whether there is a payload. What another job did not have, as a
// json.RawMessage, is none.
func given(payload any) bool {
	raw, ok := payload.(json.RawMessage)
	return payload != nil && (!ok || raw != nil)
}

func (r *ready) encodePayload(limit, index int) error {
	j := r.job
	size, sent := int64(len(j.Raw)), len(j.Raw)
	if given(j.Payload) {
		text, err := encodeJSON(j.Payload)
		if err != nil {
			return &InvalidJobError{Index: index, Field: "Payload", Reason: "does not encode as JSON", Err: err}
		}
		printed, problem := jsonSize(text)
		if problem != "" {
			return &InvalidJobError{Index: index, Field: "Payload", Reason: problem}
		}
		if problem := depthProblem(text, maxPayloadDepth); problem != "" {
			return &InvalidJobError{Index: index, Field: "Payload", Reason: problem}
		}
		s := string(text)
		r.payload = &s
		size, sent = size+printed, sent+len(s)
	}
	if size > int64(limit) {
		return &InvalidJobError{
			Index: index, Field: "Payload", Value: fmt.Sprintf("%d bytes%s", size, writtenOut(size, sent)),
			Reason: fmt.Sprintf("is larger than Options.MaxPayloadBytes = %d: raise it, or store the data elsewhere and pass a reference", limit),
		}
	}
	r.size = int(size)
	return nil
}

func (r *ready) encodeProps(parent *Job, index int) error {
	j := r.job
	p := props{
		Metadata: j.Metadata, TraceContext: j.TraceContext,
		KeepArchive: keepSeconds(j.Retention.Archive), KeepDLQ: keepSeconds(j.Retention.DeadLetter),
		Bounded: r.bounded, Awaited: j.Awaited,
		OrderKey: j.OrderKey, FairnessKey: j.FairnessKey, Gates: r.gates, BlockDead: r.blocks,
	}
	if j.Timeout > 0 {
		p.TimeoutMS = max(1, j.Timeout.Milliseconds())
	} else if j.Timeout < 0 {
		p.TimeoutMS = -1
	}
	if parent != nil {
		p.ParentID, p.RootID = &parent.ID, &parent.RootID
		if parent.RootID == uuid.Nil {
			p.RootID = &parent.ID
		}
	}
	if p.empty() {
		return nil
	}
	for field, m := range map[string]map[string]string{"Metadata": j.Metadata, "TraceContext": j.TraceContext} {
		for k, v := range m {
			for _, s := range []string{k, v} {
				if problem := textProblem(s, maxPropsBytes); problem != "" {
					return &InvalidJobError{Index: index, Field: field, Value: shorten(s), Reason: problem}
				}
			}
		}
	}
	text, err := json.Marshal(p)
	if err != nil {
		return &InvalidJobError{Index: index, Field: "Metadata", Reason: "does not encode as JSON", Err: err}
	}
	if len(text) > maxPropsBytes {
		return &InvalidJobError{Index: index, Field: "Metadata", Value: fmt.Sprintf("%d bytes", len(text)), Reason: fmt.Sprintf("is larger than %d bytes", maxPropsBytes)}
	}
	s := string(text)
	r.props = &s
	return nil
}
