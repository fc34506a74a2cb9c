package main

import (
	"context"
	"fmt"
	"time"
)

var steadyScenarios = []scenario{
	{name: "steady", run: steady},
	{name: "fail", needs: []feature{retries}, baseline: "steady", setup: failing, run: fail},
	{name: "scheduled", needs: []feature{delays}, baseline: "steady", run: scheduled},
	{name: "history", needs: []feature{history}, baseline: "steady", run: withHistory},
	{name: "queues", needs: []feature{queues}, baseline: "steady", setup: manyQueues, run: steadyQueues},
	{name: "priorities", needs: []feature{priorities}, baseline: "steady", run: steadyPriorities},
	{name: "processes-1", needs: []feature{processes}, baseline: "steady", setup: processCount(1), run: steady},
	{name: "processes-2", needs: []feature{processes}, baseline: "steady", setup: processCount(2), run: steady},
	{name: "processes-4", needs: []feature{processes}, baseline: "steady", setup: processCount(4), run: steady},
	{name: "processes-8", needs: []feature{processes}, baseline: "steady", setup: processCount(8), run: steady},
	{name: "long", needs: []feature{leases}, fixed: true, counts: true, setup: holding, run: long},
}

// steady: producers and workers, both flat out.
func steady(ctx context.Context, t *trial) error {
	return t.steadyFor(ctx, seconds(t.seconds))
}

// steadyFor runs tasks for as long as it is measured.
func (t *trial) steadyFor(ctx context.Context, d time.Duration, tasks ...func(context.Context) error) error {
	t.latency = true
	for range producers {
		tasks = append(tasks, t.produce)
	}
	return t.withWorkers(ctx, func(ctx context.Context) error {
		if err := t.load(ctx, d, tasks...); err != nil {
			return err
		}
		return t.settle(ctx)
	})
}

// failPercent is how many attempts fail where some do.
const failPercent = 30

func failing(_ *config, s *Setup) { s.Fail = failPercent }

// fail: steady, but some attempts fail and are tried again a second later.
func fail(ctx context.Context, t *trial) error {
	defer t.noteAttempts()
	return t.steadyFor(ctx, seconds(t.seconds))
}

// noteAttempts notes the attempts for each job, failed ones among them.
func (t *trial) noteAttempts() {
	t.extra["attempts_per_job"] = float64(t.ledger.attempts.Load()) / float64(max(1, t.ledger.done.Load()))
}

// scheduled: steady, beside many jobs that are due in an hour and later.
func scheduled(ctx context.Context, t *trial) error {
	for from := 0; from < t.scheduled; from += t.call {
		jobs := make([]Job, min(t.call, t.scheduled-from))
		for i := range jobs {
			jobs[i] = t.job(from + i)
			jobs[i].Delay = time.Hour + time.Duration(from+i)*time.Millisecond
		}
		if err := t.contestant.Insert(ctx, jobs); err != nil {
			return fmt.Errorf("insert scheduled: %w", err)
		}
	}
	if err := t.vacuum(ctx); err != nil {
		return err
	}
	return steady(ctx, t)
}

// withHistory: steady, beside many finished jobs.
func withHistory(ctx context.Context, t *trial) error {
	if err := t.contestant.(historian).FillHistory(ctx, t.history); err != nil {
		return fmt.Errorf("fill history: %w", err)
	}
	if err := t.vacuum(ctx); err != nil {
		return err
	}
	return steady(ctx, t)
}

func manyQueues(c *config, s *Setup) {
	s.Queues = nil
	for i := range c.queues {
		s.Queues = append(s.Queues, fmt.Sprintf("%s-%04d", benchQueue, i))
	}
}

// steadyQueues: steady, with jobs in every tenth queue of those served.
func steadyQueues(ctx context.Context, t *trial) error {
	t.shape = func(n int, job *Job) {
		busy := (len(t.setup.Queues) + 9) / 10
		job.Queue = t.setup.Queues[n%busy*10]
	}
	return steady(ctx, t)
}

// steadyPriorities: steady, with a tenth of the jobs at each priority.
func steadyPriorities(ctx context.Context, t *trial) error {
	t.shape = func(n int, job *Job) { job.Priority = n % 10 }
	return steady(ctx, t)
}

// processCount divides connections as it does permits, but leaves each process
// enough to work with.
func processCount(n int) func(*config, *Setup) {
	return func(_ *config, s *Setup) { s.Processes, s.Conns = n, max(4, s.Conns/n) }
}

func holding(c *config, s *Setup) { s.Hold = seconds(c.longSeconds) }

// long: jobs that all run at once for long; what the contestant says to the
// server meanwhile.
func long(ctx context.Context, t *trial) error {
	return t.withWorkers(ctx, func(ctx context.Context) error {
		if err := t.insert(ctx, t.longJobs); err != nil {
			return err
		}
		first := time.Now()
		for t.ledger.attempts.Load() < int64(t.longJobs) {
			if err := wait(ctx, time.Millisecond); err != nil {
				return err
			}
			if time.Since(first) > t.setup.Hold {
				return fmt.Errorf("of %d jobs only %d run at once", t.longJobs, t.ledger.attempts.Load())
			}
		}
		// What is measured begins when all run and have renewed their leases for
		// the first time, and ends before the first is done.
		if err := wait(ctx, min(10*time.Second, t.setup.Hold/4)); err != nil {
			return err
		}
		left := time.Until(first.Add(t.setup.Hold)) * 9 / 10
		t.measured.jobs = int64(t.longJobs)
		if err := t.begin(ctx, t.ledger.done.Load, left); err != nil {
			return err
		}
		if err := wait(ctx, left); err != nil {
			return err
		}
		if err := t.end(ctx); err != nil {
			return err
		}
		return t.settle(ctx)
	})
}
