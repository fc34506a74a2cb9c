package main

import (
	"context"
	"time"
)

func init() {
	addScenario(scenario{
		name: "blackhole-beats", order: 6, about: "heartbeat connections are cut off without a word, for up to three leases", loses: true,
		workloads: []string{"lasting"}, inject: injectBlackhole(forBeats),
	})
	addScenario(scenario{name: "blackhole-control", order: 6, about: "claims and outcomes are cut off without a word", inject: injectBlackhole(forControl)})
	addScenario(scenario{name: "blackhole", order: 6, about: "one process, or all of them, is cut off without a word", inject: injectBlackhole(anyPurpose)})
	addScenario(scenario{name: "latency", order: 7, about: "the network is late by up to 0.3 s, and stalls for up to 3 s", inject: injectLatency})
	addScenario(scenario{
		name: "pool1", order: 8, about: "pools of one connection, which are now and then reset",
		prepare: func(_ context.Context, s *stage) error { s.setup.Conns = 1; return nil },
		inject:  injectResets,
	})
}

func injectBlackhole(only purpose) func(context.Context, *stage) error {
	names := map[purpose]string{anyPurpose: "everything", forBeats: "beats", forControl: "control"}
	return func(ctx context.Context, s *stage) error {
		victims, note, whose := []*place{s.someone()}, s.fault, "one"
		if s.rand.IntN(3) == 0 {
			victims, whose = s.all(), "all"
			if only != forBeats {
				note = s.outage
			}
		}
		end := note("blackhole of %s, %s", names[only], whose)
		for _, p := range victims {
			p.proxy.set(trouble{only: only, swallow: true})
		}
		pause(ctx, s.between(s.setup.lease()/2, 3*s.setup.lease()))
		for _, p := range victims {
			p.proxy.set(trouble{})
		}
		end()
		pause(ctx, s.between(200*time.Millisecond, 1500*time.Millisecond))
		return nil
	}
}

func injectLatency(ctx context.Context, s *stage) error {
	t, what, victims := trouble{latency: s.between(20*time.Millisecond, 300*time.Millisecond)}, "latency", s.all()
	if s.rand.IntN(3) == 0 {
		t, what, victims = trouble{latency: 3 * time.Second, only: purpose(s.rand.IntN(int(forBeats) + 1))}, "stall", []*place{s.someone()}
	}
	end := s.fault("%s", what)
	for _, p := range victims {
		p.proxy.set(t)
	}
	pause(ctx, s.between(500*time.Millisecond, 3*time.Second))
	for _, p := range victims {
		p.proxy.set(trouble{})
	}
	end()
	pause(ctx, s.between(0, time.Second))
	return nil
}

func injectResets(ctx context.Context, s *stage) error {
	pause(ctx, s.between(200*time.Millisecond, time.Second))
	end := s.fault("reset")
	p := s.all()[s.rand.IntN(len(s.all()))]
	p.proxy.set(trouble{refuse: true})
	pause(ctx, s.between(0, 500*time.Millisecond))
	p.proxy.set(trouble{})
	end()
	return nil
}
