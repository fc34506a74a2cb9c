package simplequeuetest

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"math/big"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/inside"
)

// Inserted returns the jobs like the given one, of whatever state, oldest first.
// It fails the test unless there are n; 0 says that there is none.
//
// Fields of like that are zero match anything. Payload is compared as JSON: an
// object may have more fields than are asked for, at every depth; Metadata and
// TraceContext may have more pairs. Delay matches a job that was, when it was inserted,
// that far from its time, to the second. Delay and RunAt match also where a job
// waits for something else first: at a gate, or held. All else has to be equal. A
// priority of 0, and what a job does not show, such as how its key was derived or
// its Hold or Awaited, cannot be asked for: look at the jobs that are returned. The Reason of
// a held one is "held".
func Inserted(t testing.TB, q *simplequeue.SimpleQueue, n int, like simplequeue.NewJob) []simplequeue.JobInfo {
	t.Helper()
	m, err := newMatch(like)
	if err != nil {
		t.Fatalf("simplequeuetest: %v", err)
	}
	var found []simplequeue.JobInfo
	for _, job := range all(t, q, m.filter()) {
		if m.matches(&job) && m.matchesTime(t, q, &job) {
			found = append(found, job)
		}
	}
	if len(found) != n {
		t.Fatalf("simplequeuetest: %d jobs like %s, want %d; there are:%s", len(found), m, n, list(t, q, simplequeue.Filter{Queue: like.Queue}))
	}
	return found
}

// match tells whether jobs are like one.
type match struct {
	like    simplequeue.NewJob
	payload any
	rest    map[string]reflect.Value // fields that a Job has too
	asked   []string
}

func newMatch(like simplequeue.NewJob) (*match, error) {
	m := &match{like: like, rest: map[string]reflect.Value{}}
	v := reflect.ValueOf(like)
	for _, f := range reflect.VisibleFields(v.Type()) {
		value := v.FieldByIndex(f.Index)
		if value.IsZero() {
			continue
		}
		m.asked = append(m.asked, fmt.Sprintf("%s: %v", f.Name, value))
		switch f.Name {
		case "Delay", "Metadata", "TraceContext", "RunAt":
		case "Payload":
			text, err := json.Marshal(like.Payload)
			if err != nil {
				return nil, fmt.Errorf("payload to compare with: %w", err)
			}
			m.payload = decode(text)
			m.asked[len(m.asked)-1] = "Payload: " + string(text)
		default:
			if of, ok := reflect.TypeFor[simplequeue.Job]().FieldByName(f.Name); !ok || of.Type != f.Type {
				return nil, fmt.Errorf("NewJob.%s cannot be compared: a stored job does not show it", f.Name)
			}
			m.rest[f.Name] = value
		}
	}
	return m, nil
}

// String lists what is asked for.
func (m *match) String() string { return "{" + strings.Join(m.asked, ", ") + "}" }

// filter is what the database can select.
func (m *match) filter() simplequeue.Filter {
	f := simplequeue.Filter{
		Queue: m.like.Queue, Kind: m.like.Kind, UniqueKey: m.like.UniqueKey, Fingerprint: m.like.Fingerprint, Metadata: m.like.Metadata,
		OrderKey: m.like.OrderKey, FairnessKey: m.like.FairnessKey,
	}
	if m.like.ID != uuid.Nil {
		f.IDs = []uuid.UUID{m.like.ID}
	}
	return f
}

// matches is the rest but for the time.
func (m *match) matches(job *simplequeue.JobInfo) bool {
	for name, want := range m.rest {
		if !reflect.DeepEqual(reflect.ValueOf(job.Job).FieldByName(name).Interface(), want.Interface()) {
			return false
		}
	}
	for k, v := range m.like.TraceContext {
		if job.TraceContext[k] != v {
			return false
		}
	}
	if m.like.Payload != nil && (job.Payload == nil || !holds(decode(job.Payload), m.payload)) {
		return false
	}
	return true
}

// matchesTime looks at the time to run, which a job that waits for something else
// first has elsewhere.
func (m *match) matchesTime(t testing.TB, q *simplequeue.SimpleQueue, job *simplequeue.JobInfo) bool {
	t.Helper()
	if m.like.Delay == 0 && m.like.RunAt.IsZero() {
		return true
	}
	due, err := inside.RunAt(t.Context(), q, *job)
	if err != nil {
		t.Fatalf("simplequeuetest: look for jobs: %v", err)
	}
	if d := m.like.Delay; d != 0 && (due.IsZero() || (due.Sub(job.CreatedAt)-d).Abs() > time.Second) {
		return false
	}
	return m.like.RunAt.IsZero() || due.Equal(m.like.RunAt.Truncate(time.Microsecond))
}

// decode decodes JSON with its numbers as they are written.
func decode(text []byte) (v any) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	_ = d.Decode(&v) // it was encoded, or stored as jsonb
	return v
}

// holds reports whether v has all that want has.
func holds(v, want any) bool {
	switch want := want.(type) {
	case map[string]any:
		object, ok := v.(map[string]any)
		for k, w := range want {
			inner, has := object[k]
			ok = ok && has && holds(inner, w)
		}
		return ok
	case []any:
		list, ok := v.([]any)
		return ok && slices.EqualFunc(list, want, holds)
	case json.Number:
		number, ok := v.(json.Number)
		return ok && sameNumber(number.String(), want.String())
	}
	return v == want
}

func sameNumber(a, b string) bool {
	if a == b {
		return true
	}
	x, ok := new(big.Rat).SetString(a)
	y, too := new(big.Rat).SetString(b)
	return ok && too && x.Cmp(y) == 0
}

// all are the jobs that match, oldest first.
func all(t testing.TB, q *simplequeue.SimpleQueue, f simplequeue.Filter) (jobs []simplequeue.JobInfo) {
	t.Helper()
	f.Limit = 1000
	for cursor := ""; ; {
		page, err := q.Page(t.Context(), f, cursor)
		if err != nil {
			t.Fatalf("simplequeuetest: look for jobs: %v", err)
		}
		jobs = append(jobs, page.Jobs...)
		if cursor = page.Next; cursor == "" {
			break
		}
	}
	slices.SortStableFunc(jobs, func(a, b simplequeue.JobInfo) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), bytes.Compare(a.ID[:], b.ID[:]))
	})
	return jobs
}

// list is the jobs there are, for people, a line each.
func list(t testing.TB, q *simplequeue.SimpleQueue, f simplequeue.Filter) string {
	t.Helper()
	const most, longest = 20, 200
	f.Limit, f.Newest = most+1, true
	jobs, err := q.List(t.Context(), f)
	if err != nil {
		t.Fatalf("simplequeuetest: look for jobs: %v", err)
	}
	if len(jobs) == 0 {
		return " none"
	}
	var b strings.Builder
	for _, j := range jobs[:min(len(jobs), most)] {
		fmt.Fprintf(&b, "\n  %s queue %q kind %q", j.State, j.Queue, j.Kind)
		if j.Reason != "" {
			fmt.Fprintf(&b, " (%s)", j.Reason)
		}
		if !j.RunAt.IsZero() {
			fmt.Fprintf(&b, " due %s", j.RunAt.Format(time.RFC3339))
		}
		if j.UniqueKey != "" {
			fmt.Fprintf(&b, " key %q", j.UniqueKey)
		}
		if j.OrderKey != "" {
			fmt.Fprintf(&b, " order key %q", j.OrderKey)
		}
		if j.FairnessKey != "" {
			fmt.Fprintf(&b, " fairness key %q", j.FairnessKey)
		}
		fmt.Fprintf(&b, " %.*s", longest, j.Payload)
	}
	if len(jobs) > most {
		b.WriteString("\n  and more")
	}
	return b.String()
}
