package main

import "fmt"

// checkStrict: where no worker dies or is cut off, no job is taken from its
// worker, and none has used an attempt for nothing.
func checkStrict(h *history) (found []violation) {
	if !h.strict {
		return nil
	}
	for _, c := range h.claims() {
		if c.reaped {
			found = append(found, h.breach("strict", c.begun.job, "claim %d/%d of %s was reaped although its worker was well", c.claim, c.nonce, c.begun.process))
		}
	}
	for _, f := range h.finals {
		if f.crash > 0 || f.lost > 0 {
			found = append(found, h.breach("strict", f.id, "job %v has crash count %d and %d lost workers", f.id, f.crash, f.lost))
		}
	}
	if n := h.reruns() - h.interrupted(); n > 0 {
		found = append(found, violation{"strict", fmt.Sprintf("%d handlers ran for nothing", n), nil})
	}
	return found
}

// interrupted is how many handlers a stop has interrupted.
func (h *history) interrupted() (n int) {
	for _, r := range h.runs {
		if r.outcome == runShutdown {
			n++
		}
	}
	return n
}

// reruns is how many handlers ran for nothing: their claim was not ended by
// their own process, or gave the job back.
func (h *history) reruns() (n int) {
	settled := map[runKey]bool{}
	for _, c := range h.claims() {
		if b := c.begun; c.ended != nil && c.next != nil && !c.reaped && c.ended.process == b.process && c.next.place != "job_queue" {
			settled[runKey{b.job, b.process, b.attempt, b.reprocess}] = true
		}
	}
	for _, r := range h.runs {
		if !settled[runKey{r.job, r.process, r.attempt, r.reprocess}] {
			n++
		}
	}
	return n
}
