package simplequeue

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"reflect"
	"strconv"
	"strings"
	"time"
	"unicode/utf16"
	"unicode/utf8"

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
	maxJSONExponent = 100_000 // PostgreSQL's numeric goes to 131072 digits,
	maxJSONDigits   = 16_000  // 16383 of them after the point
)

// batch is a list of jobs on its way into the database.
type batch struct {
	jobs    []ready
	results []Inserted
	lanes   []store.Lane
	plain   bool // runs now, no key, no chosen id
	waits   bool // some job runs later
	soonest time.Duration
}

// ready is a checked and encoded job.
type ready struct {
	job         *NewJob
	id          uuid.UUID
	chosen      bool
	maxAttempts int
	payload     *string
	props       *string
	size        int
	later       bool // ended up in job_waiting
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
	b := &batch{jobs: make([]ready, len(jobs)), results: make([]Inserted, len(jobs)), plain: true, soonest: maxDelay}
	parent := JobFromContext(ctx)
	lanes := map[store.Lane]bool{}
	chosen := map[uuid.UUID]bool{}
	for i := range jobs {
		j := &jobs[i]
		r := &b.jobs[i]
		if err := q.ready(r, j, parent, i); err != nil {
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
			b.waits, b.soonest = true, min(b.soonest, max(j.Delay, 0))
		}
		b.plain = b.plain && !later && !r.chosen && j.UniqueKey == ""
	}
	return b, nil
}

// ready checks and encodes one job.
func (q *SimpleQueue) ready(r *ready, j *NewJob, parent *Job, index int) error {
	invalid := func(field, value, reason string) error {
		return &InvalidJobError{Index: index, Field: field, Value: shorten(value), Reason: reason}
	}
	if problem := queueNameProblem(j.Queue); problem != "" {
		return invalid("Queue", j.Queue, problem)
	}
	for _, t := range []struct {
		field, value string
		limit        int
	}{{"Kind", j.Kind, maxKindName}, {"UniqueKey", j.UniqueKey, maxKey}, {"Fingerprint", j.Fingerprint, maxKey}} {
		if problem := textProblem(t.value, t.limit); problem != "" {
			return invalid(t.field, t.value, problem)
		}
	}
	switch {
	case j.Priority < 0 || j.Priority > 9:
		return invalid("Priority", strconv.Itoa(j.Priority), "must be 0 to 9, 0 runs first")
	case j.MaxAttempts < 0 || j.MaxAttempts > maxAttempts:
		return invalid("MaxAttempts", strconv.Itoa(j.MaxAttempts), fmt.Sprintf("must be 1 to %d, or 0 for the default", maxAttempts))
	case j.Delay < 0 || j.Delay > maxDelay:
		return invalid("Delay", j.Delay.String(), "must be 0 to 100 years")
	case j.Delay > 0 && !j.RunAt.IsZero():
		return invalid("Delay", j.Delay.String(), "and RunAt are both set: set one of them")
	case !j.RunAt.IsZero() && (j.RunAt.Year() < 1 || j.RunAt.Year() > 9999):
		return invalid("RunAt", j.RunAt.String(), "must be in the years 1 to 9999")
	case j.Timeout < NoTimeout:
		return invalid("Timeout", j.Timeout.String(), "must be positive, 0 for the default or NoTimeout")
	case j.UniqueGlobal && j.UniqueKey == "":
		return invalid("UniqueGlobal", "true", "needs a UniqueKey")
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
	r.maxAttempts = j.MaxAttempts
	def(&r.maxAttempts, q.opts.Queues[j.Queue].MaxAttempts)
	def(&r.maxAttempts, q.opts.MaxAttempts)
	if err := r.encodePayload(q.opts.MaxPayloadBytes, index); err != nil {
		return err
	}
	return r.encodeProps(parent, index)
}

func (r *ready) encodePayload(limit, index int) error {
	j := r.job
	// A payload that another job did not have is none here either.
	if raw, ok := j.Payload.(json.RawMessage); j.Payload != nil && (!ok || raw != nil) {
		text, err := encodeJSON(j.Payload)
		if err != nil {
			return &InvalidJobError{Index: index, Field: "Payload", Reason: "does not encode as JSON", Err: err}
		}
		if problem := jsonProblem(text); problem != "" {
			return &InvalidJobError{Index: index, Field: "Payload", Reason: problem}
		}
		s := string(text)
		r.payload, r.size = &s, len(s)
	}
	r.size += len(j.Raw)
	if r.size > limit {
		return &InvalidJobError{
			Index: index, Field: "Payload", Value: fmt.Sprintf("%d bytes", r.size),
			Reason: fmt.Sprintf("is larger than Options.MaxPayloadBytes = %d: raise it, or store the data elsewhere and pass a reference", limit),
		}
	}
	return nil
}

func encodeJSON(v any) (text []byte, err error) {
	if raw, ok := v.(json.RawMessage); ok {
		if !json.Valid(raw) {
			return nil, errors.New("json.RawMessage is not valid JSON")
		}
		return raw, nil
	}
	defer func() {
		if p := recover(); p != nil {
			text, err = nil, fmt.Errorf("encoder panicked: %v", p)
		}
	}()
	text, err = json.Marshal(v)
	if err == nil && bytes.Contains(text, []byte(`\ufffd`)) && invalidText(reflect.ValueOf(v), 0) {
		return nil, errors.New("a string is not valid UTF-8: use Raw for bytes")
	}
	return text, err
}

// invalidText reports whether a value holds a string that is not UTF-8, which
// the encoder replaces without a word.
func invalidText(v reflect.Value, depth int) bool {
	if depth > 1000 {
		return false
	}
	switch v.Kind() {
	case reflect.String:
		return !utf8.ValidString(v.String())
	case reflect.Pointer, reflect.Interface:
		return invalidText(v.Elem(), depth+1)
	case reflect.Map:
		for it := v.MapRange(); it.Next(); {
			if invalidText(it.Key(), depth+1) || invalidText(it.Value(), depth+1) {
				return true
			}
		}
	case reflect.Slice, reflect.Array:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return false
		}
		for i := range v.Len() {
			if invalidText(v.Index(i), depth+1) {
				return true
			}
		}
	case reflect.Struct:
		for i := range v.NumField() {
			f := v.Type().Field(i)
			if (f.IsExported() || f.Anonymous) && f.Tag.Get("json") != "-" && invalidText(v.Field(i), depth+1) {
				return true
			}
		}
	}
	return false
}

func (r *ready) encodeProps(parent *Job, index int) error {
	j := r.job
	p := props{
		Metadata: j.Metadata, TraceContext: j.TraceContext,
		KeepArchive: keepSeconds(j.Retention.Archive), KeepDLQ: keepSeconds(j.Retention.DeadLetter),
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

// textProblem says what keeps a text from being stored as it is.
func textProblem(s string, limit int) string {
	switch {
	case len(s) > limit:
		return fmt.Sprintf("has %d bytes, at most %d are allowed", len(s), limit)
	case !utf8.ValidString(s):
		return "is not valid UTF-8"
	case strings.ContainsRune(s, 0):
		return "holds a NUL character, which PostgreSQL cannot store"
	}
	return ""
}

// jsonProblem says what keeps valid JSON from being stored as jsonb: what
// PostgreSQL's text type cannot hold, and numbers beyond its numeric.
// https://www.postgresql.org/docs/current/datatype-json.html
func jsonProblem(text []byte) string {
	if !utf8.Valid(text) {
		return "holds invalid UTF-8: use Raw for bytes"
	}
	if bytes.Contains(text, []byte(`\u`)) {
		if problem := escapeProblem(text); problem != "" {
			return problem
		}
	}
	if exponentInside(text) || len(text) > maxJSONDigits {
		return numberProblem(text)
	}
	return ""
}

// exponentInside reports whether there may be a number with an exponent: an e
// after a digit, be it in a string.
func exponentInside(text []byte) bool {
	for i := 1; i < len(text); i++ {
		if text[i]|0x20 == 'e' && text[i-1]-'0' <= 9 {
			return true
		}
	}
	return false
}

// escapeProblem walks the \u escapes of JSON text. An escaped backslash before
// a u is no escape.
func escapeProblem(text []byte) string {
	for i := 0; i+1 < len(text); i++ {
		if text[i] != '\\' {
			continue
		}
		i++
		if text[i] != 'u' {
			continue
		}
		code := hexRune(text[i+1 : i+5])
		i += 4
		switch {
		case code == 0:
			return `holds a NUL character (\u0000), which PostgreSQL cannot store: use Raw for bytes`
		case code >= 0xDC00 && code <= 0xDFFF:
			return fmt.Sprintf(`holds a lone surrogate (\u%04x), which is no character`, code)
		case utf16.IsSurrogate(code):
			if i+6 >= len(text) || text[i+1] != '\\' || text[i+2] != 'u' || utf16.DecodeRune(code, hexRune(text[i+3:i+7])) == utf8.RuneError {
				return fmt.Sprintf(`holds a lone surrogate (\u%04x), which is no character`, code)
			}
			i += 6
		}
	}
	return ""
}

func hexRune(digits []byte) rune {
	n, err := strconv.ParseUint(string(digits), 16, 32)
	if err != nil {
		return 0
	}
	return rune(n)
}

// numberProblem looks for numbers that PostgreSQL's numeric cannot hold.
func numberProblem(text []byte) string {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return ""
		}
		if err != nil {
			return "does not parse: " + err.Error()
		}
		n, ok := token.(json.Number)
		if !ok {
			continue
		}
		mantissa, exponent, _ := strings.Cut(strings.ToLower(n.String()), "e")
		e := 0
		if exponent != "" {
			if e, err = strconv.Atoi(exponent); err != nil {
				e = math.MaxInt32
			}
		}
		if len(mantissa) > maxJSONDigits || e > maxJSONExponent || e < -maxJSONDigits+len(mantissa) {
			return fmt.Sprintf("holds the number %s, which is beyond PostgreSQL's numeric: send it as a string", shorten(n.String()))
		}
	}
}

func shorten(s string) string { return clean(s, 60) }

// columns are the jobs at the given positions, as the store takes them.
func (b *batch) columns(at []int) *store.NewJobs {
	n := &store.NewJobs{}
	queues, priorities := map[store.Lane]bool{}, &n.LanePriorities
	for _, i := range at {
		r := &b.jobs[i]
		j := r.job
		id := r.id.String()
		n.IDs = append(n.IDs, id)
		n.Queues = append(n.Queues, j.Queue)
		n.Kinds = append(n.Kinds, j.Kind)
		n.Priorities = append(n.Priorities, int16(j.Priority))
		n.MaxAttempts = append(n.MaxAttempts, int32(r.maxAttempts))
		n.Fingerprints = append(n.Fingerprints, nonEmpty(j.Fingerprint))
		n.Props = append(n.Props, r.props)
		if l := (store.Lane{Queue: j.Queue, Priority: int16(j.Priority)}); !queues[l] {
			queues[l] = true
			n.LaneQueues, *priorities = append(n.LaneQueues, l.Queue), append(*priorities, l.Priority)
		}
		if r.size > inlinePayload {
			n.PayloadBytes = append(n.PayloadBytes, int32(r.size))
			n.Payloads, n.Raws = append(n.Payloads, nil), append(n.Raws, nil)
			n.BigIDs, n.BigPayloads, n.BigRaws = append(n.BigIDs, id), append(n.BigPayloads, r.payload), append(n.BigRaws, j.Raw)
		} else {
			n.PayloadBytes = append(n.PayloadBytes, 0)
			n.Payloads, n.Raws = append(n.Payloads, r.payload), append(n.Raws, j.Raw)
		}
		if b.plain {
			continue
		}
		n.Chosen = append(n.Chosen, r.chosen)
		if j.UniqueKey != "" {
			scope := r.scope()
			n.UniqueScopes, n.UniqueKeys = append(n.UniqueScopes, &scope), append(n.UniqueKeys, &j.UniqueKey)
		} else {
			n.UniqueScopes, n.UniqueKeys = append(n.UniqueScopes, nil), append(n.UniqueKeys, nil)
		}
		n.RunAts, n.DelaysUS = append(n.RunAts, nonZero(j.RunAt)), append(n.DelaysUS, positive(j.Delay))
	}
	return n
}

// row is a plain job as COPY takes it.
func (b *batch) row(i int) store.PlainJob {
	r := &b.jobs[i]
	j := store.PlainJob{
		ID: r.id, Queue: r.job.Queue, Kind: r.job.Kind, Priority: int16(r.job.Priority), MaxAttempts: int32(r.maxAttempts),
		Fingerprint: nonEmpty(r.job.Fingerprint), Payload: r.payload, Raw: r.job.Raw, Props: r.props,
	}
	if r.size > inlinePayload {
		j.PayloadBytes, j.Payload, j.Raw = int32(r.size), nil, nil
	}
	return j
}

// beside is what the plain jobs from one position to another have beside their
// rows, nil for nothing. The lanes of all go with the first.
func (b *batch) beside(from, to int) *store.NewJobs {
	n := &store.NewJobs{}
	if from == 0 {
		for _, l := range b.lanes {
			n.LaneQueues, n.LanePriorities = append(n.LaneQueues, l.Queue), append(n.LanePriorities, l.Priority)
		}
	}
	for i := from; i < to; i++ {
		r := &b.jobs[i]
		if r.job.Fingerprint != "" {
			n.IDs, n.Fingerprints = append(n.IDs, r.id.String()), append(n.Fingerprints, &r.job.Fingerprint)
		}
		if r.size > inlinePayload {
			n.BigIDs, n.BigPayloads, n.BigRaws = append(n.BigIDs, r.id.String()), append(n.BigPayloads, r.payload), append(n.BigRaws, r.job.Raw)
		}
	}
	if len(n.LaneQueues)+len(n.IDs)+len(n.BigIDs) == 0 {
		return nil
	}
	return n
}

// chunks are the columns of all jobs, a statement's worth each.
func (b *batch) chunks() []*store.NewJobs {
	var list []*store.NewJobs
	for from := 0; from < len(b.jobs); from += insertChunk {
		at := make([]int, min(insertChunk, len(b.jobs)-from))
		for i := range at {
			at[i] = from + i
		}
		list = append(list, b.columns(at))
	}
	return list
}

// runnable lists the lanes into which jobs have gone.
func (b *batch) runnable() []store.Lane {
	if b.plain {
		return b.lanes
	}
	var lanes []store.Lane
	seen := map[store.Lane]bool{}
	for i := range b.jobs {
		l := store.Lane{Queue: b.jobs[i].job.Queue, Priority: int16(b.jobs[i].job.Priority)}
		if !b.results[i].Duplicate && !b.jobs[i].later && !seen[l] {
			seen[l] = true
			lanes = append(lanes, l)
		}
	}
	return lanes
}

func nonEmpty(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func nonZero(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

func positive(d time.Duration) *int64 {
	if d <= 0 {
		return nil
	}
	us := max(1, d.Microseconds())
	return &us
}
