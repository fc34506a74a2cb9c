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
	for _, r := range h.alive() {
		if !r.healthy {
			found = append(found, violation{name, fmt.Sprintf("%s is not well after the faults: %s", r.process, r.problems), nil})
		}
		if h.quiet.Sub(r.at) > slack {
			found = append(found, violation{name, fmt.Sprintf("%s has not reported since %s", r.process, r.at.Format(time.RFC3339Nano)), nil})
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
