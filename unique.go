package simplequeue

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/simplequeue/simplequeue/internal/store"
)

// Unique says more about a job's unique key than UniqueKey does.
type Unique struct {
	// Fields make the key depend on fields of the payload, in whatever order:
	// the job's kind and the values of the fields are added to UniqueKey, which
	// may be empty. A field is named as in JSON, and one inside others by the
	// path to it: "user.id". "." is the whole payload. The order of an object's
	// fields makes no difference and neither does how a number is written; a
	// field that is missing, null or empty are three things.
	Fields []string
	// Window makes the key depend on the window in which the job is to run: one
	// live job in each hour, or day. It is the window of RunAt as it was given,
	// or of the database's time plus Delay. Whole seconds. Windows of whole days
	// begin at midnight in Zone, of seven days on Mondays; others are counted in
	// UTC, from midnight where they divide a day.
	Window time.Duration
	// Zone is the IANA name of a time zone, for a Window of whole days, like
	// "Europe/Paris". Default UTC. Other names without a "/" are refused: to
	// PostgreSQL CET and the like are abbreviations, without summer time.
	Zone string

	// OnConflict says what an insert does that finds the key taken. Default
	// ConflictSkip.
	OnConflict Conflict
	// MaxDelay bounds how long after its insert the holder of the key may be put
	// off by ConflictReplace and ConflictDebounce, however often. 0 means no
	// bound.
	MaxDelay time.Duration
}

// Conflict is what an insert does that finds its unique key taken by a live job.
// The job it would have added is never added, and its result has the holder's id
// and Duplicate set.
type Conflict int

const (
	// ConflictSkip leaves the holder as it is.
	ConflictSkip Conflict = iota
	// ConflictReplace gives a holder of the same queue that has not started what
	// the new job says: kind, payload, priority, time to run and all else but
	// its id and the time of its insert. One that has started is left alone, also
	// while it waits for its next attempt, or was claimed and given back.
	ConflictReplace
	// ConflictDebounce puts a holder of the same queue that waits for its first
	// run off until the new job's time, if that is later, and changes nothing
	// else. One that is due already is left alone, whether a worker has moved it to
	// the queue yet or not, as is one that waits for a worker that knows its kind.
	ConflictDebounce
)

// hasKey reports whether the job has a unique key.
func (j *NewJob) hasKey() bool { return j.UniqueKey != "" || len(j.Unique.Fields) > 0 }

// derivedKey is how long a part is that the database adds to a key, at most: a
// digest and the beginning of a window, with what sets them apart.
const derivedKey = 1 + 64 + 1 + len("2006-01-02T15:04:05Z")

// deriveKey checks what is unique about a job, and writes what the database
// needs to derive its key: it knows the time.
func (r *ready) deriveKey() (field, value, problem string) {
	j, u := r.job, &r.job.Unique
	switch {
	case u.OnConflict < ConflictSkip || u.OnConflict > ConflictDebounce:
		return "Unique.OnConflict", fmt.Sprint(int(u.OnConflict)), "must be ConflictSkip, ConflictReplace or ConflictDebounce"
	case u.MaxDelay < 0 || u.MaxDelay > maxDelay:
		return "Unique.MaxDelay", u.MaxDelay.String(), "must be 0 to 100 years"
	case u.MaxDelay > 0 && u.OnConflict == ConflictSkip:
		return "Unique.MaxDelay", u.MaxDelay.String(), "needs Unique.OnConflict: a job that is left alone is not put off"
	case u.OnConflict == ConflictDebounce && j.Delay == 0 && j.RunAt.IsZero():
		return "Unique.OnConflict", "ConflictDebounce", "needs a Delay or RunAt to put the holder off to"
	case u.Window < 0 || u.Window > maxDelay || u.Window%time.Second != 0:
		return "Unique.Window", u.Window.String(), "must be whole seconds, at most 100 years, or 0 for none"
	case u.Zone != "" && (u.Window == 0 || u.Window%(24*time.Hour) != 0):
		return "Unique.Zone", u.Zone, "needs a Unique.Window of whole days: shorter ones are counted in UTC"
	case !j.hasKey() && (u.Window != 0 || u.OnConflict != ConflictSkip):
		return "Unique", "", "needs a UniqueKey or Unique.Fields"
	case len(u.Fields) == 0 && u.Window == 0:
		return "", "", ""
	case len(j.UniqueKey) > maxKey-derivedKey:
		return "UniqueKey", j.UniqueKey, fmt.Sprintf("has %d bytes, at most %d are allowed beside Unique.Fields or Unique.Window", len(j.UniqueKey), maxKey-derivedKey)
	}
	spec := uniqueSpec{Window: int64(u.Window / time.Second), Zone: u.Zone}
	if u.Zone != "" {
		if u.Zone != "UTC" && !strings.Contains(u.Zone, "/") {
			return "Unique.Zone", u.Zone, `names no place: write it like "Europe/Paris"`
		}
		if _, err := time.LoadLocation(u.Zone); err != nil {
			return "Unique.Zone", u.Zone, "is no IANA time zone known here: import time/tzdata if the system has none"
		}
	}
	if len(u.Fields) > 0 {
		if r.payload == nil {
			return "Unique.Fields", "", "needs a Payload: Raw has no fields"
		}
		spec.Kind, spec.Fields = &j.Kind, map[string][]json.RawMessage{}
		for _, path := range u.Fields {
			if problem := pathProblem(path); problem != "" {
				return "Unique.Fields", path, problem
			}
			spec.Fields[path] = pick(json.RawMessage(*r.payload), path)
		}
	}
	text, err := json.Marshal(spec)
	if err != nil {
		return "Unique.Fields", "", "do not encode as JSON: " + err.Error()
	}
	s := string(text)
	r.unique = &s
	return "", "", ""
}

// uniqueSpec is what the database derives a key from.
type uniqueSpec struct {
	Kind   *string                      `json:"kind,omitempty"`
	Fields map[string][]json.RawMessage `json:"fields,omitempty"` // none or one value each
	Window int64                        `json:"window,omitempty"` // seconds
	Zone   string                       `json:"zone,omitempty"`
}

// pathProblem says what is wrong with the path to a field.
func pathProblem(path string) string {
	if problem := textProblem(path, maxKey); problem != "" {
		return problem
	}
	if path != "." && (path == "" || strings.HasPrefix(path, ".") || strings.HasSuffix(path, ".") || strings.Contains(path, "..")) {
		return `has an empty part: write it like "user.id"`
	}
	return ""
}

// pick returns the value of the field at path, or none.
func pick(value json.RawMessage, path string) []json.RawMessage {
	if path == "." {
		return []json.RawMessage{value}
	}
	for name := range strings.SplitSeq(path, ".") {
		var object map[string]json.RawMessage
		if json.Unmarshal(value, &object) != nil {
			return []json.RawMessage{} // no object has a field
		}
		field, ok := object[name]
		if !ok {
			return []json.RawMessage{}
		}
		value = field
	}
	return []json.RawMessage{value}
}

// changes are the jobs at the given positions, as what they change their keys'
// holders to.
func (b *batch) changes(at []int) *store.Changes {
	c := &store.Changes{NewJobs: *b.columns(at)}
	c.Payloads, c.Raws = nil, nil
	for i, at := range at {
		r := &b.jobs[at]
		policy := "replace"
		if r.job.Unique.OnConflict == ConflictDebounce {
			policy = "debounce"
		}
		c.Policies = append(c.Policies, policy)
		c.MostUS = append(c.MostUS, positive(r.job.Unique.MaxDelay))
		c.UniqueKeys[i] = &r.key
		c.Payloads, c.Raws = append(c.Payloads, r.payload), append(c.Raws, r.job.Raw)
	}
	return c
}
