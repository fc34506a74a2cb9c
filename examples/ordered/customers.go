package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/simplequeue/simplequeue"
)

// customers are the endpoints to which events go.
type customers struct {
	mu        sync.Mutex
	stdout    io.Writer
	delivered map[string][]int // numbers of events, by customer
}

func newCustomers(stdout io.Writer) *customers {
	return &customers{stdout: stdout, delivered: map[string][]int{}}
}

// deliver is the handler. Grace's endpoint fails now and then; Edsger's refuses
// one event for good.
func (c *customers) deliver(ctx context.Context, job *simplequeue.Job, e Event) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(5 * time.Millisecond): // the network
	}
	switch {
	case e.Customer == "grace" && e.Number%2 == 0 && job.Attempt == 1:
		return errors.New("503 service unavailable") // tried again; what is behind it waits
	case e.Customer == "edsger" && e.Number == 3:
		return simplequeue.Critical(errors.New("410 gone"))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.delivered[e.Customer] = append(c.delivered[e.Customer], e.Number)
	fmt.Fprintf(c.stdout, "%s: %d. %s (attempt %d)\n", e.Customer, e.Number, e.What, job.Attempt)
	return nil
}

// say writes a line between those of the handlers.
func (c *customers) say(to io.Writer, format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fmt.Fprintf(to, format, args...)
}
