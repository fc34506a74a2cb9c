package simplequeue_test

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// TestNoJobWaitsForAnotherToEnd: goroutines are used for several jobs, but as
// many handlers run at once as there are permits, whatever the ones before did.
func TestNoJobWaitsForAnotherToEnd(t *testing.T) {
	t.Parallel()
	const quick, together = 300, 100
	var running atomic.Int64
	all := make(chan struct{})
	opts := handler("c", func(ctx context.Context, job *simplequeue.Job) error {
		switch job.Kind {
		case "exit":
			runtime.Goexit()
		case "panic":
			panic("oh")
		case "together":
			if running.Add(1) == together {
				close(all)
			}
			select {
			case <-all:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return nil
	})
	opts.GlobalPermits, opts.QueuePermits, opts.MaxAttempts = together, together, 1
	q := newQueue(t, pgtest.New(t), opts)
	var jobs []simplequeue.NewJob
	for i := range quick {
		jobs = append(jobs, simplequeue.NewJob{Queue: "c", Kind: []string{"", "exit", "panic"}[i%3]})
	}
	// Quick ones among those that wait for one another, and before them.
	jobs = append(jobs, slices.Repeat([]simplequeue.NewJob{{Queue: "c", Kind: "together"}, {Queue: "c", Kind: "exit"}}, together)...)
	if _, err := q.InsertMany(t.Context(), jobs); err != nil {
		t.Fatal(err)
	}
	start(t, q)
	eventually(t, fmt.Sprintf("%d handlers run at once", together), func() bool { return running.Load() == together })
	eventually(t, "all jobs have ended", func() bool {
		s := q.Stats()
		return s.Completed == quick/3+together && s.DeadLettered == quick*2/3+together
	})
}
