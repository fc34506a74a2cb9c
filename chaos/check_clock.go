package main

import "github.com/google/uuid"

// checkClock: no job begins before it is due, and none that is put off, by a
// delay, a retry or a reschedule, is runnable before.
func checkClock(h *history) (found []violation) {
	const name = "I10 clock"
	ids := h.insertions()
	for i := range h.runs {
		r := &h.runs[i]
		in, ok := ids[r.job]
		if !ok || in.delay == 0 {
			continue
		}
		if early := in.asked.Add(in.delay).Sub(r.start); early > 0 {
			found = append(found, h.breach(name, r.job, "job %v ran %v before it was due", r.job, early))
		}
	}
	waits := map[uuid.UUID]*move{} // the rows that have left job_waiting last
	for i := range h.moves {
		m := &h.moves[i]
		if w := waits[m.job]; w != nil && m.entered && m.place == "job_queue" {
			if early := w.due.Sub(w.at); early > 0 {
				found = append(found, h.breach(name, m.job, "job %v (%s) was made runnable %v before it was due", m.job, w.reason, early))
			}
		}
		if delete(waits, m.job); m.place == "job_waiting" && !m.entered && !m.due.IsZero() {
			waits[m.job] = m
		}
	}
	return found
}
