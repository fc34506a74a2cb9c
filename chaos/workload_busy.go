package main

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/simplequeue/simplequeue"
)

// Jobs that compute without a pause, without a look at their context.
var busy = register(workload{name: "busy", special: true, every: 300 * time.Millisecond, permits: 3, deaf: true, handle: handleBusy})

func init() {
	busy.produce = func(ctx context.Context, p *producer, r *rand.Rand) {
		p.add(ctx, busy, simplequeue.NewJob{Payload: payload{Ms: 50 + r.IntN(500)}})
	}
}

func handleBusy(_ context.Context, _ *worker, _ *simplequeue.Job, p payload) error {
	for end := time.Now().Add(time.Duration(p.Ms) * time.Millisecond); time.Now().Before(end); {
		_ = fibonacci(20)
	}
	return nil
}

func fibonacci(n int) int {
	if n < 2 {
		return n
	}
	return fibonacci(n-1) + fibonacci(n-2)
}
