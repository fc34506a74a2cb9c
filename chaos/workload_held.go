package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/simplequeue/simplequeue"
)

// Jobs inserted in two phases: some are committed, some too late, some in a
// transaction that is rolled back, and some never. A few have an order key.
var held = register(workload{name: "held", every: 200 * time.Millisecond, handle: handleWork})

func init() { held.produce, held.check = produceHeld, checkHeld }

func produceHeld(ctx context.Context, p *producer, r *rand.Rand) {
	jobs := make([]simplequeue.NewJob, 1+r.IntN(3))
	for i := range jobs {
		jobs[i].Hold = time.Duration(300+r.IntN(1500)) * time.Millisecond
		if r.IntN(5) == 0 {
			jobs[i].OrderKey = "key"
		}
	}
	dwell, way := time.Duration(r.IntN(500))*time.Millisecond, r.IntN(5)
	all := p.announce(ctx, held, jobs)
	call, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	results, err := p.queue.InsertMany(call, jobs)
	if err != nil {
		p.became(ctx, all, rolledBack) // nobody is going to commit them, if they are there
		return
	}
	ids := make([]uuid.UUID, len(all))
	for i := range all {
		all[i].id, ids[i] = results[i].ID, results[i].ID
	}
	p.became(ctx, all, inDoubt)
	pause(ctx, dwell)
	if way == 0 {
		p.became(ctx, all, rolledBack)
		return
	}
	must(p.witness.releases(ctx, all))
	committed, err := p.commitHeld(ctx, way, ids)
	switch {
	case errors.Is(err, errRolledBack):
		p.became(ctx, all, rolledBack)
	case err != nil:
		p.became(ctx, all, inDoubt)
	default:
		for i := range all {
			if all[i].outcome = rolledBack; slices.Contains(committed, all[i].id) {
				all[i].outcome = acked
			}
		}
		must(p.witness.answers(ctx, all))
	}
}

// commitHeld commits held jobs by a call, by a transaction, or by one that is
// rolled back.
func (p *producer) commitHeld(ctx context.Context, way int, ids []uuid.UUID) (committed []uuid.UUID, err error) {
	if way > 2 {
		call, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		return p.queue.CommitHeld(call, ids...)
	}
	err = p.transact(ctx, way == 1, func(ctx context.Context, tx pgx.Tx) (err error) {
		committed, err = p.queue.CommitHeldTx(ctx, tx, ids...)
		return err
	})
	return committed, err
}

// checkHeld: a held job runs only after its commit was asked for. One whose
// commit was not, or was rolled back, or came too late, is not there: checkLoss
// tells.
func checkHeld(h *history) (found []violation) {
	inserts := map[uuid.UUID]insertion{}
	for _, in := range h.inserts {
		inserts[in.id] = in
	}
	for job, in := range h.insertions() {
		inserts[job] = in
	}
	for i := range h.runs {
		r := &h.runs[i]
		if r.queue != held.name {
			continue
		}
		in := inserts[r.job]
		if in.released.IsZero() || in.outcome == rolledBack || r.start.Before(in.released) {
			found = append(found, h.breach("I1 loss", r.job, "held job %v ran, and was not committed before", r.job))
		}
	}
	for job, in := range h.insertions() {
		if in.workload == held.name && in.released.IsZero() {
			found = append(found, h.breach("I1 loss", job, "held job %v is there, and nobody has committed it", job))
		}
	}
	return found
}
