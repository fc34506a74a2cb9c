package main

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/simplequeue/simplequeue"
)

// Many jobs that run for seconds at once: where time is turned back, old claims
// of theirs meet new ones with the same numbers.
var lasting = register(workload{name: "lasting", special: true, every: 30 * time.Millisecond, permits: 100, handle: handleWork})

func init() {
	lasting.produce = func(ctx context.Context, p *producer, r *rand.Rand) {
		p.add(ctx, lasting, simplequeue.NewJob{Payload: payload{Ms: 1000 + r.IntN(3000)}})
	}
}
