package main

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/simplequeue/simplequeue"
)

// Short jobs that come in crowds, so that claims take as many as there are
// permits for.
var crowd = register(workload{name: "crowd", special: true, every: 100 * time.Millisecond, handle: handleWork})

func init() {
	crowd.produce = func(ctx context.Context, p *producer, r *rand.Rand) {
		jobs := make([]simplequeue.NewJob, 10+r.IntN(30))
		for i := range jobs {
			jobs[i].Payload = payload{Ms: r.IntN(60)}
		}
		p.add(ctx, crowd, jobs...)
	}
}
