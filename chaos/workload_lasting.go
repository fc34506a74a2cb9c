package main

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/simplequeue/simplequeue"
)

// Many jobs that run for seconds at once: where time is turned back, old claims
// of theirs meet new ones with the same numbers. Those that have lost a worker
// are quick: they run one after the other.
var lasting = register(workload{name: "lasting", special: true, every: 25 * time.Millisecond, permits: 100, handle: handleLasting})

func init() {
	lasting.produce = func(ctx context.Context, p *producer, r *rand.Rand) {
		p.add(ctx, lasting, simplequeue.NewJob{Payload: payload{Ms: 2000 + r.IntN(6000)}})
	}
}

func handleLasting(ctx context.Context, _ *worker, job *simplequeue.Job, p payload) error {
	if job.CrashCount > 0 {
		return nil
	}
	return work(ctx, p)
}
