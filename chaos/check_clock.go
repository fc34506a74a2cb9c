package main

import "github.com/google/uuid"

// checkClock: no job begins before it is due.
func checkClock(h *history) (found []violation) {
	ids := map[uuid.UUID]insertion{}
	tags := map[string]insertion{}
	for _, in := range h.inserts {
		tags[in.tag] = in
	}
	for _, f := range h.finals {
		ids[f.id] = tags[f.tag]
	}
	for _, r := range h.runs {
		in, ok := ids[r.job]
		if !ok || in.delay == 0 {
			continue
		}
		if early := in.asked.Add(in.delay).Sub(r.start); early > 0 {
			found = append(found, h.breach("I10 clock", r.job, "job %v ran %v before it was due", r.job, early))
		}
	}
	return found
}
