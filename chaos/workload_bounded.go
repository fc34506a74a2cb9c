package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/simplequeue/simplequeue"
)

// boundedLimit is how many jobs of the queue "bounded" may live at once.
const boundedLimit = 12

// Jobs of a queue with a limit, which come faster than they run, so that many
// inserts are refused.
var bounded = register(workload{
	name: "bounded", every: 80 * time.Millisecond, permits: 2, handle: handleWork,
	prepare: fmt.Sprintf("SELECT simplequeue.set_queue_limit('bounded', %d)", boundedLimit),
})

func init() {
	bounded.check = checkBounded
	bounded.produce = func(ctx context.Context, p *producer, r *rand.Rand) {
		jobs := make([]simplequeue.NewJob, 1+r.IntN(4))
		for i := range jobs {
			jobs[i].Payload = payload{Ms: 50 + r.IntN(250)}
		}
		p.add(ctx, bounded, jobs...)
	}
}

// checkBounded: no more jobs live at once than the limit allows. A job lives for
// certain from the answer to its insert, or its first claim, to its end.
func checkBounded(h *history) (found []violation) {
	first, ended := h.lifetimes()
	var lives []interval
	for job, in := range h.insertions() {
		if in.workload != bounded.name {
			continue
		}
		begin := orElse(first[job], h.quiet)
		if in.outcome == acked && in.answered.Before(begin) {
			begin = in.answered
		}
		lives = append(lives, interval{begin, orElse(ended[job], h.quiet), job})
	}
	if n, at, job := most(lives); n > boundedLimit {
		found = append(found, h.breach("I6 limits", job, "%d jobs of the queue lived at %s, its limit is %d", n, at.Format(time.RFC3339Nano), boundedLimit))
	}
	return found
}
