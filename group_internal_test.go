package simplequeue

import (
	"context"
	"strings"
	"testing"
)

// A group holds what one statement may, in jobs and in bytes, and takes those
// who have waited longest. What is large by itself goes without a group.
func TestGroupIsBounded(t *testing.T) {
	t.Parallel()
	call := func(jobs, payload int) *groupCall {
		b := &batch{plain: true, jobs: make([]ready, jobs)}
		for i := range b.jobs {
			b.jobs[i].job, b.jobs[i].size = &NewJob{Queue: "a"}, payload
		}
		return newGroupCall(b)
	}
	for _, c := range []struct {
		name          string
		jobs, payload int
		calls         []int // of the groups that are taken
	}{
		{"few", 1, 10, []int{60}},
		{"many jobs", 150, 10, []int{33, 27}},
		{"large jobs", 1, 1 << 20, []int{7, 7, 7, 7, 7, 7, 7, 7, 4}},
	} {
		g := newGrouper(nil)
		g.wanted, g.unwanted = context.WithCancel(t.Context())
		for range 60 {
			g.pending = append(g.pending, call(c.jobs, c.payload))
		}
		order := g.pending[:len(g.pending):len(g.pending)]
		order = append([]*groupCall(nil), order...)
		for _, want := range c.calls {
			f := g.take(func() {})
			if len(f.calls) != want || f.calls[0] != order[0] {
				t.Errorf("%s: took %d calls, the first in its turn: %v, want %d", c.name, len(f.calls), f.calls[0] == order[0], want)
			}
			order = order[len(f.calls):]
		}
		if f := g.take(func() {}); f != nil || g.wanted.Err() == nil {
			t.Errorf("%s: something is left, or wanted", c.name)
		}
	}
	g := newGrouper(nil)
	props := strings.Repeat("x", groupBytes)
	large := call(1, 1).batch
	large.jobs[0].props = &props
	keyed := call(1, 1).batch
	keyed.plain = false
	for name, b := range map[string]*batch{"large": call(1, groupBytes).batch, "large properties": large, "many": call(insertCopy, 1).batch, "keyed": keyed} {
		if g.suits(b) {
			t.Errorf("%s: goes into a group", name)
		}
	}
	if !g.suits(call(insertCopy-1, 1).batch) {
		t.Error("a short list goes without a group")
	}
}
