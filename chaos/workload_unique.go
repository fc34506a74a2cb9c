package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/simplequeue/simplequeue"
)

// Jobs with few keys, so that most inserts meet a holder, in calls of one or
// several, and some fail once: the key is held through it. The queue of their
// fingerprint is looked at by the reaper.
var unique = register(workload{name: "unique", every: 60 * time.Millisecond, handle: handleFailing})

func init() {
	unique.produce = func(ctx context.Context, p *producer, r *rand.Rand) {
		jobs := make([]simplequeue.NewJob, 1+r.IntN(3))
		for i := range jobs {
			jobs[i] = simplequeue.NewJob{
				UniqueKey: fmt.Sprint("key ", r.IntN(5)), UniqueGlobal: false, Fingerprint: "hot",
				Payload: payload{Ms: r.IntN(100), Fails: r.IntN(2)},
			}
		}
		p.add(ctx, unique, jobs...)
	}
}
