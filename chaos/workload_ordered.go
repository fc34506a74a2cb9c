package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/simplequeue/simplequeue"
)

// Jobs with few order keys, in calls of which several are under way at once. Some
// fail once: their key waits for them. See checkOrder.
var ordered = register(workload{name: "ordered", every: 250 * time.Millisecond, handle: handleFailing})

func init() {
	ordered.produce = func(ctx context.Context, p *producer, r *rand.Rand) {
		var calls sync.WaitGroup
		for range 1 + r.IntN(3) {
			jobs, key := make([]simplequeue.NewJob, 1+r.IntN(3)), fmt.Sprint("key ", r.IntN(4))
			for i := range jobs {
				jobs[i] = simplequeue.NewJob{OrderKey: key, Payload: payload{Ms: r.IntN(30), Fails: r.IntN(6) / 5}}
			}
			calls.Go(func() { p.add(ctx, ordered, jobs...) })
		}
		calls.Wait()
	}
}

// handleFailing fails as many attempts as the job says.
func handleFailing(ctx context.Context, _ *worker, job *simplequeue.Job, p payload) error {
	if job.Attempt <= p.Fails {
		return fmt.Errorf("fails attempt %d", job.Attempt)
	}
	return work(ctx, p)
}
