package main

import (
	"context"
	"syscall"
	"time"
)

func init() {
	addScenario(scenario{
		name: "calm", order: 1, about: "nothing goes wrong, and many jobs run for longer than a lease", strict: true, workloads: []string{"lasting"},
		prepare: calm, inject: injectNothing("nothing"),
	})
	addScenario(scenario{name: "kill9", order: 1, about: "workers and producers are killed: one, the same again, all at once", inject: injectKills})
	addScenario(scenario{name: "sigstop", order: 2, about: "processes are stopped for up to several leases and go on", inject: injectStops})
	addScenario(scenario{
		name: "rolling", order: 3, about: "workers are stopped by SIGTERM and replaced, one after the other", strict: true,
		prepare: calm, inject: injectRolling,
	})
	addScenario(scenario{
		name: "handback", order: 3, about: "workers are stopped by SIGTERM, get little time, and give back what runs", strict: true,
		prepare: func(ctx context.Context, s *stage) error {
			s.setup.Drain = 200 * time.Millisecond
			return calm(ctx, s)
		},
		inject: injectRolling,
	})
	addScenario(scenario{
		name: "slowcpu", order: 16, about: "one core for each process, and handlers that compute all the time", workloads: []string{"busy"},
		prepare: func(_ context.Context, s *stage) error { s.setup.Procs = 1; return nil },
		inject: func(ctx context.Context, s *stage) error {
			end := s.fault("busy core")
			defer end()
			pause(ctx, time.Second)
			return nil
		},
	})
}

// calm gives leases a length that a busy machine does not make workers lose, for
// scenarios in which none may.
func calm(_ context.Context, s *stage) error {
	s.setup.Heartbeat = 2 * time.Second
	return nil
}

func injectKills(ctx context.Context, s *stage) error {
	var end func()
	switch s.rand.IntN(5) {
	case 0: // all at once
		end = s.outage("kill all")
		for _, p := range s.workers {
			s.signal(p, syscall.SIGKILL, true)
		}
		for _, p := range s.workers {
			<-p.process.ended
		}
		pause(ctx, s.between(0, 500*time.Millisecond))
		for _, p := range s.workers {
			if err := s.start(p); err != nil {
				return err
			}
		}
	case 1: // the same one again, soon after its start
		end = s.fault("kill again")
		p := s.someone()
		for range 3 {
			s.kill(p)
			if err := s.start(p); err != nil {
				return err
			}
			pause(ctx, s.between(0, 400*time.Millisecond))
		}
	case 2:
		end = s.fault("kill producer")
		s.kill(s.producers[0])
		if err := s.start(s.producers[0]); err != nil {
			return err
		}
	default:
		end = s.fault("kill one")
		p := s.someone()
		s.kill(p)
		pause(ctx, s.between(0, 500*time.Millisecond))
		if err := s.start(p); err != nil {
			return err
		}
	}
	end()
	pause(ctx, s.between(200*time.Millisecond, 1500*time.Millisecond))
	return nil
}

func injectStops(ctx context.Context, s *stage) error {
	victims, note := []*place{s.someone()}, s.fault
	if s.rand.IntN(4) == 0 {
		victims, note = s.all(), s.outage // the whole fleet
	}
	end := note("stop")
	for _, p := range victims {
		s.signal(p, syscall.SIGSTOP, false)
	}
	pause(ctx, s.between(s.setup.lease()/2, 3*s.setup.lease()))
	s.wake(victims...)
	end()
	pause(ctx, s.between(100*time.Millisecond, 1500*time.Millisecond))
	return nil
}

func injectRolling(ctx context.Context, s *stage) error {
	for _, p := range s.workers {
		end := s.fault("restart")
		if err := s.stop(p); err != nil {
			return err
		}
		if err := s.start(p); err != nil {
			return err
		}
		end()
		if !pause(ctx, s.between(100*time.Millisecond, 800*time.Millisecond)) {
			return nil
		}
	}
	return nil
}
