package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/signal"
	"runtime"
	"runtime/metrics"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
)

// processMain is the main function of a worker or a producer. SIGTERM stops it
// with grace; the end of its standard input, which comes when the program that
// started it dies, at once.
func processMain(s setup) error {
	if s.Procs > 0 {
		runtime.GOMAXPROCS(s.Procs)
	}
	if err := limitMemory(s.SpareMemory); err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(4)
	}()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	w, err := openWitness(ctx, s.Witness, 4)
	if err != nil {
		return err
	}
	defer w.db.Close()
	if err := checkOwnClock(ctx, w, s.ClockOff); err != nil {
		return err
	}
	config, err := pgxpool.ParseConfig(s.URL)
	if err != nil {
		return err
	}
	config.MaxConns = int32(s.Conns)
	config.ConnConfig.RuntimeParams["application_name"] = s.Name
	config.ConnConfig.ConnectTimeout = 3 * time.Second
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return err
	}
	defer pool.Close()
	if s.Role == "producer" {
		return (&producer{setup: s, witness: w, pool: pool}).run(ctx)
	}
	return (&worker{setup: s, witness: w, pool: pool}).run(ctx)
}

// worker is the inside of a worker process.
type worker struct {
	setup    setup
	witness  *witness
	pool     *pgxpool.Pool
	queue    *simplequeue.SimpleQueue
	handlers atomic.Int64 // begun and not returned
	never    atomic.Int64 // those of them that never return
	narrowed narrowed
}

func (w *worker) run(ctx context.Context) (err error) {
	options := simplequeue.Options{
		Name: w.setup.Name, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
		GlobalPermits: w.setup.GlobalPermits, QueuePermits: w.setup.permits(""),
		PollInterval: 200 * time.Millisecond, PollOnly: w.setup.PollOnly,
		HeartbeatInterval: w.setup.Heartbeat, JanitorInterval: 200 * time.Millisecond,
		MaxAttempts: 1000, MaxCrashes: w.setup.MaxCrashes, StuckAfter: w.setup.StuckAfter,
		Backoff: simplequeue.BackoffFunc(func(*simplequeue.Job, error) time.Duration { return 50*time.Millisecond + rand.N(200*time.Millisecond) }),
		Stop:    simplequeue.StopTimeouts{Drain: w.setup.Drain},
		Queues:  map[string]simplequeue.QueueOptions{},
	}
	for _, name := range w.setup.Workloads {
		l := findWorkload(name)
		options.Handlers = append(options.Handlers, w.handler(l))
		options.Queues[name] = simplequeue.QueueOptions{Permits: w.setup.permits(name)}
	}
	if w.queue, err = simplequeue.New(w.pool, options); err != nil {
		return err
	}
	reporting, done := context.WithCancel(context.Background())
	defer done()
	go w.report(reporting)
	if w.setup.ShiftPermits {
		go w.shiftPermits(reporting)
		go w.narrowCrowd(reporting)
	}
	err = w.queue.Run(ctx)
	// A stop may leave the handlers that never return, and nothing else.
	var left *simplequeue.StopError
	if errors.As(err, &left) && left.Unsettled == 0 && left.GivenBack+left.GivenUp <= int(w.never.Load()) {
		return nil
	}
	return err
}

// handler runs a workload's jobs and tells the witness of each run.
func (w *worker) handler(l *workload) simplequeue.Handler {
	var entered, left atomic.Int64
	return simplequeue.Typed(l.name, func(ctx context.Context, job *simplequeue.Job, p payload) error {
		w.handlers.Add(1)
		defer w.handlers.Add(-1)
		// Who has entered before the look at the permits and leaves after it has
		// one of them at that moment.
		before := entered.Add(1)
		defer left.Add(1)
		limit := w.limit(l)
		permits := w.queue.Stats().Queues[l.name].Running
		inside := before - left.Load()
		limit = max(limit, w.limit(l)) // it may have been raised meanwhile
		run, outcome := uuid.New(), runPanicked
		apart := context.WithoutCancel(ctx)
		must(w.witness.starts(apart, run, handlerRun{
			job: job.ID, process: w.setup.Name, queue: job.Queue, attempt: job.Attempt, reprocess: job.ReprocessCount, crash: job.CrashCount,
			inside: int(inside), permits: permits, limit: limit,
		}))
		defer func() { must(w.witness.endsRun(apart, run, outcome)) }()
		err := l.handle(ctx, w, job, p)
		outcome = describe(ctx, err)
		return err
	})
}

// exitMute is the exit status of a process that could not tell the witness.
const exitMute = 5

// must ends the process where the witness cannot be told: a history with gaps
// proves nothing.
func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos: witness:", err)
		os.Exit(exitMute)
	}
}

// describe says what a handler's run came to.
func describe(ctx context.Context, err error) string {
	cause := context.Cause(ctx)
	switch {
	case err == nil && ctx.Err() == nil:
		return runOK
	case err == nil:
		return runLate
	case errors.Is(cause, simplequeue.ErrLeaseLost):
		return runLost
	case errors.Is(cause, simplequeue.ErrShutdown):
		return runShutdown
	case errors.Is(cause, simplequeue.ErrCancelled):
		return runCancelled
	}
	return runError
}

// report tells the witness how the worker is.
func (w *worker) report(ctx context.Context) {
	for pause(ctx, 250*time.Millisecond) {
		s, health := w.queue.Stats(), w.queue.Health()
		r := report{
			process: w.setup.Name, running: s.Running, stuck: s.Stuck, free: s.FreePermits, handlers: int(w.handlers.Load()),
			payloadBytes: s.PayloadBytes, healthy: health.OK, problems: strings.Join(health.Problems, "; "),
			lost: s.LeasesLost, givenOff: s.GivenBack,
			goroutines: runtime.NumGoroutine(), memory: memoryInUse(),
		}
		for _, q := range s.Queues {
			r.inFlight += q.InFlight
			r.permits += q.Running
		}
		if err := w.witness.reports(ctx, r); err != nil && ctx.Err() == nil {
			must(err)
		}
	}
}

// memoryInUse is how many bytes the process has from the system.
func memoryInUse() int64 {
	samples := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(samples)
	return int64(samples[0].Value.Uint64() - samples[1].Value.Uint64())
}

// pause waits, and reports false when ctx has ended.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// work waits for as long as a job says, or until ctx ends.
func work(ctx context.Context, p payload) error {
	if p.Ms > 0 && !pause(ctx, time.Duration(p.Ms)*time.Millisecond) {
		return context.Cause(ctx)
	}
	return nil
}
