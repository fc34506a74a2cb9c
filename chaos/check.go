package main

import (
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
)

// check verifies one invariant of a history. Each returns all violations that it
// finds.
type check struct {
	name string
	of   func(*history) []violation
}

// checks are those that every run must pass; workloads add their own.
var checks = []check{
	{"I1 loss", checkLoss},
	{"I2 fencing", checkFencing},
	{"I2 outcomes", checkOutcomes},
	{"I2 attempts", checkAttempts},
	{"I3 terminal is final", checkTerminal},
	{"I4 recovery", checkRecovery},
	{"I4 lost leases", checkLost},
	{"I5 slots", checkSlots},
	{"I6 limits", checkLimits},
	{"I7 uniqueness", checkUnique},
	{"I7 duplicates", checkDuplicates},
	{"I8 loops", checkLoops},
	{"I8 progress", checkProgress},
	{"I8 service", checkService},
	{"I9 leftovers", checkLeftovers},
	{"I10 clock", checkClock},
	{"growth", checkGrowth},
	{"cancel", checkCancels},
	{"order", checkOrder},
	{"strict", checkStrict},
}

// verify makes all checks.
func verify(h *history) []violation {
	var all []violation
	for _, c := range checks {
		all = append(all, c.of(h)...)
	}
	for _, l := range workloads {
		if l.check != nil {
			all = append(all, l.check(h)...)
		}
	}
	return all
}

// breach is a violation that has to do with a job, with the job's events.
func (h *history) breach(invariant string, job uuid.UUID, format string, args ...any) violation {
	v := violation{Invariant: invariant, Text: fmt.Sprintf(format, args...)}
	type event struct {
		at   time.Time
		text string
	}
	var events []event
	for i := range h.moves {
		if m := &h.moves[i]; m.job == job {
			events = append(events, event{m.at, m.String()})
		}
	}
	for i := range h.runs {
		if r := &h.runs[i]; r.job == job {
			events = append(events, event{r.start, r.String()})
		}
	}
	slices.SortStableFunc(events, func(a, b event) int { return a.at.Compare(b.at) })
	for _, e := range events[:min(len(events), 40)] {
		v.Events = append(v.Events, e.text)
	}
	return v
}
