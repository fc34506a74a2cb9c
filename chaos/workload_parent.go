package main

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"

	"github.com/simplequeue/simplequeue"
)

// Jobs whose handlers insert a job of their own, with an id made from their own,
// so that another attempt inserts it again without harm.
var parent = register(workload{name: "parent", every: 200 * time.Millisecond, handle: handleParent})

func init() {
	parent.check = checkParents
	parent.produce = func(ctx context.Context, p *producer, _ *rand.Rand) {
		p.add(ctx, parent, simplequeue.NewJob{Payload: payload{Do: "insert"}})
	}
}

// childOf begins the tag of a job that a handler inserted.
const childOf = "child of "

func handleParent(ctx context.Context, w *worker, job *simplequeue.Job, p payload) error {
	if p.Do != "insert" {
		return nil
	}
	call, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	_, err := w.queue.Insert(call, simplequeue.NewJob{
		ID: uuid.NewSHA1(job.ID, []byte("child")), Queue: job.Queue, Payload: payload{Tag: childOf + p.Tag},
	})
	return err
}

// checkParents: each parent that has completed has its child.
func checkParents(h *history) (found []violation) {
	tags := map[string]bool{}
	for _, f := range h.finals {
		tags[f.tag] = true
	}
	for _, in := range h.inserts {
		if in.workload == parent.name && tags[in.tag] && !tags[childOf+in.tag] {
			found = append(found, h.breach("I1 loss", in.id, "the job that the handler of %v inserted is gone", in.id))
		}
	}
	return found
}
