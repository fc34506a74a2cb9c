package simplequeue

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/simplequeue/simplequeue/internal/store"
	"github.com/simplequeue/simplequeue/janitor"
)

// A completion without a result is written by the statement for those, with the
// arguments it has always had, also beside one with a result.
func TestCompletionWithoutResultKnowsNothingOfResults(t *testing.T) {
	t.Parallel()
	claims := testClaims(3)
	batch := make([]outcomeOf, len(claims))
	for i, c := range claims {
		c.route = &queueRoute{}
		batch[i] = outcomeOf{claim: c, verdict: verdict{action: actComplete, state: StateCompleted}}
	}
	steps := settleSteps(batch, false)
	if len(steps) != 1 || steps[0].Statement != janitor.Archive(&store.Settle{}).Statement || len(steps[0].Args) != 3 {
		t.Fatalf("steps %+v, want the archive's alone, with ids, nonces and retentions", steps)
	}
	batch[1].verdict.result = "1"
	steps = settleSteps(batch, false)
	if len(steps) != 3 || steps[0].Statement != store.LockClaims {
		t.Fatalf("%d steps with one result among three, want a lock before two", len(steps))
	}
	if plain := steps[1]; plain.Statement != janitor.Archive(&store.Settle{}).Statement || len(plain.Args) != 3 || len(plain.Args[0].([]int64)) != 2 {
		t.Errorf("step %+v, want the archive's for two claims", plain)
	}
}

// resulting runs a test with a completer that has accepted a completion for each
// result.
func resulting(t *testing.T, f *fakeSettler, results []string, test func(t *testing.T, c *completer)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log := slog.New(slog.DiscardHandler)
		stats := &counters{}
		h := &health{}
		f.running, f.written = map[int64]bool{}, map[int64]int{}
		c := &completer{
			db: f, partitions: f, in: make(chan outcomeOf, len(results)), finish: make(chan struct{}), log: log, stats: stats,
			beater: newBeater(&fakeLeaser{}, testInterval, testLease, log, h.loop("heartbeat", testInterval), stats),
			health: h.loop("completer", 0), written: func([]outcomeOf) {},
		}
		for i, claim := range testClaims(len(results)) {
			claim.route = &queueRoute{}
			f.running[claim.id] = true
			c.accept(t.Context(), outcomeOf{claim: claim, verdict: verdict{action: actComplete, state: StateCompleted, result: results[i]}})
		}
		ctx, cancel := context.WithCancel(t.Context())
		go c.run(ctx)
		time.Sleep(time.Minute)
		test(t, c)
		cancel()
		synctest.Wait()
	})
}

// Should the database refuse a result all the same, its job completes without
// it, and the others with theirs.
func TestRefusedResultDoesNotKeepItsJobFromEnding(t *testing.T) {
	bad := strings.Repeat("x", 1000)
	withBad := 0
	f := &fakeSettler{refuse: func(s tried) error {
		if s.results >= 1000 {
			withBad++
			return refused("22P05")
		}
		return nil
	}}
	resulting(t, f, []string{"1", bad, "3"}, func(t *testing.T, c *completer) {
		if n := c.stats.completed.Load(); n != 3 || f.written[2] != 1 || withBad == 0 {
			t.Errorf("%d completed, the bad one written %d times, refused %d times, want 3 and 1", n, f.written[2], withBad)
		}
	})
}

// Large results go in batches that a statement can carry.
func TestLargeResultsGoInSmallerBatches(t *testing.T) {
	results := make([]string, 40)
	for i := range results {
		results[i] = string(bytes.Repeat([]byte("1"), 1<<20))
	}
	most := 0
	f := &fakeSettler{refuse: func(s tried) error { most = max(most, s.results); return nil }}
	resulting(t, f, results, func(t *testing.T, c *completer) {
		if n := c.stats.completed.Load(); n != 40 || most > maxSettleBytes {
			t.Errorf("%d completed, %d bytes at most in a batch, want 40 and at most %d", n, most, maxSettleBytes)
		}
	})
}
