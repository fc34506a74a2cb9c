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
	late  time.Duration // from the death, or the end of the last fault before the reaping
}

// recoveries lists the claims whose worker died while it held them and that were
// taken back.
func (h *history) recoveries() []recovery {
	died := map[string]time.Time{}
	for _, l := range h.lives {
		if !l.end.IsZero() {
			died[l.process] = l.end
		}
	}
	var all []recovery
	for _, c := range h.claims() {
		death, dead := died[c.begun.process]
		if !dead || c.ended == nil || !c.ended.at.After(death) || c.ended.process == c.begun.process {
			continue
		}
		from := death
		for _, f := range h.faults {
			if f.end.After(from) && f.end.Before(c.ended.at) {
				from = f.end
			}
		}
		all = append(all, recovery{c, c.ended.at.Sub(death), c.ended.at.Sub(from)})
	}
	slices.SortFunc(all, func(a, b recovery) int { return cmp.Compare(a.took, b.took) })
	return all
}

// checkRecovery: what a dead worker held is runnable again within its lease, a
// sweep, and the lease that an interruption of the sweeps adds.
func checkRecovery(h *history) (found []violation) {
	bound := 2*h.setup.lease() + 2*h.setup.Heartbeat + slack
	for _, r := range h.recoveries() {
		if r.late > bound {
			b := r.claim.begun
			found = append(found, h.breach("I4 recovery", b.job, "claim %d/%d of %s, which died, was taken back after %v, want at most %v", r.claim.claim, r.claim.nonce, b.process, r.late, bound))
		}
	}
	return found
}
