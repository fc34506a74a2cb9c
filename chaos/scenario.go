package main

import (
	"context"
	"slices"
)

// scenario is a way to go wrong.
type scenario struct {
	name  string
	order int // of importance, and of a run of all
	about string
	// workloads are run beside the ordinary ones.
	workloads []string
	// strict: no worker dies or is cut off for long, so no job may be taken from
	// one, and none may run for nothing.
	strict bool
	// loses: workers that live lose leases, and have to tell their handlers.
	loses bool
	// mortal: processes die by themselves and are started again.
	mortal bool

	// missing tells why the scenario cannot be run here; nil or "" if it can.
	missing func() string
	// server starts a server of the scenario's own, in place of the common one.
	server func(ctx context.Context, s *stage) error
	// prepare is called when the database is there and no process runs yet.
	prepare func(ctx context.Context, s *stage) error
	// inject makes faults, and undoes them before it returns. It is called again
	// and again until ctx ends.
	inject func(ctx context.Context, s *stage) error
}

var scenarios []*scenario

func addScenario(s scenario) {
	scenarios = append(scenarios, &s)
	slices.SortStableFunc(scenarios, func(a, b *scenario) int { return a.order - b.order })
}

func findScenario(name string) *scenario {
	for _, s := range scenarios {
		if s.name == name {
			return s
		}
	}
	return nil
}

func scenarioNames() (names []string) {
	for _, s := range scenarios {
		names = append(names, s.name)
	}
	return names
}

// notHere is why a scenario cannot be run on this machine.
type notHere string

func (e notHere) Error() string { return string(e) }
