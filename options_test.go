package simplequeue_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/backoff"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// TestOptionsAreChecked: an option that makes no sense is refused by New with an
// error that names it, its value and the way out.
func TestOptionsAreChecked(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	queue := func(o simplequeue.QueueOptions) simplequeue.Options {
		return simplequeue.Options{Queues: map[string]simplequeue.QueueOptions{"q": o}}
	}
	for option, opts := range map[string]simplequeue.Options{
		"Schema":                        {Schema: strings.Repeat("s", 64)},
		"GlobalPermits":                 {GlobalPermits: -1},
		"QueuePermits":                  {QueuePermits: -1},
		"PayloadMemory":                 {PayloadMemory: -1},
		"PermitWait":                    {PermitWait: -time.Second},
		"ClaimThreshold":                {GlobalPermits: 5, ClaimThreshold: 6},
		"PollInterval":                  {PollInterval: time.Microsecond},
		"HeartbeatInterval":             {HeartbeatInterval: time.Millisecond},
		"ReaperInterval":                {ReaperInterval: -1},
		"JanitorInterval":               {JanitorInterval: 25 * time.Hour},
		"MaxAttempts":                   {MaxAttempts: -1},
		"Backoff":                       {Backoff: backoff.Constant(-1)},
		"Timeout":                       {Timeout: -2},
		"MaxCrashes":                    {MaxCrashes: -1},
		"MaxPayloadBytes":               {MaxPayloadBytes: 1 << 30},
		"Retention.Archive":             {Retention: simplequeue.Retention{Archive: -2}},
		"Retention.DeadLetter":          {Retention: simplequeue.Retention{DeadLetter: 11 * 365 * 24 * time.Hour}},
		"Stop.Flush":                    {Stop: simplequeue.StopTimeouts{Flush: -1}},
		"ControlConns":                  {ControlConns: 1},
		`Queues[""]`:                    {Queues: map[string]simplequeue.QueueOptions{"": {}}},
		`Queues["a*"]`:                  {Queues: map[string]simplequeue.QueueOptions{"a*": {}}},
		`Queues["q"].Permits`:           queue(simplequeue.QueueOptions{Permits: -1}),
		`Queues["q"].MaxAttempts`:       queue(simplequeue.QueueOptions{MaxAttempts: 1 << 21}),
		`Queues["q"].Timeout`:           queue(simplequeue.QueueOptions{Timeout: -2}),
		`Queues["q"].Backoff`:           queue(simplequeue.QueueOptions{Backoff: backoff.Exponential{Factor: 0.5}}),
		`Queues["q"].Retention.Archive`: queue(simplequeue.QueueOptions{Retention: simplequeue.Retention{Archive: -3}}),
		`Queues["q"].Retention.DeadLetter`: queue(simplequeue.QueueOptions{
			Retention: simplequeue.Retention{DeadLetter: -3},
		}),
	} {
		_, err := simplequeue.New(pool, opts)
		var invalid *simplequeue.InvalidOptionError
		if !errors.As(err, &invalid) || invalid.Option != option || invalid.Reason == "" || !strings.Contains(err.Error(), "Options."+option+" = ") {
			t.Errorf("%s: error %v, want an InvalidOptionError that names it", option, err)
		}
	}
	for _, conns := range []int{-1, 1, 1025} {
		_, err := simplequeue.New(pool, simplequeue.Options{ControlConns: conns})
		if err == nil || !strings.Contains(err.Error(), "must be 2 to 1024") {
			t.Errorf("ControlConns %d: error %v, want its bounds", conns, err)
		}
	}
	if _, err := simplequeue.New(nil, simplequeue.Options{}); err == nil {
		t.Error("a nil pool was accepted")
	}
	if _, err := simplequeue.New(pool, simplequeue.Options{
		Timeout: simplequeue.NoTimeout, StuckAfter: -1, MaxReschedules: -1, Stop: simplequeue.StopTimeouts{Drain: -1, Cancel: -1},
		Retention: simplequeue.Retention{Archive: simplequeue.KeepNothing, DeadLetter: simplequeue.KeepForever},
	}); err != nil {
		t.Errorf("values with a meaning of their own were refused: %v", err)
	}
}

// TestOptionsAreCopied: New keeps what it was given; a map that the caller goes
// on to change is the caller's.
func TestOptionsAreCopied(t *testing.T) {
	t.Parallel()
	opts := simplequeue.Options{
		Handlers: []simplequeue.Handler{simplequeue.HandlerFunc("q", nothing)},
		Queues:   map[string]simplequeue.QueueOptions{"q": {Permits: 7}},
	}
	q := newQueue(t, pgtest.New(t), opts)
	opts.Queues["q"] = simplequeue.QueueOptions{Permits: 8}
	opts.Handlers[0] = nil
	start(t, q)
	awaitState(t, q, insert(t, q, simplequeue.NewJob{Queue: "q"}), simplequeue.StateCompleted)
	if got := q.Stats().Queues["q"].Permits; got != 7 {
		t.Errorf("%d permits, want 7", got)
	}
}

// TestRunNeedsHandlersAndRunsOnce: a queue without handlers inserts and inspects
// but does not run; one that runs, or has run, does not run again.
func TestRunNeedsHandlersAndRunsOnce(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	if err := newQueue(t, pool, simplequeue.Options{}).Run(t.Context()); err == nil || !strings.Contains(err.Error(), "Options.Handlers") {
		t.Errorf("Run without handlers: %v", err)
	}
	q := newQueue(t, pool, handler("q", nothing))
	stop := start(t, q)
	eventually(t, "it runs", func() bool { return q.Health().OK })
	if err := q.Run(t.Context()); !errors.Is(err, simplequeue.ErrRunning) {
		t.Errorf("second Run: %v", err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if err := q.Run(t.Context()); !errors.Is(err, simplequeue.ErrRunning) {
		t.Errorf("Run after Run: %v", err)
	}
}
