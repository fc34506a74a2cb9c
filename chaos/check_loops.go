package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// checkLoops: no process ended by itself, and when it is quiet each worker that
// lives is well and says so.
func checkLoops(h *history) (found []violation) {
	const name = "I8 loops"
	for _, l := range h.lives {
		if l.unexpected {
			found = append(found, violation{name, fmt.Sprintf("%s ended by itself at %s: %s", l.process, l.end.Format(time.RFC3339Nano), l.how), nil})
		}
	}
	reported := map[string]bool{}
	for _, r := range h.alive() {
		reported[r.process] = true
		if !r.healthy {
			found = append(found, violation{name, fmt.Sprintf("%s is not well after the faults: %s", r.process, r.problems), nil})
		}
		if h.quiet.Sub(r.at) > slack {
			found = append(found, violation{name, fmt.Sprintf("%s has not reported since %s", r.process, r.at.Format(time.RFC3339Nano)), nil})
		}
	}
	for _, l := range h.lives {
		lives := l.end.IsZero() || !l.end.Before(h.quiet)
		if lives && strings.HasPrefix(l.process, "w") && !reported[l.process] && h.quiet.Sub(l.start) > slack {
			found = append(found, violation{name, fmt.Sprintf("%s, started at %s, has never reported", l.process, l.start.Format(time.RFC3339Nano)), nil})
		}
	}
	return found
}

// checkProgress: jobs that somebody else has locked keep no worker from claiming
// others.
func checkProgress(h *history) (found []violation) {
	claims := h.claims()
	for _, f := range h.faults {
		middle := f.begin.Add(f.end.Sub(f.begin) / 2)
		if f.what != rowsLocked || f.end.Sub(f.begin) < 2*time.Second {
			continue
		}
		for _, l := range h.lives {
			worked := slices.ContainsFunc(claims, func(c *claimed) bool {
				return c.begun.process == l.process && c.begun.at.After(middle) && c.begun.at.Before(f.end)
			})
			if strings.HasPrefix(l.process, "worker") && l.start.Before(f.begin) && (l.end.IsZero() || l.end.After(f.end)) && !worked {
				found = append(found, violation{"I8 progress", fmt.Sprintf("%s claimed nothing while rows were locked, from %s to %s", l.process, middle.Format(time.RFC3339Nano), f.end.Format(time.RFC3339Nano)), nil})
			}
		}
	}
	return found
}

// firstService is how long after an outage the first job may complete.
const firstService = 5 * time.Second

// servedAfter is how long after the end of an outage the first job completed, for
// the outage after which that took longest. An outage that another one followed
// before does not count.
func (h *history) servedAfter() (longest time.Duration, any bool) {
	var completed []time.Time
	for i := range h.moves {
		if m := &h.moves[i]; m.entered && ends[m.place] && m.state == "completed" {
			completed = append(completed, m.at)
		}
	}
	for i, f := range h.faults {
		if !f.outage {
			continue
		}
		first, until := h.quiet, h.quiet
		if at := slices.IndexFunc(completed, f.end.Before); at >= 0 {
			first = completed[at]
		}
		for _, g := range h.faults[i+1:] {
			if g.outage {
				until = g.begin
				break
			}
		}
		if !until.Before(first) {
			longest, any = max(longest, first.Sub(f.end)), true
		}
	}
	return longest, any
}

// checkService: soon after an outage jobs complete again.
func checkService(h *history) (found []violation) {
	if took, any := h.servedAfter(); any && took > firstService+slack {
		found = append(found, violation{"I8 service", fmt.Sprintf("the first job after an outage completed %v after it, want at most %v", took, firstService+slack), nil})
	}
	return found
}
