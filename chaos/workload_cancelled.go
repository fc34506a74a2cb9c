package main

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"

	"github.com/simplequeue/simplequeue"
)

// Jobs that are cancelled: while they wait, while they run, or not in time.
var cancelled = register(workload{name: "cancelled", ends: []string{"completed", "cancelled"}, every: 120 * time.Millisecond, handle: handleWork})

func init() {
	cancelled.produce = func(ctx context.Context, p *producer, r *rand.Rand) {
		job := simplequeue.NewJob{Payload: payload{Ms: 50 + r.IntN(800)}}
		if r.IntN(2) == 0 {
			job.Delay = 500 * time.Millisecond
		}
		ids := p.add(ctx, cancelled, job)
		if r.IntN(3) == 0 {
			pause(ctx, time.Duration(r.IntN(300))*time.Millisecond)
		}
		for _, id := range ids {
			p.cancel(ctx, id)
		}
	}
}

// cancel cancels a job and notes the answer, if there is one.
func (p *producer) cancel(ctx context.Context, id uuid.UUID) {
	asked, err := p.witness.now(ctx)
	must(err)
	call, stop := context.WithTimeout(ctx, patience)
	defer stop()
	state, err := p.queue.Cancel(call, id, "by chaos")
	if err != nil {
		return // it had ended before, or nobody knows
	}
	must(p.witness.cancelled(ctx, cancelling{job: id, state: string(state), asked: asked}))
}
