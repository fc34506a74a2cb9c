package main

import "github.com/google/uuid"

// fence is what proves a claim.
type fence struct{ claim, nonce int64 }

// claimed is a claim as the audit knows it.
type claimed struct {
	fence
	begun  *move
	ended  *move // nil while it lasts
	next   *move // where the job went
	reaped bool
}

const running = "job_running"

// claims lists all claims, in the order in which they were made.
func (h *history) claims() []*claimed {
	var all []*claimed
	open, last := map[uuid.UUID]*claimed{}, map[uuid.UUID]*claimed{}
	for i := range h.moves {
		m := &h.moves[i]
		switch {
		case m.place == running && m.entered:
			c := &claimed{fence: fence{m.claim, m.nonce}, begun: m}
			open[m.job] = c
			all = append(all, c)
		case m.place == running:
			if c := open[m.job]; c != nil {
				c.ended, last[m.job] = m, c
				delete(open, m.job)
			}
		case m.entered:
			if c := last[m.job]; c != nil && c.next == nil {
				c.next = m
				c.reaped = m.crash > c.begun.crash
			}
		}
	}
	return all
}

// runKey names the runs of a claim: no two claims of a job by one process agree
// in it, unless the first was given back unrun.
type runKey struct {
	job                uuid.UUID
	process            string
	attempt, reprocess int
}
