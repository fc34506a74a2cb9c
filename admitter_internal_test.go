package simplequeue

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/simplequeue/simplequeue/internal/store"
)

// standingGates are more gates than a batch holds, at which nothing moves.
type standingGates struct{ turns int }

func (g *standingGates) Admit(context.Context, time.Duration, int64, int, int) (store.Admission, error) {
	g.turns++
	return store.Admission{Looks: admitBatch, Again: admitBatch}, nil
}

// Gates that stand still, such as those of paused queues, keep nobody busy,
// however many they are; others behind them still get their turn.
func TestGatesThatStandStillAreLookedAtNowAndThen(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		gates := &standingGates{}
		a := &admitter{db: gates, every: time.Second, soon: make(chan struct{}, 1), log: slog.New(slog.DiscardHandler), health: (&health{}).loop("admitter", time.Second)}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		a.run(ctx)
		if gates.turns < 90 || gates.turns > 120 {
			t.Errorf("%d turns in 10 s, want about 100", gates.turns)
		}
	})
}
