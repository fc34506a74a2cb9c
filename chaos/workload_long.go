package main

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/simplequeue/simplequeue"
)

// Jobs that outlive several heartbeats, and leases.
var long = register(workload{name: "long", every: 500 * time.Millisecond, permits: 2, handle: handleWork})

func init() {
	long.produce = func(ctx context.Context, p *producer, r *rand.Rand) {
		p.add(ctx, long, simplequeue.NewJob{Payload: payload{Ms: 700 + r.IntN(2300)}})
	}
}
