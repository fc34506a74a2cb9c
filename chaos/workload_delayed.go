package main

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/simplequeue/simplequeue"
)

// Jobs that are due later.
var delayed = register(workload{name: "delayed", every: 100 * time.Millisecond, handle: handleWork})

func init() {
	delayed.produce = func(ctx context.Context, p *producer, r *rand.Rand) {
		p.add(ctx, delayed, simplequeue.NewJob{Delay: time.Duration(1+r.IntN(2000)) * time.Millisecond})
	}
}
