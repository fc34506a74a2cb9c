package simplequeue_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// stepRuns is what steps have run.
type stepRuns struct {
	mu   sync.Mutex
	runs []string
}

func (r *stepRuns) add(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.runs = append(r.runs, name)
}

func (r *stepRuns) list() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.runs, " ")
}

// step runs a step that returns its name and the attempt it ran in.
func (r *stepRuns) step(ctx context.Context, job *simplequeue.Job, name string) (string, error) {
	return simplequeue.Step(ctx, job, name, func(context.Context) (string, error) {
		r.add(name)
		return fmt.Sprint(name, " in ", job.Attempt), nil
	})
}

// Each step runs once, whatever becomes of the attempts, and its value is there
// in the later ones; beside it the payload stays what it is, large or small; and
// nothing is left when the job has ended, either way.
func TestStepsRunOnce(t *testing.T) {
	t.Parallel()
	for _, end := range []simplequeue.State{simplequeue.StateCompleted, simplequeue.StateCritical} {
		for _, size := range []int{0, 10, 3000} {
			t.Run(fmt.Sprint(end, size), func(t *testing.T) {
				t.Parallel()
				pool := pgtest.New(t)
				var r stepRuns
				payload := strings.Repeat("x", size)
				q := newQueue(t, pool, handler("steps", func(ctx context.Context, job *simplequeue.Job) error {
					if size > 0 && string(job.Payload) != `"`+payload+`"` || size == 0 && job.Payload != nil {
						return simplequeue.Critical(fmt.Errorf("payload %.40s", job.Payload))
					}
					a, errA := r.step(ctx, job, "a")
					again, errAgain := r.step(ctx, job, "a")
					if err := errors.Join(errA, errAgain); err != nil {
						return err
					}
					if job.ReprocessCount == 0 {
						return simplequeue.RescheduleAfter(0)
					}
					b, err := r.step(ctx, job, "b")
					if err != nil {
						return err
					}
					if job.Attempt == 1 {
						return simplequeue.RetryAfter(0, errors.New("again"))
					}
					if a != "a in 1" || again != a || b != "b in 1" {
						return simplequeue.Critical(fmt.Errorf("steps returned %q, %q and %q", a, again, b))
					}
					if end == simplequeue.StateCritical {
						return simplequeue.Critical(errors.New("as planned"))
					}
					return nil
				}))
				start(t, q)
				job := simplequeue.NewJob{Queue: "steps"}
				if size > 0 {
					job.Payload = payload
				}
				info := awaitEnd(t, q, insert(t, q, job))
				if info.State != end || r.list() != "a b" || info.Attempt != 2 {
					t.Errorf("%s after %s in %d attempts: %s", info.State, r.list(), info.Attempt, info.LastError())
				}
				if n := countRows(t, pool, "job_payload"); n != 0 {
					t.Errorf("%d payloads are left behind", n)
				}
			})
		}
	}
}

// Checkpoints and steps of a job leave each other alone, in either order.
func TestStepsBesideCheckpoints(t *testing.T) {
	t.Parallel()
	var r stepRuns
	sizes := []int{10, 3000, 10, 0, 3000, 0}
	q := newQueue(t, pgtest.New(t), handler("steps", func(ctx context.Context, job *simplequeue.Job) error {
		if job.Attempt > 1 {
			if size := sizes[job.Attempt-2]; len(job.Raw) != size {
				return simplequeue.Critical(fmt.Errorf("attempt %d: %d bytes, want %d", job.Attempt, len(job.Raw), size))
			}
		}
		if job.Attempt > len(sizes) {
			return nil
		}
		var raw []byte
		if size := sizes[job.Attempt-1]; size > 0 {
			raw = make([]byte, size)
		}
		if job.Attempt%2 == 0 {
			if err := job.Checkpoint(ctx, nil, raw); err != nil {
				return err
			}
		}
		for i := range job.Attempt {
			if got, err := r.step(ctx, job, fmt.Sprint("step", i)); err != nil || got != fmt.Sprint("step", i, " in ", i+1) {
				return simplequeue.Critical(fmt.Errorf("attempt %d: step%d returned %q, %w", job.Attempt, i, got, err))
			}
		}
		if job.Attempt%2 == 1 {
			if err := job.Checkpoint(ctx, nil, raw); err != nil {
				return err
			}
		}
		return simplequeue.RetryAfter(0, errors.New("go on"))
	}))
	start(t, q)
	info := awaitEnd(t, q, insert(t, q, simplequeue.NewJob{Queue: "steps", MaxAttempts: len(sizes) + 1}))
	if info.State != simplequeue.StateCompleted || r.list() != "step0 step1 step2 step3 step4 step5" {
		t.Errorf("%s after %s: %s", info.State, r.list(), info.LastError())
	}
}

// A step that fails stores nothing and is tried again; one whose value cannot be
// stored says so.
func TestStepsThatFail(t *testing.T) {
	t.Parallel()
	boom := errors.New("boom")
	q := newQueue(t, pgtest.New(t), handler("steps", func(ctx context.Context, job *simplequeue.Job) error {
		ran := 0
		flaky := func(context.Context) (int, error) {
			if ran++; ran == 1 {
				return 0, boom
			}
			return ran, nil
		}
		if _, err := simplequeue.Step(ctx, job, "flaky", flaky); !errors.Is(err, boom) {
			return simplequeue.Critical(fmt.Errorf("a failed step: %w", err))
		}
		if n, err := simplequeue.Step(ctx, job, "flaky", flaky); err != nil || n != 2 {
			return simplequeue.Critical(fmt.Errorf("the step again: %d, %w", n, err))
		}
		if _, err := simplequeue.Step(ctx, job, "flaky", func(context.Context) (string, error) { return "", nil }); err == nil {
			return simplequeue.Critical(errors.New("a step's value decodes into another type"))
		}
		text := func(s string) func(context.Context) (string, error) {
			return func(context.Context) (string, error) { return s, nil }
		}
		half := strings.Repeat("x", 600_000)
		if _, err := simplequeue.Step(ctx, job, "half", text(half)); err != nil {
			return simplequeue.Critical(err)
		}
		for what, step := range map[string]func() (string, error){
			"no name":     func() (string, error) { return simplequeue.Step(ctx, job, "", text("")) },
			"a long name": func() (string, error) { return simplequeue.Step(ctx, job, strings.Repeat("x", 129), text("")) },
			"a NUL name":  func() (string, error) { return simplequeue.Step(ctx, job, "\x00", text("")) },
			"a NUL":       func() (string, error) { return simplequeue.Step(ctx, job, "nul", text("\x00")) },
			"numbers": func() (string, error) {
				_, err := simplequeue.Step(ctx, job, "numbers", func(context.Context) (json.RawMessage, error) {
					return json.RawMessage("[" + strings.Repeat("1e100000,", 4) + "1e50000]"), nil
				})
				return "", err
			},
			"all together": func() (string, error) { return simplequeue.Step(ctx, job, "other half", text(half)) },
		} {
			_, err := step()
			var invalid *simplequeue.InvalidValueError
			if !errors.As(err, &invalid) || !strings.Contains(invalid.Name, "step") {
				return simplequeue.Critical(fmt.Errorf("%s: %w", what, err))
			}
		}
		ended, cancel := context.WithCancelCause(ctx)
		cancel(boom)
		if _, err := simplequeue.Step(ended, job, "late", text("")); !errors.Is(err, boom) {
			return simplequeue.Critical(fmt.Errorf("a step in a context that has ended: %w", err))
		}
		return nil
	}))
	start(t, q)
	if info := awaitEnd(t, q, insert(t, q, simplequeue.NewJob{Queue: "steps"})); info.State != simplequeue.StateCompleted {
		t.Errorf("%s: %s", info.State, info.LastError())
	}
	if _, err := simplequeue.Step(t.Context(), &simplequeue.Job{}, "a", func(context.Context) (int, error) { return 1, nil }); !errors.Is(err, simplequeue.ErrLeaseLost) {
		t.Errorf("a step of a job that nobody runs: %v", err)
	}
}

// Steps of one job may run at the same time.
func TestConcurrentSteps(t *testing.T) {
	t.Parallel()
	var ran atomic.Int64
	names := make([]string, 20)
	for i := range names {
		names[i] = fmt.Sprint("step", i)
	}
	q := newQueue(t, pgtest.New(t), handler("steps", func(ctx context.Context, job *simplequeue.Job) error {
		var wg sync.WaitGroup
		errs := make(chan error, 2*len(names))
		for i, name := range names {
			wg.Go(func() {
				got, err := simplequeue.Step(ctx, job, name, func(context.Context) (string, error) {
					ran.Add(1)
					return name, nil
				})
				if err == nil && got != name {
					err = fmt.Errorf("%s returned %s", name, got)
				}
				errs <- err
			})
			if i%5 == 0 && job.Attempt == 1 {
				wg.Go(func() { errs <- job.Checkpoint(ctx, nil, make([]byte, i*200)) })
			}
		}
		wg.Wait()
		close(errs)
		all := slices.Collect(func(yield func(error) bool) {
			for err := range errs {
				if !yield(err) {
					return
				}
			}
		})
		if err := errors.Join(all...); err != nil {
			return simplequeue.Critical(err)
		}
		if job.Attempt == 1 {
			return simplequeue.RetryAfter(0, errors.New("again"))
		}
		return nil
	}))
	start(t, q)
	info := awaitEnd(t, q, insert(t, q, simplequeue.NewJob{Queue: "steps"}))
	if info.State != simplequeue.StateCompleted || ran.Load() != int64(len(names)) {
		t.Errorf("%s after %d runs, want %d: %s", info.State, ran.Load(), len(names), info.LastError())
	}
}

// A job that waits for its next attempt keeps its steps when its payload is
// changed, to a small one too.
func TestStepsStayWhenThePayloadIsChanged(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	var ran atomic.Int32
	seen := make(chan string, 2)
	q := newQueue(t, pool, handler("q", func(ctx context.Context, job *simplequeue.Job) error {
		seen <- string(job.Payload)
		if _, err := simplequeue.Step(ctx, job, "once", func(context.Context) (int32, error) { return ran.Add(1), nil }); err != nil {
			return err
		}
		if job.Attempt == 1 {
			return simplequeue.RetryAfter(time.Hour, errors.New("later"))
		}
		return nil
	}))
	start(t, q)
	id := insert(t, q, simplequeue.NewJob{Queue: "q", Payload: "first"})
	awaitState(t, q, id, simplequeue.StateWaiting)
	if err := q.Change(t.Context(), id, simplequeue.Change{Payload: "second", RunAt: time.Unix(1, 0)}); err != nil {
		t.Fatal(err)
	}
	awaitState(t, q, id, simplequeue.StateCompleted)
	if first, second := <-seen, <-seen; first != `"first"` || second != `"second"` {
		t.Errorf("payloads %s and %s", first, second)
	}
	if n := ran.Load(); n != 1 {
		t.Errorf("the step ran %d times", n)
	}
	if n := scalar[int](t, pool, "SELECT count(*) FROM simplequeue.job_payload"); n != 0 {
		t.Errorf("%d payloads left", n)
	}
}
