package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/simplequeue/simplequeue"
)

// Jobs whose payloads are stored apart.
var large = register(workload{name: "large", every: 200 * time.Millisecond, handle: handleLarge})

func init() {
	large.produce = func(ctx context.Context, p *producer, r *rand.Rand) {
		n := 1100 + r.IntN(30_000)
		p.add(ctx, large, simplequeue.NewJob{Payload: payload{Ms: n, Fill: strings.Repeat("x", n)}})
	}
}

// handleLarge makes sure that the payload is the one that was inserted.
func handleLarge(_ context.Context, _ *worker, _ *simplequeue.Job, p payload) error {
	if len(p.Fill) != p.Ms {
		return simplequeue.Unprocessable(errors.New("the payload is not whole"))
	}
	return nil
}
