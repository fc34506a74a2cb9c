package main

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/simplequeue/simplequeue"
)

// Plain jobs, one by one and many in a call; some ask the pool that the queue
// shares with its handlers.
var plain = register(workload{name: "plain", every: 40 * time.Millisecond, handle: handlePlain})

func init() { plain.produce = producePlain }

func producePlain(ctx context.Context, p *producer, r *rand.Rand) {
	n := 1
	if r.IntN(4) == 0 {
		n = 1 + r.IntN(20)
	}
	jobs := make([]simplequeue.NewJob, n)
	for i := range jobs {
		load := payload{Ms: r.IntN(20)}
		if r.IntN(5) == 0 {
			load.Do = "ask"
		}
		jobs[i] = simplequeue.NewJob{Payload: load, Priority: r.IntN(3)}
	}
	p.add(ctx, plain, jobs...)
}

func handlePlain(ctx context.Context, w *worker, _ *simplequeue.Job, p payload) error {
	if p.Do == "ask" {
		asking, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		if _, err := w.pool.Exec(asking, "SELECT 1"); err != nil {
			return err
		}
	}
	return work(ctx, p)
}
