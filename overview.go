package simplequeue

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
)

// QueueInfo is a queue as an operator sees it. Counts that are larger than
// MaxQueueCount stand at MaxQueueCount + 1.
type QueueInfo struct {
	Name                                  string
	Paused                                bool
	PauseReason                           string
	PausedAt                              time.Time
	Waiting, Pending, Running, Cancelling int64
	Dead                                  int64 // in the dead letter queue
	// WaitingAtLeast is true where so many jobs wait, in all queues, that those of
	// this one were not all counted.
	WaitingAtLeast bool
}

// MaxQueueCount is how far Queues counts: a look at queues costs no more however
// long the backlog is.
const MaxQueueCount = 100_000

const inspectLimit = 30 * time.Second

// Queues lists every queue that ever held a job, or is paused, by name. Jobs that
// have completed are not counted, for there may be any number: see
// [SimpleQueue.Count].
func (q *SimpleQueue) Queues(ctx context.Context) ([]QueueInfo, error) {
	rows, err := q.db.Queues(ctx, inspectLimit, MaxQueueCount)
	if err != nil {
		return nil, fmt.Errorf("simplequeue: list queues: %w", err)
	}
	list := make([]QueueInfo, len(rows))
	for i, r := range rows {
		list[i] = QueueInfo{
			Name: r.Name, Paused: r.PausedAt != nil, PauseReason: deref(r.PauseReason), PausedAt: orZero(r.PausedAt),
			Waiting: r.Waiting, Pending: r.Pending, Running: r.Running, Cancelling: r.Cancelling, Dead: r.Dead, WaitingAtLeast: r.WaitingCut,
		}
	}
	return list, nil
}

// WorkerInfo is a process that runs jobs.
type WorkerInfo struct {
	ID     uuid.UUID
	Name   string
	Queues []string // names, and prefixes that end in *
	// Kinds are those that the worker knows, by an entry of Queues; of the others
	// it takes every kind.
	Kinds     map[string][]string
	Paused    []string // queues from which it claims nothing, because they are paused
	StartedAt time.Time
	SeenAt    time.Time // it shows itself every 30 seconds
	Alive     bool      // seen in the last 75 seconds
	Running   int64     // jobs it holds
}

// serves reports whether the worker serves a queue, and whether it takes a kind
// of it.
func (w *WorkerInfo) serves(queue, kind string) (serves, knows bool) {
	entry := ""
	for _, p := range w.Queues {
		if p == queue {
			entry = p
			break
		}
		if prefix, ok := strings.CutSuffix(p, "*"); ok && strings.HasPrefix(queue, prefix) && len(p) > len(entry) {
			entry = p
		}
	}
	if entry == "" {
		return false, false
	}
	kinds, only := w.Kinds[entry]
	return true, !only || slices.Contains(kinds, kind)
}

// Workers lists the workers that have shown themselves in the last hour, or hold
// jobs, the oldest first.
func (q *SimpleQueue) Workers(ctx context.Context) ([]WorkerInfo, error) {
	rows, err := q.db.Workers(ctx, inspectLimit, workerGone)
	if err != nil {
		return nil, fmt.Errorf("simplequeue: list workers: %w", err)
	}
	list := make([]WorkerInfo, len(rows))
	for i, r := range rows {
		list[i] = WorkerInfo{
			ID: r.ID, Name: r.Name, Queues: r.Queues, Paused: r.Paused, StartedAt: r.StartedAt, SeenAt: r.SeenAt,
			Alive: r.Alive, Running: r.Running,
		}
		if r.Kinds != nil {
			_ = json.Unmarshal(r.Kinds, &list[i].Kinds) // a newer program may say it otherwise
		}
	}
	return list, nil
}

// knownKinds are the kinds of those patterns whose handler is a [Mux], as JSON.
func (r *routes) knownKinds() *string {
	kinds := map[string][]string{}
	note := func(pattern string, h Handler) {
		if m, ok := find[*Mux](h); ok {
			kinds[pattern] = m.knownKinds()
		}
	}
	for name, h := range r.exact {
		note(name, h)
	}
	for _, p := range r.prefixes {
		note(p.prefix+"*", p.handler)
	}
	if len(kinds) == 0 {
		return nil
	}
	text, err := json.Marshal(kinds)
	if err != nil {
		return nil // strings always encode
	}
	s := string(text)
	return &s
}
