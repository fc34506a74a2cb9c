package main

import "time"

// setupVariable is the environment variable that makes this program a process of
// a run. It holds a setup as JSON.
const setupVariable = "SIMPLEQUEUE_CHAOS_PROCESS"

// setup is what a process is told.
type setup struct {
	Role      string // worker or producer
	Name      string // of the process, and of its connections
	URL       string // of the database under test
	Witness   string // of the witness
	Seed      uint64
	Workloads []string

	Heartbeat     time.Duration
	GlobalPermits int
	MaxCrashes    int
	StuckAfter    time.Duration
	Drain         time.Duration
	Conns         int // of the pool
	PollOnly      bool
	ShiftPermits  bool // change the permits of queues all the time
	Procs         int  // GOMAXPROCS, 0 for the default
	SpareMemory   int  // bytes of address space beyond what the process starts with, 0 for no limit
	// ClockOff is how far the clock of the process is off. It has an effect only
	// in a program built for it.
	ClockOff time.Duration
}

// lease is how long a claim holds beyond its last beat.
func (s *setup) lease() time.Duration { return s.Heartbeat * 5 / 2 }

// permits is how many jobs of a queue a process may run at once.
func (s *setup) permits(queue string) int {
	if l := findWorkload(queue); l != nil && l.permits > 0 {
		return l.permits
	}
	return 10
}

// usual is what processes are told unless a scenario says otherwise.
func usual() setup {
	return setup{
		Heartbeat: 500 * time.Millisecond, GlobalPermits: 120, MaxCrashes: 1000, StuckAfter: time.Minute, Drain: 20 * time.Second, Conns: 4,
	}
}
