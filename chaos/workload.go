package main

import (
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/simplequeue/simplequeue"
)

// workload is one way to use the queue. Each has a file of its own, which
// registers it, and its jobs have the queue of its name.
type workload struct {
	name string
	// ends are the states in which its jobs may end. Default: completed.
	ends []string
	// permits of its queue in each process, 0 for the usual.
	permits int
	// every is the mean time between two rounds.
	every time.Duration
	// produce makes one round of inserts, with all randomness from r.
	produce func(ctx context.Context, p *producer, r *rand.Rand)
	// handle runs one attempt. The witness has been told that it began.
	handle func(ctx context.Context, w *worker, job *simplequeue.Job, p payload) error
	// check verifies what only this workload promises; nil for nothing.
	check func(h *history) []violation
	// prepare is SQL that is run in the database under test before all else.
	prepare string
	// inTx: its handlers complete their jobs in transactions of their own.
	inTx bool
	// deaf: its handlers do not look at their contexts.
	deaf bool
	// special: only for the scenarios that name it.
	special bool
}

var workloads []*workload

// register adds a workload to all scenarios, or, if it is special, makes it known.
func register(l workload) *workload {
	if l.ends == nil {
		l.ends = []string{"completed"}
	}
	workloads = append(workloads, &l)
	slices.SortFunc(workloads, func(a, b *workload) int { return strings.Compare(a.name, b.name) })
	return &l
}

// findWorkload returns nil if there is none of the name.
func findWorkload(name string) *workload {
	for _, l := range workloads {
		if l.name == name {
			return l
		}
	}
	return nil
}

// ordinary lists the workloads of every scenario.
func ordinary() (names []string) {
	for _, l := range workloads {
		if !l.special {
			names = append(names, l.name)
		}
	}
	return names
}

// handleWork is the handler of a workload that only takes its time.
func handleWork(ctx context.Context, _ *worker, _ *simplequeue.Job, p payload) error {
	return work(ctx, p)
}
