package simplequeue

import (
	"cmp"
	"encoding/base64"
	"fmt"
	"hash/fnv"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"

	"github.com/simplequeue/simplequeue/internal/store"
)

// Filter selects jobs. Zero fields select all; what is set must all match.
type Filter struct {
	IDs    []uuid.UUID // nil for all, empty for none
	Queue  string
	Kind   string
	States []State
	// UniqueKey selects jobs that were inserted with the key: in Queue, or in
	// any queue if that is empty.
	UniqueKey   string
	Fingerprint string
	OrderKey    string
	FairnessKey string
	// Metadata selects jobs whose metadata holds all of these pairs.
	Metadata map[string]string
	// CreatedFrom and FinishedFrom are inclusive, CreatedBefore and
	// FinishedBefore exclusive. Jobs that have not ended match no time of finish.
	CreatedFrom, CreatedBefore   time.Time
	FinishedFrom, FinishedBefore time.Time

	// Newest lists the greatest ids first, not the smallest. Ids made by the
	// library grow with time.
	Newest bool
	// Limit is how many jobs a List or a Page has at most. Default 100, at most
	// 10,000. Count has none, and what acts on jobs refuses one.
	Limit int
}

const maxPage = 10_000

// validate returns an [*InvalidFilterError], or nil.
func (f *Filter) validate() error {
	invalid := func(field, value, reason string) error {
		return &InvalidFilterError{Field: field, Value: shorten(value), Reason: reason}
	}
	for _, t := range []struct{ field, value string }{
		{"Queue", f.Queue},
		{"Kind", f.Kind},
		{"UniqueKey", f.UniqueKey},
		{"Fingerprint", f.Fingerprint},
		{"OrderKey", f.OrderKey},
		{"FairnessKey", f.FairnessKey},
	} {
		if problem := textProblem(t.value, maxKey); problem != "" {
			return invalid(t.field, t.value, problem)
		}
	}
	for k, v := range f.Metadata {
		if problem := cmp.Or(textProblem(k, maxPropsBytes), textProblem(v, maxPropsBytes)); problem != "" {
			return invalid("Metadata", k+"="+v, problem)
		}
	}
	for _, s := range f.States {
		if !slices.Contains(allStates, s) {
			return invalid("States", string(s), "is no state of a job")
		}
	}
	for _, r := range []struct {
		name         string
		from, before time.Time
	}{{"Created", f.CreatedFrom, f.CreatedBefore}, {"Finished", f.FinishedFrom, f.FinishedBefore}} {
		for _, t := range []time.Time{r.from, r.before} {
			if problem := yearProblem(t); problem != "" {
				return invalid(r.name, t.String(), problem)
			}
		}
		if !r.from.IsZero() && !r.before.IsZero() && r.before.Before(r.from) {
			return invalid(r.name+"Before", r.before.String(), "lies before "+r.name+"From")
		}
	}
	if f.Limit < 0 || f.Limit > maxPage {
		return invalid("Limit", strconv.Itoa(f.Limit), fmt.Sprintf("must be 1 to %d, or 0 for 100", maxPage))
	}
	return nil
}

var allStates = []State{
	StateWaiting, StatePending, StateRunning, StateCancelling, StateCompleted,
	StateFailed, StateCancelled, StateUnprocessable, StateCritical, StateBadJob,
}

// liveStates are those of a job that has not ended.
var liveStates = allStates[:4]

// narrow reports whether the filter names some jobs, and not just states or
// times of all there are.
func (f *Filter) narrow() bool {
	return f.IDs != nil || f.Queue != "" || f.Kind != "" || f.UniqueKey != "" || f.Fingerprint != "" ||
		f.OrderKey != "" || f.FairnessKey != "" || len(f.Metadata) > 0
}

func (f *Filter) store() store.Filter {
	s := store.Filter{
		Queue: f.Queue, Kind: f.Kind, UniqueKey: f.UniqueKey, Fingerprint: f.Fingerprint,
		OrderKey: f.OrderKey, FairnessKey: f.FairnessKey, Metadata: f.Metadata,
		CreatedFrom: nonZero(f.CreatedFrom), CreatedBefore: nonZero(f.CreatedBefore),
		FinishedFrom: nonZero(f.FinishedFrom), FinishedBefore: nonZero(f.FinishedBefore),
	}
	if f.IDs != nil {
		s.IDs = []string{}
	}
	for _, id := range f.IDs {
		s.IDs = append(s.IDs, id.String())
	}
	for _, state := range f.States {
		s.States = append(s.States, string(state))
	}
	return s
}

// cursor is the text for a place in the pages of this filter.
func (f *Filter) cursor(after string) string {
	if after == "" {
		return ""
	}
	id := uuid.MustParse(after)
	return base64.RawURLEncoding.EncodeToString(append(f.sum(), id[:]...))
}

// place is the inverse of cursor.
func (f *Filter) place(cursor string) (store.Place, error) {
	p := store.Place{Newest: f.Newest}
	if cursor == "" {
		return p, nil
	}
	sum := f.sum()
	b, err := base64.RawURLEncoding.DecodeString(cursor)
	if err != nil || len(b) != len(sum)+len(uuid.UUID{}) {
		return p, &InvalidFilterError{Field: "cursor", Value: shorten(cursor), Reason: "is not one that Page has returned"}
	}
	if !slices.Equal(b[:len(sum)], sum) {
		return p, &InvalidFilterError{Field: "cursor", Value: shorten(cursor), Reason: "was returned for another filter: begin anew with an empty one"}
	}
	p.After = uuid.UUID(b[len(sum):]).String()
	return p, nil
}

// sum tells filters apart. The limit may change from page to page.
func (f *Filter) sum() []byte {
	h := fnv.New32a()
	fmt.Fprintf(h, "1 %q %v %v", []string{f.Queue, f.Kind, f.UniqueKey, f.Fingerprint, f.OrderKey, f.FairnessKey}, f.Newest, f.States)
	fmt.Fprintf(h, " %v %q", f.IDs, f.Metadata)
	for _, t := range []time.Time{f.CreatedFrom, f.CreatedBefore, f.FinishedFrom, f.FinishedBefore} {
		fmt.Fprintf(h, " %d", t.UnixNano())
	}
	return h.Sum(nil)
}
