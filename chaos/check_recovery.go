package main

import (
	"cmp"
	"slices"
	"time"
)

// slack is what a busy machine may add to any time.
const slack = 15 * time.Second

// recovery is how long the claim of a dead worker stayed.
type recovery struct {
	claim *claimed
	took  time.Duration // from the death
	late  time.Duration // from the death, or the end of the last outage before the reaping
}

// recoveries lists the claims whose worker died while it held them and that were
// taken back.
func (h *history) recoveries() []recovery {
	died := h.deaths()
	var all []recovery
	for _, c := range h.claims() {
		death, dead := died[c.begun.process]
		if !dead || c.ended == nil || !c.ended.at.After(death) || c.ended.process == c.begun.process {
			continue
		}
		from := death
		for _, f := range h.faults {
			if f.outage && f.end.After(from) && f.end.Before(c.ended.at) {
				from = f.end
			}
		}
		all = append(all, recovery{c, c.ended.at.Sub(death), c.ended.at.Sub(from)})
	}
	slices.SortFunc(all, func(a, b recovery) int { return cmp.Compare(a.took, b.took) })
	return all
}

// usualSlack is what a busy machine may add to the time that half of all cases
// take.
const usualSlack = 2 * time.Second

// checkRecovery: what a dead worker held is runnable again within its lease and a
// sweep, as a rule; where sweeps came late, which makes leases count anew, within
// one lease more.
func checkRecovery(h *history) (found []violation) {
	const name = "I4 recovery"
	bound := 2*h.setup.lease() + 2*h.setup.Heartbeat + slack
	all := h.recoveries()
	for _, r := range all {
		if r.late > bound {
			b := r.claim.begun
			found = append(found, h.breach(name, b.job, "claim %d/%d of %s, which died, was taken back after %v, want at most %v", r.claim.claim, r.claim.nonce, b.process, r.late, bound))
		}
	}
	if len(all) == 0 {
		return found
	}
	slices.SortFunc(all, func(a, b recovery) int { return cmp.Compare(a.late, b.late) })
	usual := h.setup.lease() + h.setup.Heartbeat + usualSlack
	if r := all[len(all)/2]; r.late > usual {
		found = append(found, h.breach(name, r.claim.begun.job, "half of %d claims of workers that died were taken back after %v or more, want at most %v", len(all), r.late, usual))
	}
	return found
}

// checkLost: a handler whose claim was taken from it, in a process that lives, is
// told so with the next heartbeat that comes through.
func checkLost(h *history) (found []violation) {
	const name = "I4 lost leases"
	died := h.deaths()
	patience := 2*h.setup.Heartbeat + usualSlack
	told := false
	for _, c := range h.claims() {
		for _, r := range c.runs {
			told = told || r.outcome == runLost
			if l := findWorkload(r.queue); !c.reaped || l != nil && l.deaf {
				continue
			}
			from := c.ended.at
			for _, f := range h.faults {
				if f.begin.Before(from.Add(patience)) && f.end.After(from) {
					from = f.end
				}
			}
			deadline, end, how := from.Add(patience), r.end, r.outcome
			if end.IsZero() {
				end, how = h.quiet, "nothing"
			}
			if death := died[r.process]; !death.IsZero() && death.Before(end) {
				end = death
			}
			if end.After(deadline) && r.outcome != runLost || end.After(deadline.Add(slack)) {
				found = append(found, h.breach(name, c.begun.job, "a handler of %s ran for %v after its lease was lost, and came to %s", r.process, end.Sub(from), how))
			}
		}
	}
	long := func(f span) bool { return f.end.Sub(f.begin) > 2*h.setup.lease() }
	if h.loses && !told && slices.ContainsFunc(h.faults, long) {
		found = append(found, violation{name, "leases were to be lost, and no handler was told so", nil})
	}
	return found
}
