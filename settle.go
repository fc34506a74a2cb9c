package simplequeue

import (
	"cmp"
	"slices"

	"github.com/simplequeue/simplequeue/internal/store"
	"github.com/simplequeue/simplequeue/janitor"
)

// apart sorts outcomes by claim id, as statements want them, and moves those
// apart whose id another one has, which statements cannot tell from each other:
// a failover to a standby that missed the last claims sets the ids back.
func apart(batch []outcomeOf) (sorted, again []outcomeOf) {
	slices.SortFunc(batch, byClaimID)
	sorted = batch[:0]
	for _, o := range batch {
		if n := len(sorted); n > 0 && sorted[n-1].claim.id == o.claim.id {
			again = append(again, o)
		} else {
			sorted = append(sorted, o)
		}
	}
	return sorted, again
}

func byClaimID(a, b outcomeOf) int { return cmp.Compare(a.claim.id, b.claim.id) }

// settleSteps are the statements that write a batch that is sorted.
func settleSteps(batch []outcomeOf, aside bool) []store.Step {
	var locks, steps []store.Step
	for len(batch) > 0 {
		// The claims of one chunk are in one table.
		chunk, n := store.Chunk(batch[0].claim.id), 1
		for n < len(batch) && store.Chunk(batch[n].claim.id) == chunk {
			n++
		}
		s := newSettlement(store.Slot(chunk), batch[:n], aside)
		locks, steps = append(locks, s.lock(batch[:n])...), append(steps, s.steps()...)
		batch = batch[n:]
	}
	return append(locks, steps...)
}

// settlement is a batch of claims of one table, by where their jobs go.
type settlement struct {
	archive, dead, aside, waiting, back store.Settle
	results, resultsAside               store.Settle // completed, with a result
	outcomes                            store.Settle // somebody may wait for them, and nothing else is kept
	beaten                              store.Settle // have a lease to forget
	gated                               store.Settle // are inside of an order gate
}

func newSettlement(slot int, batch []outcomeOf, aside bool) *settlement {
	var s settlement
	for _, to := range []*store.Settle{&s.archive, &s.dead, &s.aside, &s.waiting, &s.back, &s.results, &s.resultsAside, &s.outcomes, &s.gated} {
		to.Slot = slot
	}
	for _, o := range batch {
		c, v := o.claim, o.verdict
		to := s.add(o, aside)
		to.ClaimIDs = append(to.ClaimIDs, c.id)
		to.Nonces = append(to.Nonces, c.nonce)
		if to == &s.dead || to == &s.aside || to == &s.waiting || to == &s.outcomes {
			to.States = append(to.States, string(v.state))
			to.Reasons = append(to.Reasons, clean(v.reason, maxErrorText))
			to.Texts = append(to.Texts, text(v.text, maxErrorText))
			to.Stacks = append(to.Stacks, text(v.stack, maxStackText))
			to.Keep = append(to.Keep, c.keepDead())
		}
		if c.job.ordered() {
			s.gated.ClaimIDs = append(s.gated.ClaimIDs, c.id)
			s.gated.Nonces = append(s.gated.Nonces, c.nonce)
			s.gated.Fates = append(s.gated.Fates, v.gateFate())
			s.gated.AfterUS = append(s.gated.AfterUS, microseconds(v.after))
			s.gated.RunAtUS = append(s.gated.RunAtUS, unixMicro(v.at))
		}
		if c.beaten.Load() {
			s.beaten.ClaimIDs = append(s.beaten.ClaimIDs, c.id)
			s.beaten.Nonces = append(s.beaten.Nonces, c.nonce)
		}
	}
	return &s
}

// add chooses where a job goes and adds what only that place needs.
func (s *settlement) add(o outcomeOf, aside bool) *store.Settle {
	c, v := o.claim, o.verdict
	switch {
	case v.action == actGiveBack:
		lane := int16(store.FrontLane)
		if c.suspect {
			lane = store.SuspectLane
		}
		s.back.Lanes = append(s.back.Lanes, lane)
		return &s.back
	case v.state == "":
		s.waiting.AfterUS = append(s.waiting.AfterUS, microseconds(v.after))
		s.waiting.RunAtUS = append(s.waiting.RunAtUS, unixMicro(v.at))
		return &s.waiting
	case c.outcomeOnly(v.state):
		s.outcomes.Results = append(s.outcomes.Results, v.result)
		return &s.outcomes
	case v.result != "":
		to := &s.results
		if aside {
			to = &s.resultsAside
		}
		to.Keep = append(to.Keep, c.keepArchive())
		to.Results = append(to.Results, v.result)
		return to
	case aside:
		return &s.aside
	case v.state == StateCompleted:
		s.archive.Keep = append(s.archive.Keep, c.keepArchive())
		return &s.archive
	}
	return &s.dead
}

// lock locks all rows of the batch, in one order, because a cancel locks several
// rows too. Completed jobs, which do not care about cancels, need no lock where
// one statement ends them all; but what frees the gates of a claim must come
// before another can.
func (s *settlement) lock(batch []outcomeOf) []store.Step {
	if len(s.gated.ClaimIDs) == 0 && (len(s.archive.ClaimIDs) == len(batch) || len(s.results.ClaimIDs) == len(batch)) {
		return nil
	}
	ids, nonces := make([]int64, len(batch)), make([]int64, len(batch))
	for i, o := range batch {
		ids[i], nonces[i] = o.claim.id, o.claim.nonce
	}
	return []store.Step{{Statement: store.LockClaims, Slot: s.archive.Slot, Args: []any{ids, nonces}}}
}

func (s *settlement) steps() (steps []store.Step) {
	add := func(from *store.Settle, step func(*store.Settle) store.Step) {
		if len(from.ClaimIDs) > 0 {
			steps = append(steps, step(from))
		}
	}
	add(&s.gated, store.FreeGates)
	add(&s.archive, janitor.Archive)
	add(&s.results, janitor.ArchiveResults)
	add(&s.resultsAside, store.SettleResultsAside)
	add(&s.outcomes, store.SettleOutcome)
	add(&s.dead, janitor.DeadLetter)
	add(&s.aside, store.SettleAside)
	add(&s.waiting, store.SettleWaiting)
	add(&s.back, store.SettleGiveBack)
	add(&s.beaten, store.ForgetLeases)
	return steps
}
