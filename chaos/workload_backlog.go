package main

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/simplequeue/simplequeue"
)

// Jobs that come faster than their few permits let them run, so that some always
// lie in the queue.
var backlog = register(workload{name: "backlog", special: true, every: 50 * time.Millisecond, permits: 2, handle: handleWork})

func init() {
	backlog.produce = func(ctx context.Context, p *producer, r *rand.Rand) {
		p.add(ctx, backlog, simplequeue.NewJob{Payload: payload{Ms: 200 + r.IntN(400)}})
	}
}
