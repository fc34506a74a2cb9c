package main

import (
	"slices"

	"github.com/google/uuid"
)

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
		case m.entered && isOpen && held == f: // put back
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
// handler came to its end without error while the claim lasted; one whose handler
// did has completed; and a claim that was not reaped was ended by the process
// that made it, and run once.
func checkOutcomes(h *history) (found []violation) {
	const name = "I2 outcomes"
	for _, c := range h.claims() {
		b := c.begun
		if len(c.runs) > 1 && h.rewind == nil {
			found = append(found, h.breach(name, b.job, "claim %d/%d of job %v was run %d times", c.claim, c.nonce, b.job, len(c.runs)))
		}
		if c.ended == nil || c.next == nil {
			continue // lost or never ended: the other checks tell
		}
		completes := false
		for _, r := range c.runs {
			l := findWorkload(r.queue)
			switch {
			case l != nil && l.inTx:
				completes = completes || !r.start.After(c.ended.at) && (r.end.IsZero() || !r.end.Before(c.ended.at))
			case !c.within(r):
			case r.outcome == runLate:
				completes = true
			case r.outcome == runOK:
				if completes = true; !c.reaped && c.ended.process == b.process && c.next.state != "completed" {
					found = append(found, h.breach(name, b.job, "the handler of job %v returned nil, and claim %d/%d left the job in %s as %q", b.job, c.claim, c.nonce, c.next.place, c.next.state))
				}
			}
		}
		if c.next.state == "completed" && !completes {
			found = append(found, h.breach(name, b.job, "job %v was completed by claim %d/%d of %s, whose handler did not come to its end", b.job, c.claim, c.nonce, b.process))
		}
		if !c.reaped && c.ended.process != b.process {
			found = append(found, h.breach(name, b.job, "claim %d/%d of %s was settled by %s", c.claim, c.nonce, b.process, c.ended.process))
		}
	}
	return found
}

// checkAttempts: a job that fails, or whose worker has died, has used an attempt;
// one that was put off, or given back, has not; and one whose handler a stop has
// interrupted is given back.
func checkAttempts(h *history) (found []violation) {
	const name = "I2 attempts"
	for _, c := range h.claims() {
		if c.ended == nil || c.next == nil {
			continue
		}
		b, want := c.begun, c.begun.attempt
		if !c.reaped && (c.next.place == "job_queue" || c.next.place == "job_waiting" && c.next.reason != "retry") {
			want--
		}
		interrupted := slices.ContainsFunc(c.runs, func(r *handlerRun) bool {
			l := findWorkload(r.queue)
			return r.outcome == runShutdown && c.within(r) && (l == nil || !l.inTx)
		})
		if interrupted && c.settled() && c.next.state != "cancelled" {
			found = append(found, h.breach(name, b.job, "claim %d/%d of job %v, interrupted by a stop, was not given back", c.claim, c.nonce, b.job))
		}
		if c.next.attempt != want {
			found = append(found, h.breach(name, b.job, "claim %d/%d of job %v was attempt %d, and left it at attempt %d, want %d", c.claim, c.nonce, b.job, b.attempt, c.next.attempt, want))
		}
	}
	return found
}
