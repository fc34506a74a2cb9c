package simplequeue

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/simplequeue/simplequeue/internal/store"
)

// reasonGated is why a job waits that is not let in by a gate yet.
const reasonGated = "gated"

const gateLimit = 10 * time.Second

// orderGate is the name of the gate of an order key, or of a queue that is first
// in, first out: with an empty key. Neither part but the last holds a tab.
func orderGate(queue, key string) string { return "o\t" + queue + "\t" + key }

// fairGate is the name of the gate of a queue's fair shares.
func fairGate(queue string) string { return "f\t" + queue }

// fairWindow is how many jobs of a queue's fair shares are runnable and not
// claimed yet, at most: what a key that has just come has to wait for, and what
// workers can take until the gate is looked at again.
const fairWindow = 200

// gatesOf lists the gates that a new job has to pass, one after the other.
func (q *SimpleQueue) gatesOf(j *NewJob) []string {
	var gates []string
	switch {
	case q.opts.Queues[j.Queue].FIFO:
		gates = append(gates, orderGate(j.Queue, ""))
	case j.OrderKey != "":
		gates = append(gates, orderGate(j.Queue, j.OrderKey))
	}
	if j.FairnessKey != "" {
		gates = append(gates, fairGate(j.Queue))
	}
	return gates
}

// ordered reports whether the job has a place in an order.
func (j *Job) ordered() bool { return len(j.gates) > 0 && strings.HasPrefix(j.gates[0], "o\t") }

// behind says of a job that waits at a gate what it is behind.
func behind(gates []string) string {
	var parts []string
	for _, g := range gates {
		kind, rest, _ := strings.Cut(g, "\t")
		queue, key, _ := strings.Cut(rest, "\t")
		switch {
		case kind == "o" && key == "":
			parts = append(parts, fmt.Sprintf("behind others of the queue %q", queue))
		case kind == "o":
			parts = append(parts, fmt.Sprintf("behind others of the order key %q", key))
		case kind == "f":
			parts = append(parts, fmt.Sprintf("until its turn in the queue %q", queue))
		default:
			parts = append(parts, fmt.Sprintf("at the gate %q", g))
		}
	}
	return strings.Join(parts, ", ")
}

// gateFate is what becomes of the gates of a job that had this verdict.
func (v *verdict) gateFate() string {
	switch {
	case v.reason == reasonGated && v.state == "":
		return store.GateTail
	case v.state == "":
		return store.GateKeep
	case v.state == StateCompleted, v.state == StateCancelled:
		return store.GateEnd
	}
	return store.GateDead
}

// lineUp lets those of the added jobs that are to wait at a gate wait there.
func (q *SimpleQueue) lineUp(ctx context.Context, tx store.Querier, b *batch, added []int) error {
	if !b.gated {
		return nil
	}
	var l store.Lined
	for _, at := range added {
		r := &b.jobs[at]
		if len(r.gates) == 0 {
			continue
		}
		gate, fair := r.gates[0], strings.HasPrefix(r.gates[0], "f\t")
		if fair && r.waitsFor == reasonHeld {
			continue // its turn comes after its commit
		}
		l.IDs, l.Gates, l.Keys = append(l.IDs, r.id.String()), append(l.Gates, gate), append(l.Keys, nil)
		if fair {
			l.Keys[len(l.Keys)-1] = &r.job.FairnessKey
		}
		l.RunAts, l.DelaysUS = append(l.RunAts, nonZero(r.job.RunAt)), append(l.DelaysUS, positive(r.job.Delay))
		l.Blocks = append(l.Blocks, r.blocks)
		if len(l.IDs) == insertChunk {
			if err := q.db.LineUp(ctx, tx, &l); err != nil {
				return err
			}
			l = store.Lined{}
		}
	}
	if len(l.IDs) == 0 {
		return nil
	}
	return q.db.LineUp(ctx, tx, &l)
}

// lined reports whether a job has come to wait at a gate, or may have.
func (b *batch) lined() bool {
	if !b.gated {
		return false
	}
	for i := range b.jobs {
		if len(b.jobs[i].gates) > 0 && (!b.results[i].Duplicate || b.results[i].Replaced) {
			return true
		}
	}
	return false
}

// wake is what to tell workers about the jobs, "" for nothing.
func (b *batch) wake() string {
	return encodeInserted(b.runnable(), b.lined())
}

// SetFairWeight sets how much more than other keys of a queue a FairnessKey gets:
// weight times the share of a key with weight 1, which all keys have at first. It
// is kept in the database, is 1 to 1000, and counts for jobs inserted from now on.
// Errors: an [*InvalidOptionError] for the queue's name, the key or the weight, and
// those of the database.
func (q *SimpleQueue) SetFairWeight(ctx context.Context, queue, key string, weight int) error {
	if problem := queueNameProblem(queue); problem != "" {
		return &InvalidOptionError{"queue", queue, problem}
	}
	if problem := textProblem(key, maxKey); problem != "" || key == "" {
		return &InvalidOptionError{"key", shorten(key), "must be 1 to 512 bytes of UTF-8 without NUL"}
	}
	if weight < 1 || weight > maxWeight {
		return &InvalidOptionError{"weight", weight, fmt.Sprintf("must be 1 to %d", maxWeight)}
	}
	if err := q.db.SetWeight(ctx, gateLimit, fairGate(queue), key, weight); err != nil {
		return fmt.Errorf("simplequeue: set weight: %w", err)
	}
	return nil
}

// BlockedKey is an order key that a dead job keeps closed.
type BlockedKey struct {
	Queue    string
	OrderKey string    // "" for a queue that is first in, first out
	JobID    uuid.UUID // in the dead letter queue
	Since    time.Time
}

// BlockedKeys returns the order keys of a queue that dead jobs keep closed, by
// key; see [QueueOptions.BlockDead]. An empty queue stands for all queues.
func (q *SimpleQueue) BlockedKeys(ctx context.Context, queue string) ([]BlockedKey, error) {
	prefix := "o\t"
	if queue != "" {
		prefix = orderGate(queue, "")
	}
	found, err := q.db.BlockedGates(ctx, gateLimit, prefix)
	if err != nil {
		return nil, fmt.Errorf("simplequeue: list blocked keys: %w", err)
	}
	list := make([]BlockedKey, len(found))
	for i, b := range found {
		list[i] = BlockedKey{JobID: b.JobID, Since: b.Since}
		list[i].Queue, list[i].OrderKey, _ = strings.Cut(strings.TrimPrefix(b.Gate, "o\t"), "\t")
	}
	return list, nil
}

// ReleaseKey opens an order key that a dead job keeps closed: the next job of the
// key runs. A queue that is first in, first out has the key "". The error is
// [ErrNotFound] when no dead job keeps the key closed.
func (q *SimpleQueue) ReleaseKey(ctx context.Context, queue, key string) error {
	found, err := q.db.UnblockGate(ctx, gateLimit, orderGate(queue, key))
	if err != nil {
		return fmt.Errorf("simplequeue: release order key: %w", err)
	}
	if !found {
		return fmt.Errorf("%w: no dead job blocks the order key %q of the queue %q", ErrNotFound, key, queue)
	}
	q.wakes.gates()
	return nil
}
