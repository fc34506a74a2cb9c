package main

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"

	"github.com/simplequeue/simplequeue"
)

// Jobs with ids that the producer chose: an insert that failed is repeated with
// its ids until it is answered, and some are repeated although they were.
var chosen = register(workload{name: "chosen", every: 120 * time.Millisecond, handle: handleWork})

func init() { chosen.produce = produceChosen }

func produceChosen(ctx context.Context, p *producer, r *rand.Rand) {
	jobs := make([]simplequeue.NewJob, 1+r.IntN(3))
	for i := range jobs {
		jobs[i].ID = uuid.Must(uuid.NewV7())
	}
	all := p.announce(ctx, chosen, jobs)
	insert := func() ([]simplequeue.Inserted, error) {
		call, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		return p.queue.InsertMany(call, jobs)
	}
	results, err := insert()
	for err != nil && pause(ctx, 100*time.Millisecond) {
		results, err = insert()
	}
	p.conclude(ctx, all, results, nil)
	if r.IntN(5) == 0 {
		pause(ctx, time.Duration(r.IntN(500))*time.Millisecond) // its job may have ended by now
		_, _ = insert()                                         // which must change nothing, whatever it answers
	}
}
