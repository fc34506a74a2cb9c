package main

import "github.com/google/uuid"

// checkCancels: a job that was cancelled is; one that was asked to stop has been
// cancelled, or completed first, and is never tried again.
func checkCancels(h *history) (found []violation) {
	states := map[uuid.UUID]string{}
	for _, f := range h.finals {
		states[f.id] = f.state
	}
	asked := map[uuid.UUID]cancelling{}
	for _, c := range h.cancels {
		if h.rewind.meets(c.asked, c.answered) {
			continue
		}
		asked[c.job] = c
		s := states[c.job]
		if c.state == "cancelled" && s != "cancelled" || c.state == "cancelling" && s != "cancelled" && s != "completed" {
			found = append(found, h.breach("cancel", c.job, "Cancel of job %v returned %s, and it ended as %s", c.job, c.state, s))
		}
	}
	for _, c := range h.claims() {
		if a, ok := asked[c.begun.job]; ok && c.begun.at.After(a.answered) {
			found = append(found, h.breach("cancel", c.begun.job, "job %v was claimed after Cancel had returned %s", c.begun.job, a.state))
		}
	}
	return found
}
