package main

import (
	"context"
	"time"
)

func init() {
	addScenario(scenario{
		name: "handlers", order: 17, about: "handlers panic, end their goroutine, ignore their context, never return", workloads: []string{"unruly"},
		prepare: func(_ context.Context, s *stage) error {
			// The handlers that never return are waited for at the end.
			s.setup.StuckAfter, s.setup.Drain = 300*time.Millisecond, 3*time.Second
			return nil
		},
		inject: injectNothing("unruly handlers"),
	})
	addScenario(scenario{
		name: "permits", order: 17, about: "the permits of queues change all the time, and panics give them back", workloads: []string{"crowd", "unruly"},
		prepare: func(_ context.Context, s *stage) error {
			s.setup.ShiftPermits, s.setup.StuckAfter, s.setup.Drain = true, 300*time.Millisecond, 3*time.Second
			return nil
		},
		inject: injectNothing("shifting permits"),
	})
	addScenario(scenario{
		name: "deadly", order: 17, about: "handlers kill their process, or allocate until it is killed", workloads: []string{"deadly"}, mortal: true,
		prepare: func(_ context.Context, s *stage) error {
			s.setup.MaxCrashes, s.setup.SpareMemory = deadlyCrashes, 1<<30
			return nil
		},
		inject: injectNothing("deadly handlers"),
	})
}
