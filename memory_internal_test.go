package simplequeue

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/simplequeue/simplequeue/internal/store"
)

// TestPayloadMemoryIsTakenAndGivenBack: what does not fit is not taken, a payload
// larger than all there is takes all there is, who gives up its wait leaves
// nothing behind, and who gives its share back has no payload any more.
func TestPayloadMemoryIsTakenAndGivenBack(t *testing.T) {
	t.Parallel()
	var used atomic.Int64
	m := newPayloadMemory(100, &used)
	claimOf := func(bytes int64) *claim {
		return &claim{job: &Job{}, payloadBytes: bytes}
	}
	a, b, large := claimOf(60), claimOf(60), claimOf(1000)
	first, again := m.tryTake(a), m.tryTake(a)
	if !first || !again || m.tryTake(b) || used.Load() != 60 {
		t.Fatalf("%d bytes in use, want the first claim's 60", used.Load())
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.take(gone, large); err == nil {
		t.Fatal("memory was taken although there was none")
	}
	a.fetched(store.Payload{JSON: []byte("1")})
	if a.apart() || string(a.full().Payload) != "1" || a.job.Payload != nil {
		t.Errorf("with its payload: %+v, without: %+v", a.full(), a.job)
	}
	m.giveBack(a)
	if a.whole.Load() != nil || used.Load() != 0 {
		t.Errorf("given back: payload %v, %d bytes in use", a.whole.Load(), used.Load())
	}
	if err := m.take(t.Context(), large); err != nil || used.Load() != 100 || m.tryTake(b) {
		t.Errorf("the large one: %v, %d bytes in use, want all 100", err, used.Load())
	}
	m.giveBack(large)
	m.giveBack(b) // which never took any
	if !m.tryTake(b) || used.Load() != 60 {
		t.Errorf("%d bytes in use at the end, want 60", used.Load())
	}
}

// TestWindowClosesWhereMemoryIsShort: of any number of jobs that find no memory
// few stay, and those that were turned away cost the others nothing.
func TestWindowClosesWhereMemoryIsShort(t *testing.T) {
	t.Parallel()
	w := newWindow(maxWindow)
	w.enter(100)
	if w.room() < maxWindow-100 {
		t.Fatalf("room for %d where nothing is short", w.room())
	}
	stayed := 0
	for range 100 {
		if w.stay() {
			stayed++
		}
	}
	if stayed != firstWindow || w.room() != 0 {
		t.Errorf("%d of 100 stay, room for %d more, want %d and 0", stayed, w.room(), firstWindow)
	}
	if !w.leave(true) || w.room() != 2 || w.leave(true) {
		t.Errorf("after two grants there is room for %d", w.room())
	}
	for range firstWindow - 2 {
		w.leave(false)
	}
	if w.room() != 1 {
		t.Errorf("after waits in vain there is room for %d, want 1", w.room())
	}
}

// TestTextsOfAnOutcomeAreCutWhenItIsTaken: an outcome that waits to be written
// does not hold a payload in its error's text.
func TestTextsOfAnOutcomeAreCutWhenItIsTaken(t *testing.T) {
	t.Parallel()
	c := &completer{in: make(chan outcomeOf, 1)}
	long := strings.Repeat("x", 1<<20)
	c.accept(t.Context(), outcomeOf{claim: &claim{job: &Job{}}, verdict: verdict{text: long, reason: long}})
	if o := <-c.in; len(o.verdict.text) > maxErrorText || len(o.verdict.reason) > maxErrorText {
		t.Errorf("an error of %d and a reason of %d bytes wait", len(o.verdict.text), len(o.verdict.reason))
	}
}

// TestNamesNobodyServesAreNotKept: there is no end of names of queues that other
// programs serve.
func TestNamesNobodyServesAreNotKept(t *testing.T) {
	t.Parallel()
	opts, err := Options{Handlers: []Handler{HandlerFunc("mine.*", nil)}}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	r, err := newRoutes(&opts)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"theirs", "his", "mine.1", "hers", "mine.1"} {
		if served := r.find(name) != nil; served != strings.HasPrefix(name, "mine.") {
			t.Errorf("%s is served: %v", name, served)
		}
	}
	if len(r.queues) != 1 {
		t.Errorf("%d names are kept, want 1", len(r.queues))
	}
}
