package simplequeue_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/backoff"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// TestTimeoutResolution: the job's timeout wins over the queue's, and that over
// the one of Options; zero inherits and NoTimeout means none at every level.
func TestTimeoutResolution(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	levels := func(value time.Duration) []time.Duration { return []time.Duration{0, simplequeue.NoTimeout, value} }
	type result struct {
		left time.Duration
		has  bool
	}
	var mu sync.Mutex
	got := map[string]result{}
	for i, global := range levels(time.Hour) {
		opts := handler(fmt.Sprintf("%d-*", i), func(ctx context.Context, job *simplequeue.Job) error {
			deadline, ok := ctx.Deadline()
			mu.Lock()
			defer mu.Unlock()
			got[job.Kind] = result{time.Until(deadline), ok}
			return nil
		})
		opts.Timeout, opts.Queues = global, map[string]simplequeue.QueueOptions{}
		for j, queue := range levels(2 * time.Hour) {
			opts.Queues[fmt.Sprintf("%d-%d", i, j)] = simplequeue.QueueOptions{Timeout: queue}
		}
		q := newQueue(t, pool, opts)
		start(t, q)
		for j := range 3 {
			for k, job := range levels(3 * time.Hour) {
				insert(t, q, simplequeue.NewJob{Queue: fmt.Sprintf("%d-%d", i, j), Kind: fmt.Sprintf("%d%d%d", i, j, k), Timeout: job})
			}
		}
	}
	eventually(t, "all jobs have run", func() bool { mu.Lock(); defer mu.Unlock(); return len(got) == 27 })
	for name, r := range got {
		var want time.Duration
		for level := range 3 {
			switch name[level] {
			case '1':
				want = 0
			case '2':
				want = time.Duration(level+1) * time.Hour
			}
		}
		if r.has != (want > 0) || r.has && (r.left > want || r.left < want-time.Minute) {
			t.Errorf("levels %s: deadline %t in %v, want in %v", name, r.has, r.left, want)
		}
	}
}

// TestTimeoutFailsTheAttempt: at the timeout the context ends with the cause
// ErrTimeout, and the attempt counts as failed, and says why.
func TestTimeoutFailsTheAttempt(t *testing.T) {
	t.Parallel()
	causes := make(chan error, 2)
	opts := handler("slow", func(ctx context.Context, _ *simplequeue.Job) error {
		<-ctx.Done()
		causes <- context.Cause(ctx)
		return fmt.Errorf("gave up: %w", ctx.Err())
	})
	opts.Backoff = backoff.Constant(0)
	q := newQueue(t, pgtest.New(t), opts)
	start(t, q)
	info := awaitState(t, q, insert(t, q, simplequeue.NewJob{Queue: "slow", Timeout: 20 * time.Millisecond, MaxAttempts: 2}), simplequeue.StateFailed)
	for range 2 {
		if cause := <-causes; !errors.Is(cause, simplequeue.ErrTimeout) {
			t.Errorf("cause %v, want ErrTimeout", cause)
		}
	}
	if want := "simplequeue: job timed out: gave up: context deadline exceeded"; info.LastError() != want {
		t.Errorf("error %q, want %q", info.LastError(), want)
	}
	eventually(t, "all permits are free", func() bool { return idle(q, 500) })
}

// logRecord keeps what is logged.
type logRecord struct {
	mu    sync.Mutex
	lines []string
}

func (l *logRecord) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, string(p))
	return len(p), nil
}

// with returns the lines that hold all the texts.
func (l *logRecord) with(texts ...string) (found []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.lines {
		all := true
		for _, text := range texts {
			all = all && strings.Contains(line, text)
		}
		if all {
			found = append(found, line)
		}
	}
	return found
}

// TestHandlerThatIgnoresItsContext: it is reported as stuck and its attempt
// recorded as failed, but its permits are held until it really returns, and
// what it returns then has no effect.
func TestHandlerThatIgnoresItsContext(t *testing.T) {
	t.Parallel()
	finish := make(chan struct{})
	var runs gauge
	var logged logRecord
	opts := handler("deaf", func(_ context.Context, job *simplequeue.Job) error {
		runs.enter()
		if job.Attempt == 1 {
			<-finish
		}
		return nil
	})
	opts.GlobalPermits, opts.QueuePermits, opts.Backoff = 4, 1, backoff.Constant(0)
	opts.Timeout, opts.StuckAfter, opts.PollInterval = 20*time.Millisecond, 30*time.Millisecond, 20*time.Millisecond
	opts.Logger = slog.New(slog.NewTextHandler(&logged, nil))
	q := newQueue(t, pgtest.New(t), opts)
	start(t, q)
	last := insert(t, q, simplequeue.NewJob{Queue: "deaf", MaxAttempts: 1})
	if info := awaitState(t, q, last, simplequeue.StateFailed); !strings.Contains(info.LastError(), "handler did not return") {
		t.Errorf("last error %q", info.LastError())
	}
	second := insert(t, q, simplequeue.NewJob{Queue: "deaf", MaxAttempts: 2})
	time.Sleep(100 * time.Millisecond) // for the second to start although the permit is held
	if s := q.Stats(); s.Stuck != 1 || s.FreePermits != 3 || s.Running != 1 || s.Queues["deaf"].Running != 1 {
		t.Errorf("stats %+v, want one stuck job that holds its permits", s)
	}
	if n := runs.now.Load(); n != 1 {
		t.Errorf("%d jobs have started with one permit, which is held", n)
	}
	finish <- struct{}{}
	eventually(t, "the second is stuck", func() bool {
		return q.Stats().Stuck == 1 && runs.now.Load() == 2 && len(logged.with("does not return")) == 2
	})
	finish <- struct{}{}
	awaitState(t, q, second, simplequeue.StateCompleted)
	eventually(t, "all permits are free", func() bool { return idle(q, 4) })
	if got := state(t, q, last); got != simplequeue.StateFailed {
		t.Errorf("the late return made the first job %s", got)
	}
	if lines := logged.with("level=ERROR", "does not return", "job_id="+last.String(), "queue=deaf"); len(lines) != 1 {
		t.Errorf("log lines about the first job: %q, want one", lines)
	}
}

// TestStuckHandlerOfACancelledJob: a job that was cancelled ends as cancelled
// also when its handler ignores that.
func TestStuckHandlerOfACancelledJob(t *testing.T) {
	t.Parallel()
	begun, finish := make(chan struct{}), make(chan struct{})
	opts := handler("deaf", func(context.Context, *simplequeue.Job) error { close(begun); <-finish; return nil })
	opts.StuckAfter = 30 * time.Millisecond
	q := newQueue(t, pgtest.New(t), opts)
	start(t, q)
	defer close(finish)
	id := insert(t, q, simplequeue.NewJob{Queue: "deaf"})
	<-begun
	if got, err := q.Cancel(t.Context(), id, "enough"); err != nil || got != simplequeue.StateCancelling {
		t.Fatalf("Cancel: %s, %v", got, err)
	}
	if info := awaitState(t, q, id, simplequeue.StateCancelled); !strings.Contains(info.LastError(), "did not return") {
		t.Errorf("last error %q", info.LastError())
	}
	eventually(t, "the handler is reported", func() bool { return q.Stats().Stuck == 1 })
}

// TestNegativeStuckAfterWaits: then a handler is never given up on, and what it
// returns after its timeout counts.
func TestNegativeStuckAfterWaits(t *testing.T) {
	t.Parallel()
	finish := make(chan struct{})
	opts := handler("deaf", func(context.Context, *simplequeue.Job) error { <-finish; return nil })
	opts.Timeout, opts.StuckAfter = 5*time.Millisecond, -1
	q := newQueue(t, pgtest.New(t), opts)
	start(t, q)
	id := insert(t, q, simplequeue.NewJob{Queue: "deaf"})
	awaitState(t, q, id, simplequeue.StateRunning)
	time.Sleep(60 * time.Millisecond) // for it to be given up, which must not happen
	if got := state(t, q, id); got != simplequeue.StateRunning || q.Stats().Stuck != 0 {
		t.Errorf("the job is %s, stuck %d, want running and 0", got, q.Stats().Stuck)
	}
	close(finish)
	awaitState(t, q, id, simplequeue.StateCompleted)
}
