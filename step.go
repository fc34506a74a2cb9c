package simplequeue

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/simplequeue/simplequeue/internal/store"
)

const maxStepName = 128

// Step runs a part of a handler once in the life of its job. The first time it
// calls do, stores what that returns as JSON, and then returns it; later, in
// this attempt or another, in this process or another, it returns what was
// stored and does not call do. Steps last through retries, reschedules, stops
// and crashes, and are gone when the job ends.
//
// An error of do comes back as it is, and nothing is stored. do runs again, at
// the next attempt, if the process dies before its value is stored: within a
// step, as within a handler, what happens outside the database should bear
// repeating.
//
// name, of at most 128 bytes, tells the steps of a job apart; in a loop it holds
// the place. Steps with different names may run at the same time. Together their
// names and values are at most Options.MaxPayloadBytes. Errors: ErrLeaseLost
// when the job is no longer this attempt's, an [*InvalidValueError] for what
// cannot be stored, the cause of ctx when it has ended before do is called, and
// those of the database.
func Step[T any](ctx context.Context, job *Job, name string, do func(ctx context.Context) (T, error)) (T, error) {
	var value T
	stored, err := job.stepDone(ctx, name)
	if err != nil {
		return value, err
	}
	if stored != nil {
		if err := json.Unmarshal(stored, &value); err != nil {
			return value, fmt.Errorf("simplequeue: decode what step %q has stored: %w", name, err)
		}
		return value, nil
	}
	if ctx.Err() != nil {
		return value, context.Cause(ctx)
	}
	if value, err = do(ctx); err != nil {
		return value, err
	}
	return value, job.saveStep(ctx, name, value)
}

// stepDone returns what a step has stored, or nil.
func (j *Job) stepDone(ctx context.Context, name string) (json.RawMessage, error) {
	what := fmt.Sprintf("step %q", shorten(name))
	if name == "" {
		return nil, &InvalidValueError{Name: what, Reason: "has no name"}
	}
	if problem := textProblem(name, maxStepName); problem != "" {
		return nil, &InvalidValueError{Name: what, Reason: "has a name that " + problem}
	}
	r := j.run
	if r == nil {
		return nil, errNotRunning
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.steps == nil {
		steps, err := r.loadSteps(ctx)
		if err != nil {
			return nil, fmt.Errorf("simplequeue: %s: %w", what, err)
		}
		r.steps = steps
		for name, value := range steps {
			r.stepBytes += len(name) + len(value)
		}
	}
	return r.steps[name], nil
}

// loadSteps reads the steps of earlier attempts. A job that was claimed with its
// payload in its row has none.
func (r *running) loadSteps(ctx context.Context) (map[string]json.RawMessage, error) {
	steps := map[string]json.RawMessage{}
	if r.claim.payloadBytes == 0 {
		return steps, nil
	}
	object, err := r.queue.kept.Steps(ctx, workLimit, r.claim.job.ID)
	if err == nil && object != nil {
		err = json.Unmarshal(object, &steps)
	}
	return steps, err
}

func (j *Job) saveStep(ctx context.Context, name string, value any) error {
	r, what := j.run, fmt.Sprintf("step %q", name)
	text, printed, err := encodeValue(what, value, j.maxBytes())
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	all := r.stepBytes + len(name) + printed
	if all > j.maxBytes() {
		return tooLarge("the job's steps with "+what, int64(all), all-printed+len(text), j.maxBytes())
	}
	if err := r.change(ctx, store.SaveStep(r.fence(), name, string(text), len(j.Payload)+len(j.Raw))); err != nil {
		return fmt.Errorf("simplequeue: %s: %w", what, err)
	}
	r.steps[name] = text
	r.stepBytes = all
	return nil
}
