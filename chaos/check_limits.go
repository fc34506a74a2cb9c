package main

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
)

// alive are the last reports of the workers that lived when it was quiet.
func (h *history) alive() []report {
	last := map[string]report{}
	for _, r := range h.reports {
		last[r.process] = r
	}
	for _, l := range h.lives {
		if !l.end.IsZero() && l.end.Before(h.quiet) {
			delete(last, l.process)
		}
	}
	var all []report
	for _, r := range last {
		all = append(all, r)
	}
	return all
}

// checkSlots: when all is quiet, no slot and no byte is taken but those of
// handlers that have not returned, and these are counted as stuck.
func checkSlots(h *history) (found []violation) {
	for _, r := range h.alive() {
		if r.running != r.handlers || r.stuck != r.handlers || r.inFlight != r.handlers || r.permits != r.handlers || r.free != h.setup.GlobalPermits-r.handlers ||
			(r.handlers == 0 && r.payloadBytes != 0) {
			found = append(found, violation{"I5 slots", fmt.Sprintf(
				"%s at rest has %d handlers, and says running %d, stuck %d, in flight %d, permits of queues %d, free permits %d of %d, payload bytes %d",
				r.process, r.handlers, r.running, r.stuck, r.inFlight, r.permits, r.free, h.setup.GlobalPermits, r.payloadBytes), nil})
		}
	}
	return found
}

// checkLimits: no process runs more jobs of a queue, or in all, than it has
// permits, and no handler runs without one.
func checkLimits(h *history) (found []violation) {
	for i := range h.runs {
		if r := &h.runs[i]; r.inside > r.permits {
			found = append(found, h.breach("I6 limits", r.job, "%s ran %d jobs of %s, with %d permits taken", r.process, r.inside, r.queue, r.permits))
		}
		if r := &h.runs[i]; r.limit > 0 && r.inside > r.limit {
			found = append(found, h.breach("I6 limits", r.job, "%s ran %d jobs of %s, with permits lowered to %d", r.process, r.inside, r.queue, r.limit))
		}
	}
	died := h.deaths()
	type place struct{ process, queue string }
	all := map[place][]interval{}
	for i := range h.runs {
		r := &h.runs[i]
		end := r.end
		if end.IsZero() {
			if end = died[r.process]; end.IsZero() {
				end = h.quiet
			}
		}
		iv := interval{r.start, end, r.job}
		all[place{r.process, r.queue}] = append(all[place{r.process, r.queue}], iv)
		all[place{r.process, ""}] = append(all[place{r.process, ""}], iv)
	}
	for p, runs := range all {
		limit, what := h.setup.GlobalPermits, "jobs in all"
		if p.queue != "" {
			limit, what = h.setup.permits(p.queue), "jobs of "+p.queue
		}
		if n, at, job := most(runs); n > limit {
			found = append(found, h.breach("I6 limits", job, "%s ran %d %s at %s, permits are %d", p.process, n, what, at.Format(time.RFC3339Nano), limit))
		}
	}
	return found
}

// interval is a time in which a job ran, or lived.
type interval struct {
	begin, end time.Time
	job        uuid.UUID
}

// most is how many of the intervals overlap at most, when first, and whose was
// the last to begin then. One that ends when another begins does not overlap it.
func most(all []interval) (n int, at time.Time, job uuid.UUID) {
	type edge struct {
		at   time.Time
		step int
		job  uuid.UUID
	}
	var edges []edge
	for _, iv := range all {
		if iv.end.After(iv.begin) {
			edges = append(edges, edge{iv.begin, 1, iv.job}, edge{iv.end, -1, iv.job})
		}
	}
	slices.SortFunc(edges, func(a, b edge) int { return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.step, b.step)) })
	now := 0
	for _, e := range edges {
		if now += e.step; now > n {
			n, at, job = now, e.at, e.job
		}
	}
	return n, at, job
}
