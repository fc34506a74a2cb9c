package model

import (
	"testing"
	"time"
)

// With all guards no order of events breaks a promise.
func TestNoOrderOfEventsBreaksAPromise(t *testing.T) {
	t.Parallel()
	for _, w := range Worlds {
		t.Run(w.Name, func(t *testing.T) {
			t.Parallel()
			began := time.Now()
			r := Explore(w, Rules{})
			if r.Broken != "" {
				t.Errorf("%v", r)
			}
			if r.States < 100 {
				t.Errorf("only %d states", r.States)
			}
			t.Logf("%d states in %v", r.States, time.Since(began).Round(time.Millisecond))
		})
	}
}

// Each guard is needed: without it the explorer finds the events that break the
// promise that the guard is there for.
func TestEachGuardIsNeeded(t *testing.T) {
	t.Parallel()
	listed := map[Guard]bool{}
	for _, g := range Guards {
		listed[g.Guard] = true
		t.Run(g.Text, func(t *testing.T) {
			t.Parallel()
			r := Explore(g.World, Without(g.Guard))
			if r.Broken != g.Breaks {
				t.Fatalf("without it in %s: %v\nwant: %s", g.Where, r, g.Breaks)
			}
			t.Logf("without it in %s: %v", g.Where, r)
		})
	}
	for g := range numGuards {
		if !listed[g] {
			t.Errorf("guard %d is not in the list", g)
		}
	}
}

// A trace that is found leads to what it says.
func TestTracesCanBeReplayed(t *testing.T) {
	t.Parallel()
	r := Explore(plain, Without(FenceOfSettle))
	s := plain.Start()
	broken := Invariant("")
	for _, a := range r.Trace {
		found := false
		for _, step := range plain.Next(s, Without(FenceOfSettle)) {
			if step.Action == a {
				s, broken, found = step.State, step.Broken, true
			}
		}
		if !found {
			t.Fatalf("no step %v", a)
		}
	}
	if broken != r.Broken || broken == "" {
		t.Errorf("the trace breaks %q, want %q", broken, r.Broken)
	}
}
