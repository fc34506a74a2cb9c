package simplequeue

import (
	"context"
	"slices"
	"time"

	"github.com/simplequeue/simplequeue/internal/store"
)

// lateBook holds outcomes that cannot be written now while others can: somebody
// has locked their rows, or the server fails at them. They hold up nobody, and
// are tried again one by one. It belongs to the completer's goroutine.
type lateBook struct{ open []lateOutcome }

type lateOutcome struct {
	outcomeOf
	at   time.Time     // of the next try
	wait time.Duration // after which comes the next one, if that fails
}

const (
	maxLate   = 10_000
	lateFirst = time.Second
	lateMost  = 30 * time.Second
	lateLimit = time.Second // of a try: the others wait meanwhile
)

// add takes an outcome that is to be tried after a while, unless there are too
// many already.
func (b *lateBook) add(o outcomeOf, doubtful bool, in time.Duration) bool {
	if len(b.open) >= maxLate {
		return false
	}
	o.doubtful = o.doubtful || doubtful
	b.open = append(b.open, lateOutcome{o, time.Now().Add(in), lateFirst})
	return true
}

// timer fires when some outcome is to be tried, never where there is none.
func (b *lateBook) timer() (due <-chan time.Time, stop func()) {
	if len(b.open) == 0 {
		return nil, func() {}
	}
	first := slices.MinFunc(b.open, func(a, b lateOutcome) int { return a.at.Compare(b.at) })
	t := time.NewTimer(time.Until(first.at))
	return t.C, func() { t.Stop() }
}

// take removes the outcomes that are to be looked at now, at most most.
func (b *lateBook) take(most int) (due []lateOutcome) {
	now := time.Now()
	b.open = slices.DeleteFunc(b.open, func(o lateOutcome) bool {
		if len(due) >= most || o.at.After(now) {
			return false
		}
		due = append(due, o)
		return true
	})
	return due
}

// setAside takes the outcomes out of a batch whose rows are locked, and leaves
// them to the late ones. It reports whether there were any.
func (c *completer) setAside(ctx context.Context, batch *[]outcomeOf, doubtful bool) bool {
	locked := c.locked(ctx, *batch)
	n := len(*batch)
	*batch = slices.DeleteFunc(slices.Clone(*batch), func(o outcomeOf) bool {
		return locked[o.claim.id] && c.late.add(o, doubtful, lastLook)
	})
	if n -= len(*batch); n > 0 {
		c.log.WarnContext(ctx, "outcomes wait: somebody has locked the rows of their jobs", "jobs", n)
	}
	return n > 0
}

// locked are the claims of a batch whose rows a transaction has locked. Where it
// cannot be told, it is none.
func (c *completer) locked(ctx context.Context, batch []outcomeOf) map[int64]bool {
	claims := make([]store.Claim, len(batch))
	for i, o := range batch {
		claims[i] = store.Claim{ID: o.claim.id, Nonce: o.claim.nonce}
	}
	seen, err := c.db.Look(ctx, lateLimit, claims)
	if err != nil {
		return nil
	}
	locked := map[int64]bool{}
	for id, sight := range seen {
		locked[id] = sight == store.ClaimLocked
	}
	return locked
}

// writeLate tries the late outcomes whose time has come and whose rows nobody
// has locked, each alone, until one takes too long.
func (c *completer) writeLate(ctx context.Context) {
	due := c.late.take(maxSettle)
	batch := make([]outcomeOf, len(due))
	for i := range due {
		batch[i] = due[i].outcomeOf
	}
	slices.SortFunc(batch, byClaimID)
	locked, slow := c.locked(ctx, batch), false
	for _, o := range due {
		if !locked[o.claim.id] && !slow && ctx.Err() == nil {
			err := c.writeOne(ctx, o.outcomeOf)
			if err == nil {
				continue
			}
			slow = store.TookTooLong(err)
			o.doubtful = o.doubtful || !store.Answered(err) && !store.NotSent(err)
			o.at, o.wait = time.Now().Add(jittered(o.wait)), min(2*o.wait, lateMost)
		} else {
			o.at = time.Now().Add(lastLook)
		}
		c.late.open = append(c.late.open, o)
	}
}

// writeOne writes an outcome, or fails where it has to wait for that, or the
// server fails. One that is refused is dealt with as any other.
func (c *completer) writeOne(ctx context.Context, o outcomeOf) error {
	batch := []outcomeOf{o}
	moved, err := c.write(ctx, batch, c.aside, lateLimit)
	switch {
	case err == nil:
		c.confirm(batch, moved, false)
	case store.Transient(err):
		c.health.report(err)
		return err
	default:
		c.flush(ctx, batch, false)
	}
	return nil
}
