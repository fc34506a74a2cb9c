package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/simplequeue/simplequeue"
)

// Jobs of which 30 % fail once or twice, by an error, a panic or a time of their
// own.
var retrying = register(workload{name: "retrying", every: 60 * time.Millisecond, handle: handleRetrying})

func init() {
	retrying.produce = func(ctx context.Context, p *producer, r *rand.Rand) {
		load := payload{Ms: r.IntN(20)}
		if r.IntN(10) < 3 {
			load.Fails, load.Do = 1+r.IntN(2), []string{"error", "panic", "later"}[r.IntN(3)]
		}
		p.add(ctx, retrying, simplequeue.NewJob{Payload: load})
	}
}

func handleRetrying(ctx context.Context, _ *worker, job *simplequeue.Job, p payload) error {
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case job.Attempt > p.Fails:
		return work(ctx, p)
	case p.Do == "panic":
		panic(fmt.Sprint("panics in attempt ", job.Attempt))
	case p.Do == "later":
		return simplequeue.RetryAfter(100*time.Millisecond, errors.New("not yet"))
	}
	return fmt.Errorf("fails attempt %d", job.Attempt)
}
