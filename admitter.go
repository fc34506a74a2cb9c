package simplequeue

import (
	"context"
	"log/slog"
	"time"

	"github.com/simplequeue/simplequeue/internal/store"
)

// admitter lets jobs in that wait at gates. Whatever may open a gate leaves a
// look in the database; the admitter takes looks, a batch at a time, and does
// nothing while there are none. Of several processes one at a time is at it.
type admitter struct {
	db interface {
		Admit(ctx context.Context, limit time.Duration, from int64, most, window int) (store.Admission, error)
	}
	mark  watermark // of looks
	every time.Duration
	soon  chan struct{} // size 1: there may be looks

	fullAt   time.Time     // when a turn began at the start
	fullCost time.Duration // of that
	short    bool          // the last turn found less than a batch
	skipped  bool          // the last turn did not begin at the start

	wake   func(lanes []store.Lane, jobs int)
	due    func(time.Duration)
	log    *slog.Logger
	health *loopHealth
}

const (
	admitBatch = 500
	admitMore  = 5 * time.Millisecond   // until a gate is looked at again, at first
	admitFull  = 100 * time.Millisecond // at most, where there are others than a batch holds
	aLook      = 50 * time.Microsecond  // what a turn takes for each beside looking for it
)

// hint tells the admitter that there may be looks.
func (a *admitter) hint() {
	select {
	case a.soon <- struct{}{}:
	default:
	}
}

func (a *admitter) run(ctx context.Context) {
	retry, again := newRetry(), admitMore
	for ctx.Err() == nil {
		done, err := a.turn(ctx)
		if ctx.Err() != nil {
			return
		}
		a.health.report(err)
		if err != nil {
			if retry.count == 0 {
				a.log.WarnContext(ctx, "admission of waiting jobs failed, trying again", "err", err)
			}
			if retry.wait(ctx) != nil {
				return
			}
			continue
		}
		retry.reset()
		full := done.Looks == admitBatch
		if full && (done.Queued > 0 || done.Again < done.Looks) {
			continue
		}
		rest := jittered(a.every)
		if in := a.fullIn(time.Now()); in > 0 && a.skipped {
			rest = min(rest, in)
		}
		switch {
		case done.Again > 0 && done.Queued > 0:
			again, rest = admitMore, admitMore
		case done.Again > 0: // nothing moves
			again = min(2*max(again, admitMore), a.every)
			if full {
				again = min(again, admitFull)
			}
			rest = jittered(again)
		}
		a.rest(ctx, rest)
	}
}

// turn takes one batch. It begins where those before it have left nothing, so
// as not to walk over what they took, and at the start where that is due.
func (a *admitter) turn(ctx context.Context) (store.Admission, error) {
	now := time.Now()
	from, full := a.mark.after(now), a.fullIn(now) <= 0
	if full {
		from = 0
	}
	done, err := a.db.Admit(ctx, gateLimit, from, admitBatch, fairWindow)
	if err != nil {
		return done, err
	}
	a.short, a.skipped = done.Looks < admitBatch, !full
	if full {
		a.fullAt, a.fullCost = now, max(0, time.Since(now)-time.Duration(done.Looks)*aLook)
	}
	if done.Looks > 0 {
		a.mark.observe(done.Last)
	}
	if done.Queued > 0 {
		a.wake(done.Into, done.Queued)
	}
	if done.Due != nil {
		a.due(*done.Due)
	}
	return done, nil
}

// fullIn is when a turn is to begin at the start, where a look may be that was
// committed late: soon where there is little else to do, but at no more than its
// share of the time.
func (a *admitter) fullIn(now time.Time) time.Duration {
	every := fullEvery
	if a.short {
		every = fullAgain
	}
	return a.fullAt.Add(max(every, min(fullShare*a.fullCost, fullMost))).Sub(now)
}

func (a *admitter) rest(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-a.soon:
	case <-t.C:
	}
}
