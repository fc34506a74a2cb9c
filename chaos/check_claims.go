package main

import "github.com/google/uuid"

// checkFencing: no fence is used twice, no job has two claims at once, and a
// claim ends once.
func checkFencing(h *history) (found []violation) {
	const name = "I2 fencing"
	used, open := map[fence]bool{}, map[uuid.UUID]fence{}
	for i := range h.moves {
		m := &h.moves[i]
		if m.place != running {
			continue
		}
		f := fence{m.claim, m.nonce}
		held, isOpen := open[m.job]
		switch {
		case m.entered && used[f]:
			found = append(found, h.breach(name, m.job, "the fence %d/%d of job %v has been used before", f.claim, f.nonce, m.job))
		case m.entered && isOpen:
			found = append(found, h.breach(name, m.job, "job %v was claimed as %d/%d while claim %d/%d held", m.job, f.claim, f.nonce, held.claim, held.nonce))
		case !m.entered && (!isOpen || held != f):
			found = append(found, h.breach(name, m.job, "claim %d/%d of job %v ended without holding", f.claim, f.nonce, m.job))
		}
		if m.entered {
			used[f], open[m.job] = true, f
		} else {
			delete(open, m.job)
		}
	}
	return found
}

// checkOutcomes: a job that has completed was completed by a claim whose own
// handler came to its end without error, and a claim that was not reaped was
// ended by the process that made it.
func checkOutcomes(h *history) (found []violation) {
	const name = "I2 outcomes"
	ok := map[runKey]bool{}
	for _, r := range h.runs {
		if r.outcome == runOK {
			ok[runKey{r.job, r.process, r.attempt, r.reprocess}] = true
		}
	}
	for _, c := range h.claims() {
		if c.ended == nil || c.next == nil {
			continue // lost or never ended: the other checks tell
		}
		b := c.begun
		if c.next.state == "completed" && !ok[runKey{b.job, b.process, b.attempt, b.reprocess}] {
			found = append(found, h.breach(name, b.job, "job %v was completed by claim %d/%d of %s, whose handler did not come to its end", b.job, c.claim, c.nonce, b.process))
		}
		if !c.reaped && c.ended.process != b.process {
			found = append(found, h.breach(name, b.job, "claim %d/%d of %s was settled by %s", c.claim, c.nonce, b.process, c.ended.process))
		}
	}
	return found
}

// checkAttempts: a job whose handler a stop has interrupted is given back without
// using an attempt, one whose worker died has used it, and none is claimed with
// an attempt that it had not come to.
func checkAttempts(h *history) (found []violation) {
	const name = "I2 attempts"
	interrupted := map[runKey]bool{}
	for _, r := range h.runs {
		if r.outcome == runShutdown {
			interrupted[runKey{r.job, r.process, r.attempt, r.reprocess}] = true
		}
	}
	for _, c := range h.claims() {
		if c.ended == nil || c.next == nil {
			continue
		}
		b := c.begun
		want := b.attempt
		if !c.reaped && c.next.place == "job_queue" {
			want-- // given back
		}
		switch {
		case !c.reaped && interrupted[runKey{b.job, b.process, b.attempt, b.reprocess}] && c.next.place != "job_queue" && c.next.state != "cancelled":
			found = append(found, h.breach(name, b.job, "claim %d/%d of job %v, interrupted by a stop, was not given back", c.claim, c.nonce, b.job))
		case c.next.place != "job_waiting" && c.next.attempt != want, c.next.attempt > b.attempt || c.next.attempt < b.attempt-1:
			found = append(found, h.breach(name, b.job, "claim %d/%d of job %v was attempt %d, and left it at attempt %d", c.claim, c.nonce, b.job, b.attempt, c.next.attempt))
		}
	}
	return found
}
