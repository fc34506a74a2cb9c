package simplequeue

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/simplequeue/simplequeue/internal/store"
)

// fakeLooker tells of claims by their nonces.
type fakeLooker map[int64]store.Sight

func (f fakeLooker) Look(_ context.Context, _ time.Duration, claims []store.Claim) (map[int64]store.Sight, error) {
	seen := map[int64]store.Sight{}
	for _, c := range claims {
		seen[c.ID] = f[c.Nonce]
	}
	return seen, nil
}

// Of two claims of one id, as a failover can bring about, each is judged by
// itself: one was completed by its handler's transaction, and the transaction of
// the other was rolled back.
func TestHandedClaimsOfOneIDAreLookedAtApart(t *testing.T) {
	t.Parallel()
	claims := testClaims(2)
	claims[0].id, claims[1].id = 7, 7
	completed, open := claims[0], claims[1]
	for _, c := range claims {
		c.route = &queueRoute{}
		c.completing.Store(true)
	}
	for name, batch := range map[string][]*claim{"old first": {completed, open}, "new first": {open, completed}} {
		stats, onward := &counters{}, make(chan outcomeOf, 2)
		h := &handover{
			db: fakeLooker{completed.nonce: store.ClaimGone, open.nonce: store.ClaimFree}, onward: onward, stats: stats,
			beater: newBeater(&fakeLeaser{}, testInterval, testLease, slog.New(slog.DiscardHandler), nil, stats),
			log:    slog.New(slog.DiscardHandler), health: (&health{}).loop("handover", 0), written: func([]outcomeOf) {},
		}
		rest := []outcomeOf{{claim: batch[0], verdict: verdict{action: actComplete}}, {claim: batch[1], verdict: verdict{action: actComplete}}}
		for range 2 {
			rest = h.look(t.Context(), rest)
		}
		if len(rest) != 0 || len(onward) != 1 || stats.completed.Load() != 1 {
			t.Fatalf("%s: %d undecided, %d passed on, %d completed, want 0, 1 and 1", name, len(rest), len(onward), stats.completed.Load())
		}
		if o := <-onward; o.claim != open {
			t.Errorf("%s: the completed one was passed on", name)
		}
	}
}
