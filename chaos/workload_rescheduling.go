package main

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/simplequeue/simplequeue"
)

// Jobs that put themselves off a few times.
var rescheduling = register(workload{name: "rescheduling", every: 150 * time.Millisecond, handle: handleRescheduling})

func init() {
	rescheduling.produce = func(ctx context.Context, p *producer, r *rand.Rand) {
		p.add(ctx, rescheduling, simplequeue.NewJob{Payload: payload{Again: r.IntN(4)}})
	}
}

func handleRescheduling(ctx context.Context, _ *worker, job *simplequeue.Job, p payload) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if job.ReprocessCount < p.Again {
		return simplequeue.RescheduleAfter(50 * time.Millisecond)
	}
	return work(ctx, p)
}
