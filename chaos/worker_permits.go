package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"time"
)

// shiftPermits changes how many jobs of this and that queue may run, as fast as
// claims are made, so that some arrive when the permits that they were made for
// are gone.
func (w *worker) shiftPermits(ctx context.Context) {
	chance := rand.New(rand.NewPCG(w.setup.Seed, 2))
	for pause(ctx, time.Duration(1+chance.IntN(10))*time.Millisecond) {
		name := w.setup.Workloads[chance.IntN(len(w.setup.Workloads))]
		if name == crowd.name {
			continue
		}
		if err := w.queue.SetQueuePermits(name, 1+chance.IntN(w.setup.permits(name))); err != nil {
			fmt.Fprintln(os.Stderr, "chaos: permits:", err)
		}
	}
}

// narrowed is the limit of the queue of crowds while that is low.
type narrowed struct {
	mu    sync.Mutex
	limit int       // 0 while it is as usual
	since time.Time // when it was set
}

// afterLowering is how long after a limit was lowered a handler may begin under a permit
// that it was given before. Jobs in crowds are long over by then.
const afterLowering = time.Second

// narrowCrowd lowers the permits of the queue of crowds for seconds at a time.
func (w *worker) narrowCrowd(ctx context.Context) {
	chance := rand.New(rand.NewPCG(w.setup.Seed, 3))
	set := func(permits int) {
		if err := w.queue.SetQueuePermits(crowd.name, permits); err != nil {
			fmt.Fprintln(os.Stderr, "chaos: permits:", err)
		}
	}
	note := func(limit int) {
		w.narrowed.mu.Lock()
		defer w.narrowed.mu.Unlock()
		w.narrowed.limit, w.narrowed.since = limit, time.Now()
	}
	for pause(ctx, time.Duration(300+chance.IntN(700))*time.Millisecond) {
		permits := 1 + chance.IntN(3)
		set(permits)
		note(permits)
		pause(ctx, 2*afterLowering)
		note(0)
		set(w.setup.permits(crowd.name))
	}
}

// limit is how many handlers of a workload may be inside now.
func (w *worker) limit(l *workload) int {
	w.narrowed.mu.Lock()
	defer w.narrowed.mu.Unlock()
	if l == crowd && w.narrowed.limit > 0 && time.Since(w.narrowed.since) > afterLowering {
		return w.narrowed.limit
	}
	return w.setup.permits(l.name)
}
