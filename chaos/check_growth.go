package main

import (
	"fmt"
	"time"
)

// What a worker may have more in its last minute than in its first, and how many
// connections beside those of its pool it may have: the engine's own, one for
// heartbeats, one that listens, and one that is being replaced.
const (
	moreGoroutines  = 100
	moreMemory      = 64 << 20
	moreConnections = 3 + 1 + 1 + 1
)

// checkGrowth: a worker that lives for minutes needs no more goroutines and no
// more memory at the end than at the start, and none keeps connections.
func checkGrowth(h *history) (found []violation) {
	const name = "growth"
	byProcess := map[string][]report{}
	for _, r := range h.reports {
		byProcess[r.process] = append(byProcess[r.process], r)
	}
	for process, all := range byProcess {
		first, last := all[0].at, all[len(all)-1].at
		if last.Sub(first) < 3*time.Minute {
			continue
		}
		var atStart, atEnd report
		for _, r := range all {
			to := &atStart
			switch {
			case r.at.After(last.Add(-time.Minute)):
				to = &atEnd
			case r.at.After(first.Add(time.Minute)):
				continue
			}
			to.goroutines, to.memory = max(to.goroutines, r.goroutines), max(to.memory, r.memory)
		}
		if atEnd.goroutines > atStart.goroutines+moreGoroutines || atEnd.memory > atStart.memory+moreMemory {
			found = append(found, violation{name, fmt.Sprintf("%s had at most %d goroutines and %d bytes in its first minute, and %d and %d in its last",
				process, atStart.goroutines, atStart.memory, atEnd.goroutines, atEnd.memory), nil})
		}
	}
	for process, n := range h.connections {
		if most := h.setup.Conns + moreConnections; n > most {
			found = append(found, violation{name, fmt.Sprintf("%s has %d connections at rest, want at most %d", process, n, most), nil})
		}
	}
	return found
}
