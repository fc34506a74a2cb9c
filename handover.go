package simplequeue

import (
	"context"
	"log/slog"
	"time"

	"github.com/simplequeue/simplequeue/internal/store"
)

// looker is the part of the store that the handover needs.
type looker interface {
	Look(ctx context.Context, limit time.Duration, claims []store.Claim) (map[int64]store.Sight, error)
}

// handover holds the outcomes of claims whose rows may be locked by transactions
// of their handlers, until these have ended. A settle would wait for such a lock,
// and hold up all that are settled with it. Most transactions have ended when
// their handlers return, so one look decides.
type handover struct {
	db     looker
	in     chan outcomeOf
	finish chan struct{} // closed when no more outcomes will come
	onward chan<- outcomeOf
	beater *beater
	log    *slog.Logger
	stats  *counters
	health *loopHealth

	written func([]outcomeOf) // told of what its handlers' transactions have written
}

const (
	firstLook = 2 * time.Millisecond // between looks at one outcome
	lastLook  = 250 * time.Millisecond
)

// run decides until finish is closed and everything is decided, or ctx ends.
func (h *handover) run(ctx context.Context) {
	var open []outcomeOf
	finish, wait := h.finish, time.Duration(0)
	for {
		var later <-chan time.Time
		var t *time.Timer
		switch {
		case len(open) > 0:
			t = time.NewTimer(wait)
			later = t.C
		case finish == nil && len(h.in) == 0:
			return
		}
		select {
		case o := <-h.in:
			open, wait = append(open, o), firstLook
		case <-later:
			wait = min(max(2*wait, firstLook), lastLook)
		case <-finish:
			finish = nil
		case <-ctx.Done():
		}
		if t != nil {
			t.Stop()
		}
		for n := len(h.in); n > 0 && len(open) < maxSettle; n-- {
			open = append(open, <-h.in)
		}
		if ctx.Err() != nil {
			if len(open) > 0 {
				h.log.ErrorContext(ctx, "stopped before the transactions of handlers had ended", "jobs", len(open))
			}
			return
		}
		open = h.look(ctx, open)
	}
}

// look passes on what is decided and returns what is not.
func (h *handover) look(ctx context.Context, open []outcomeOf) (still []outcomeOf) {
	if len(open) == 0 {
		return nil
	}
	open, still = apart(open)
	claims := make([]store.Claim, 0, len(open))
	for _, o := range open {
		// A handler that was given up may be writing to its transaction at this
		// moment; one that begins to afterwards is refused.
		if o.claim.entering.Load() == 0 {
			claims = append(claims, store.Claim{ID: o.claim.id, Nonce: o.claim.nonce})
		}
	}
	seen, err := h.db.Look(ctx, settleLimit, claims)
	if ctx.Err() == nil {
		h.health.report(err)
	}
	if err != nil {
		return append(open, still...)
	}
	for _, o := range open {
		switch sight, looked := seen[o.claim.id]; {
		case !looked || sight == store.ClaimLocked:
			still = append(still, o)
		case sight == store.ClaimGone && o.claim.completing.Load():
			h.completed(ctx, o)
		default:
			if sight == store.ClaimFree && o.verdict.otherwise != nil {
				o.verdict = *o.verdict.otherwise
			}
			select {
			case h.onward <- o:
			case <-ctx.Done():
			}
		}
	}
	return still
}

// completed ends what the engine holds for a job that its handler has completed.
// (Or has it rolled back, lost the lease since, and not been told? Then the job
// runs elsewhere, and is counted once too often here.)
func (h *handover) completed(ctx context.Context, o outcomeOf) {
	h.beater.remove(o.claim)
	if o.verdict.action != actComplete {
		h.log.WarnContext(ctx, "job completed by its handler's transaction, what the handler returned has no effect",
			"job_id", o.claim.job.ID, "queue", o.claim.job.Queue, "attempt", o.claim.job.Attempt, "err", o.verdict.text)
	}
	o.verdict = verdict{action: actComplete, state: StateCompleted}
	h.stats.count(o)
	h.written([]outcomeOf{o})
}
