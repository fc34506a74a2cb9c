package main

import (
	"slices"
	"time"

	"github.com/google/uuid"
)

// checkOrder: the jobs of an order key are inside one at a time, from the first
// claim to the end, in the order in which their inserts committed, as far as
// producers know it; and so do their handlers run, but for those whose claim was
// taken from them.
func checkOrder(h *history) (found []violation) {
	const name = "order"
	type entry struct {
		insertion
		interval
	}
	inserts := h.insertions()
	keyOf := func(job uuid.UUID) string {
		if in := inserts[job]; in.order != "" {
			return in.workload + "/" + in.order
		}
		return ""
	}
	first, ended := h.lifetimes()
	inside := map[string][]entry{}
	for job, in := range inserts {
		if begin := first[job]; in.order != "" && !begin.IsZero() {
			inside[keyOf(job)] = append(inside[keyOf(job)], entry{in, interval{begin, orElse(ended[job], h.quiet), job}})
		}
	}
	for key, list := range inside {
		intervals := make([]interval, len(list))
		for i, e := range list {
			intervals[i] = e.interval
		}
		if n, at, job := most(intervals); n > 1 {
			found = append(found, h.breach(name, job, "%d jobs of the order key %q were inside at %s", n, key, at.Format(time.RFC3339Nano)))
		}
		slices.SortFunc(list, func(a, b entry) int { return a.begin.Compare(b.begin) })
		for i, later := range list {
			for _, e := range list[:i] {
				if later.before(&e.insertion) {
					found = append(found, h.breach(name, later.job, "job %v of the order key %q was inserted before job %v, and let in after it", later.job, key, e.job))
				}
			}
		}
	}
	runs := map[string][]interval{}
	for _, c := range h.claims() {
		key := keyOf(c.begun.job)
		if key == "" {
			continue
		}
		for _, r := range c.runs {
			end := orElse(r.end, h.quiet)
			if c.ended != nil && (c.reaped || r.end.IsZero()) && c.ended.at.Before(end) {
				end = c.ended.at
			}
			runs[key] = append(runs[key], interval{r.start, end, r.job})
		}
	}
	for key, list := range runs {
		if n, at, job := most(list); n > 1 {
			found = append(found, h.breach(name, job, "%d handlers of the order key %q ran at %s", n, key, at.Format(time.RFC3339Nano)))
		}
	}
	return found
}

// before reports whether the insert is known to have committed before another, or
// stands before it in one call.
func (in *insertion) before(other *insertion) bool {
	if in.call == other.call {
		return in.nth < other.nth
	}
	return in.outcome == acked && in.answered.Before(other.asked)
}

func orElse(t, other time.Time) time.Time {
	if t.IsZero() {
		return other
	}
	return t
}
