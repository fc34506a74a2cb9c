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
	n := 0
	for _, r := range h.forNothing() {
		if r.outcome != runShutdown {
			n++
		}
	}
	if n > 0 {
		found = append(found, violation{"strict", fmt.Sprintf("%d handlers ran for nothing", n), nil})
	}
	return found
}

// forNothing lists the handlers that ran for nothing: their claim was not ended
// by their own process, or gave the job back.
func (h *history) forNothing() (list []*handlerRun) {
	settled := map[*handlerRun]bool{}
	for _, c := range h.claims() {
		for _, r := range c.runs {
			settled[r] = c.settled() && !r.start.After(c.ended.at)
		}
	}
	for i := range h.runs {
		if r := &h.runs[i]; !settled[r] {
			list = append(list, r)
		}
	}
	return list
}
