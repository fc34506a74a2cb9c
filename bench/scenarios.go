package main

import (
	"context"
	"slices"
	"time"
)

// scenario does something with a contestant whose tables are there, and measures
// the part of it that counts. What is in the queue is then worked off, whether
// that is measured or not, so that it can be checked.
type scenario struct {
	name     string
	needs    []feature
	baseline string // the scenario of the same contestant that its rate is compared with; "" for none
	paced    bool   // it inserts -rate jobs a second
	fixed    bool   // it inserts at some other fixed rate; like that of a paced one, its rate is no achievement
	counts   bool   // it counts statements
	setup    func(*config, *Setup)
	run      func(context.Context, *trial) error
}

// scenarios in the order in which they run when all do.
var scenarios = slices.Concat(
	insertScenarios, drainScenarios, steadyScenarios, orderedScenarios, uniqueScenarios, fairScenarios, latencyScenarios, snapshotScenarios,
)

func findScenario(name string) (scenario, bool) {
	i := slices.IndexFunc(scenarios, func(s scenario) bool { return s.name == name })
	if i < 0 {
		return scenario{}, false
	}
	return scenarios[i], true
}

func scenarioNames() []string {
	names := make([]string, len(scenarios))
	for i, s := range scenarios {
		names[i] = s.name
	}
	return names
}

// rank orders scenarios in reports.
func rank(name string) int {
	return slices.IndexFunc(scenarios, func(s scenario) bool { return s.name == name })
}

func seconds(n float64) time.Duration { return time.Duration(n * float64(time.Second)) }
