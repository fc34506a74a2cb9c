package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"

	"github.com/simplequeue/simplequeue"
)

// Jobs whose handlers go by steps, and then from checkpoint to checkpoint. Many
// fail in between, once or twice.
var stepping = register(workload{name: "stepping", every: 200 * time.Millisecond, handle: handleStepping})

func init() {
	stepping.check = checkSteps
	stepping.produce = func(ctx context.Context, p *producer, r *rand.Rand) {
		p.add(ctx, stepping, simplequeue.NewJob{Payload: payload{Ms: r.IntN(20), Fails: r.IntN(3)}})
	}
}

// stepsOfAJob is how many steps, and how many checkpoints, each job has.
const stepsOfAJob = 3

func handleStepping(ctx context.Context, w *worker, job *simplequeue.Job, p payload) error {
	for i := range stepsOfAJob {
		if err := w.step(ctx, job, fmt.Sprint("step ", i)); err != nil {
			return err
		}
		if job.Attempt == 1 && p.Fails > 0 && i == 1 {
			return errors.New("fails between two steps")
		}
	}
	for p.Part < stepsOfAJob {
		if err := work(ctx, p); err != nil {
			return err
		}
		done := w.runPart(ctx, job, fmt.Sprint("part ", p.Part))
		p.Part++
		if err := job.Checkpoint(ctx, p, nil); err != nil {
			return err
		}
		must(w.witness.savesPart(context.WithoutCancel(ctx), done))
		if job.Attempt <= p.Fails && p.Part == 1 {
			return errors.New("fails between two checkpoints")
		}
	}
	return nil
}

// step runs a step of a job, whose value is the number of its run, and makes sure
// that what was stored is the number of one.
func (w *worker) step(ctx context.Context, job *simplequeue.Job, name string) error {
	ran := noID
	value, err := simplequeue.Step(ctx, job, name, func(ctx context.Context) (uuid.UUID, error) {
		ran = w.runPart(ctx, job, name)
		return ran, nil
	})
	if err != nil {
		return err
	}
	apart := context.WithoutCancel(ctx)
	if ran != noID {
		must(w.witness.savesPart(apart, ran))
	}
	known, err := w.witness.hasRun(apart, value, job.ID, name)
	must(err)
	if !known || ran != noID && value != ran {
		return simplequeue.Unprocessable(fmt.Errorf("%s has returned what it never came to", name))
	}
	return nil
}

// runPart tells the witness that a part of the job runs.
func (w *worker) runPart(ctx context.Context, job *simplequeue.Job, name string) uuid.UUID {
	id := uuid.New()
	must(w.witness.runsPart(context.WithoutCancel(ctx), id, part{
		job: job.ID, name: name, process: w.setup.Name, attempt: job.Attempt, reprocess: job.ReprocessCount,
	}))
	return id
}

// checkSteps: a step, and what a checkpoint follows, runs no more in claims made
// after it has been saved.
func checkSteps(h *history) (found []violation) {
	type place struct {
		job  uuid.UUID
		name string
	}
	saved := map[place]time.Time{}
	for _, p := range h.parts {
		at := place{p.job, p.name}
		if s := saved[at]; !p.saved.IsZero() && !h.rewind.meets(p.ran, p.saved) && (s.IsZero() || p.saved.Before(s)) {
			saved[at] = p.saved
		}
	}
	claims := indexClaims(h.claims())
	for _, p := range h.parts {
		c, s := claims.of(runKey{p.job, p.process, p.attempt, p.reprocess}, p.ran), saved[place{p.job, p.name}]
		if c != nil && !s.IsZero() && c.begun.at.After(s) {
			found = append(found, h.breach("I2 outcomes", p.job, "%s of job %v ran in %s, attempt %d, although it had been saved at %s", p.name, p.job, p.process, p.attempt, s.Format(time.RFC3339Nano)))
		}
	}
	return found
}
