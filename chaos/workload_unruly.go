package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/simplequeue/simplequeue"
)

// Jobs whose first attempt misbehaves and whose second is good; but for those
// that never return, of which there are few, for each keeps its permit.
var unruly = register(workload{
	name: "unruly", special: true, ends: []string{"completed", "failed"}, every: 150 * time.Millisecond, deaf: true, handle: handleUnruly, check: checkUnruly,
})

const mostNever = 3

func init() {
	var never atomic.Int64
	unruly.produce = func(ctx context.Context, p *producer, r *rand.Rand) {
		job := simplequeue.NewJob{Payload: payload{Do: []string{"panic", "nil panic", "goexit", "ignore"}[r.IntN(4)]}, Timeout: 300 * time.Millisecond}
		if r.IntN(10) == 0 && never.Add(1) <= mostNever {
			job.Payload, job.MaxAttempts = payload{Do: "never"}, 1
		}
		p.add(ctx, unruly, job)
	}
}

func handleUnruly(_ context.Context, w *worker, job *simplequeue.Job, p payload) error {
	if p.Do == "never" {
		w.never.Add(1)
		select {}
	}
	if job.Attempt > 1 {
		return nil
	}
	switch p.Do {
	case "panic":
		panic("unruly")
	case "nil panic":
		panic(nil)
	case "goexit":
		runtime.Goexit()
	case "ignore":
		<-time.After(1200 * time.Millisecond) // past the timeout, and past the patience after it
	}
	return nil
}

// checkUnruly: only jobs that never return fail, and all the others have used
// two attempts.
func checkUnruly(h *history) (found []violation) {
	failed := 0
	for _, f := range h.finals {
		switch {
		case f.workload != "unruly":
		case f.state == "failed":
			failed++
		case f.attempt < 2:
			found = append(found, h.breach("I2 outcomes", f.id, "unruly job %v completed in attempt %d, want the second at least", f.id, f.attempt))
		}
	}
	if failed > mostNever {
		found = append(found, violation{"I1 loss", fmt.Sprintf("%d unruly jobs failed, want at most %d", failed, mostNever), nil})
	}
	return found
}
