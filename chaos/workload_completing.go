package main

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"

	"github.com/simplequeue/simplequeue"
)

// Jobs that are completed in the transaction in which their handlers write what
// they have done. Some roll the first one back.
var completing = register(workload{
	name: "completing", every: 120 * time.Millisecond, handle: handleCompleting, inTx: true,
	prepare: "CREATE TABLE chaos.effect (job uuid NOT NULL)",
})

func init() {
	completing.check = checkEffects
	completing.produce = func(ctx context.Context, p *producer, r *rand.Rand) {
		load := payload{Ms: r.IntN(30)}
		if r.IntN(4) == 0 {
			load.Do = "roll back"
		}
		p.add(ctx, completing, simplequeue.NewJob{Payload: load})
	}
}

func handleCompleting(ctx context.Context, w *worker, job *simplequeue.Job, p payload) error {
	call, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tx, err := w.pool.Begin(call)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	if _, err := tx.Exec(call, "INSERT INTO chaos.effect (job) VALUES ($1::text::uuid)", job.ID.String()); err != nil {
		return err
	}
	if err := job.CompleteTx(call, tx); err != nil {
		return err
	}
	if err := work(ctx, p); err != nil {
		return err
	}
	if p.Do == "roll back" && job.Attempt == 1 {
		return tx.Rollback(call)
	}
	return tx.Commit(call)
}

// checkEffects: what the handler of a completed job wrote is there once, and what
// it wrote in attempts that did not complete it is not there.
func checkEffects(h *history) (found []violation) {
	there := map[uuid.UUID]bool{}
	for _, f := range h.finals {
		there[f.id] = true
		if n := h.effects[f.id]; f.workload == completing.name && f.state == "completed" && n != 1 {
			found = append(found, h.breach("I2 outcomes", f.id, "job %v has completed, and has written %d rows, want 1", f.id, n))
		}
	}
	for job, n := range h.effects {
		if !there[job] {
			found = append(found, h.breach("I2 outcomes", job, "job %v, which is not there, has written %d rows", job, n))
		}
	}
	return found
}
