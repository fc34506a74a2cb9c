package simplequeue

import (
	"context"
	"log/slog"
	"testing"

	"golang.org/x/sync/semaphore"
)

// newTestRunner returns a runner whose outcomes gather in the completer's
// buffer, and a claim for it on a queue of its own.
func newTestRunner(t *testing.T, process func(context.Context, *Job) error) (*runner, *claim) {
	t.Helper()
	opts, err := Options{Handlers: []Handler{HandlerFunc("q", process)}}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	routes, err := newRoutes(&opts)
	if err != nil {
		t.Fatal(err)
	}
	log, stats := slog.New(slog.DiscardHandler), &counters{}
	r := &runner{
		memory: newPayloadMemory(100, &stats.payloadBytes), ctx: t.Context(), flush: t.Context(),
		global: semaphore.NewWeighted(10), permitWait: opts.PermitWait, stuckAfter: opts.StuckAfter,
		completer: &completer{in: make(chan outcomeOf, 10), log: log}, freed: func(*claim) {}, room: func() {},
		log: log, stats: stats,
	}
	c := &claim{job: &Job{Queue: "q", Attempt: 1, MaxAttempts: 3}, route: routes.find("q"), verdict: make(chan error, 1)}
	r.jobs.Add(1)
	return r, c
}

// TestAJobThatIsNotRunLeavesTheWindow: a claim for which there was no permit is
// given back without having waited.
func TestAJobThatIsNotRunLeavesTheWindow(t *testing.T) {
	t.Parallel()
	r, c := newTestRunner(t, func(context.Context, *Job) error { return nil })
	c.route.window = newWindow(1)
	c.route.window.enter(1)
	c.unpermitted = true
	r.run(c)
	if o := <-r.completer.in; o.verdict.action != actGiveBack || c.route.window.room() == 0 {
		t.Errorf("action %v, room for %d, want a job given back and room", o.verdict.action, c.route.window.room())
	}
}

// TestAGrantThatMakesRoomIsTold: the poller may claim more of a queue when the
// last job that could wait has what it waited for, not when its handler returns.
func TestAGrantThatMakesRoomIsTold(t *testing.T) {
	t.Parallel()
	for _, size := range []int{1, maxWindow} {
		told := 0
		toldBefore := -1
		r, c := newTestRunner(t, func(context.Context, *Job) error { return nil })
		c.route.handler = HandlerFunc("q", func(context.Context, *Job) error { toldBefore = told; return nil })
		r.room = func() { told++ }
		if err := r.global.Acquire(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		c.route.window = newWindow(size)
		c.route.window.enter(1)
		r.run(c)
		want := 0
		if size == 1 {
			want = 1
		}
		if told != want || toldBefore != want {
			t.Errorf("window of %d: told %d times, %d of them before the handler ran, want %d", size, told, toldBefore, want)
		}
	}
}
