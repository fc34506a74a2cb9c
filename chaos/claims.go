package main

import (
	"time"

	"github.com/google/uuid"
)

// fence is what proves a claim.
type fence struct{ claim, nonce int64 }

// claimed is a claim as the audit knows it.
type claimed struct {
	fence
	begun  *move
	ended  *move // nil while it lasts
	next   *move // where the job went
	reaped bool
	runs   []*handlerRun // of its handler: none if it never began
}

const running = "job_running"

// claims lists all claims, in the order in which they were made, each with its
// runs. A row that is put back where it was, as when a table is emptied around
// it, is of the same claim.
func (h *history) claims() []*claimed {
	var all []*claimed
	open, last := map[uuid.UUID]*claimed{}, map[uuid.UUID]*claimed{}
	for i := range h.moves {
		m := &h.moves[i]
		f := fence{m.claim, m.nonce}
		switch {
		case m.place == running && m.entered:
			if c := open[m.job]; c != nil && c.fence == f {
				continue
			}
			c := &claimed{fence: f, begun: m}
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
	index := indexClaims(all)
	for i := range h.runs {
		r := &h.runs[i]
		if c := index.of(runKey{r.job, r.process, r.attempt, r.reprocess}, r.start); c != nil {
			c.runs = append(c.runs, r)
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

// claimIndex finds claims by their runs.
type claimIndex map[runKey][]*claimed

func indexClaims(all []*claimed) claimIndex {
	x := claimIndex{}
	for _, c := range all {
		k := runKey{c.begun.job, c.begun.process, c.begun.attempt, c.begun.reprocess}
		x[k] = append(x[k], c)
	}
	return x
}

// of returns the claim that somebody who began to run a job at that time had: the
// last one made by then. It is nil where that claim was lost with its timeline.
func (x claimIndex) of(k runKey, at time.Time) (found *claimed) {
	for _, c := range x[k] {
		if !c.begun.at.After(at) {
			found = c
		}
	}
	return found
}

// settled reports whether the process that made the claim has ended it, and has
// not given the job back.
func (c *claimed) settled() bool {
	return c.ended != nil && c.next != nil && !c.reaped && c.ended.process == c.begun.process && c.next.place != "job_queue"
}

// within reports whether a handler's run came to its end before its claim did.
func (c *claimed) within(r *handlerRun) bool {
	return c.ended != nil && !r.end.IsZero() && !r.end.After(c.ended.at)
}

// deaths are the times at which processes ended that did not live to the end.
func (h *history) deaths() map[string]time.Time {
	died := map[string]time.Time{}
	for _, l := range h.lives {
		if !l.end.IsZero() {
			died[l.process] = l.end
		}
	}
	return died
}

// lifetimes are when each job was claimed first, and when it ended.
func (h *history) lifetimes() (first, ended map[uuid.UUID]time.Time) {
	first, ended = map[uuid.UUID]time.Time{}, map[uuid.UUID]time.Time{}
	for i := range h.moves {
		m := &h.moves[i]
		switch {
		case m.entered && m.place == running && first[m.job].IsZero():
			first[m.job] = m.at
		case m.entered && ends[m.place] && ended[m.job].IsZero():
			ended[m.job] = m.at
		}
	}
	return first, ended
}

// insertions are those of the jobs that are there, by their ids.
func (h *history) insertions() map[uuid.UUID]insertion {
	tags, ids := map[string]insertion{}, map[uuid.UUID]insertion{}
	for _, in := range h.inserts {
		tags[in.tag] = in
	}
	for _, f := range h.finals {
		if in, ok := tags[f.tag]; ok {
			ids[f.id] = in
		}
	}
	return ids
}
