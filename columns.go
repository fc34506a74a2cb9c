package simplequeue

import (
	"errors"
	"time"

	"github.com/simplequeue/simplequeue/internal/store"
)

// columns are the jobs at the given positions, as the store takes them.
func (b *batch) columns(at []int) *store.NewJobs {
	n := &store.NewJobs{}
	queues, priorities := map[store.Lane]bool{}, &n.LanePriorities
	for _, i := range at {
		r := &b.jobs[i]
		j := r.job
		id := r.id.String()
		n.IDs = append(n.IDs, id)
		n.Queues = append(n.Queues, j.Queue)
		n.Kinds = append(n.Kinds, j.Kind)
		n.Priorities = append(n.Priorities, int16(j.Priority))
		n.MaxAttempts = append(n.MaxAttempts, int32(r.maxAttempts))
		n.Fingerprints = append(n.Fingerprints, nonEmpty(j.Fingerprint))
		n.Props = append(n.Props, r.props)
		if l := (store.Lane{Queue: j.Queue, Priority: int16(j.Priority)}); !queues[l] {
			queues[l] = true
			if r.bounded {
				l.Queue = "*" + l.Queue
			}
			n.LaneQueues, *priorities = append(n.LaneQueues, l.Queue), append(*priorities, l.Priority)
		}
		if r.size > inlinePayload {
			n.PayloadBytes = append(n.PayloadBytes, int32(r.size))
			n.Payloads, n.Raws = append(n.Payloads, nil), append(n.Raws, nil)
			n.BigIDs, n.BigPayloads, n.BigRaws = append(n.BigIDs, id), append(n.BigPayloads, r.payload), append(n.BigRaws, j.Raw)
		} else {
			n.PayloadBytes = append(n.PayloadBytes, 0)
			n.Payloads, n.Raws = append(n.Payloads, r.payload), append(n.Raws, j.Raw)
		}
		if b.plain {
			continue
		}
		n.Chosen = append(n.Chosen, r.chosen)
		n.UniqueSpecs = append(n.UniqueSpecs, r.unique)
		if j.hasKey() {
			scope := r.scope()
			n.UniqueScopes, n.UniqueKeys = append(n.UniqueScopes, &scope), append(n.UniqueKeys, &j.UniqueKey)
		} else {
			n.UniqueScopes, n.UniqueKeys = append(n.UniqueScopes, nil), append(n.UniqueKeys, nil)
		}
		n.RunAts, n.DelaysUS = append(n.RunAts, nonZero(j.RunAt)), append(n.DelaysUS, positive(j.Delay))
		n.Reasons = append(n.Reasons, nonEmpty(r.waitsFor))
	}
	return n
}

var errNotEncoded = errors.New("a job was not encoded")

// rows gives the plain jobs as COPY takes them, each when it is encoded: what
// comes over the channel is how many are.
func (b *batch) rows(encoded <-chan int) func(i int) (store.PlainJob, error) {
	n := 0
	return func(i int) (store.PlainJob, error) {
		for i >= n {
			more, open := <-encoded
			if !open {
				return store.PlainJob{}, errNotEncoded
			}
			n = more
		}
		return b.row(i), nil
	}
}

func (b *batch) row(i int) store.PlainJob {
	r := &b.jobs[i]
	j := store.PlainJob{
		ID: r.id, Queue: r.job.Queue, Kind: r.job.Kind, Priority: int16(r.job.Priority), MaxAttempts: int32(r.maxAttempts),
		Fingerprint: nonEmpty(r.job.Fingerprint), Payload: r.payload, Raw: r.job.Raw, Props: r.props,
	}
	if r.size > inlinePayload {
		j.PayloadBytes, j.Payload, j.Raw = int32(r.size), nil, nil
	}
	return j
}

// laneColumns are the lanes of the jobs.
func (b *batch) laneColumns() *store.NewJobs {
	n := &store.NewJobs{}
	for _, l := range b.lanes {
		n.LaneQueues, n.LanePriorities = append(n.LaneQueues, l.Queue), append(n.LanePriorities, l.Priority)
	}
	return n
}

// beside is what the plain jobs from one position to another have beside their
// rows, nil for nothing.
func (b *batch) beside(from, to int) *store.NewJobs {
	n := &store.NewJobs{}
	for i := from; i < to; i++ {
		r := &b.jobs[i]
		if r.job.Fingerprint != "" {
			n.IDs, n.Fingerprints = append(n.IDs, r.id.String()), append(n.Fingerprints, &r.job.Fingerprint)
		}
		if r.size > inlinePayload {
			n.BigIDs, n.BigPayloads, n.BigRaws = append(n.BigIDs, r.id.String()), append(n.BigPayloads, r.payload), append(n.BigRaws, r.job.Raw)
		}
	}
	if len(n.IDs)+len(n.BigIDs) == 0 {
		return nil
	}
	return n
}

// chunks are the columns of all jobs, a statement's worth each.
func (b *batch) chunks() []*store.NewJobs {
	var list []*store.NewJobs
	for from := 0; from < len(b.jobs); from += insertChunk {
		at := make([]int, min(insertChunk, len(b.jobs)-from))
		for i := range at {
			at[i] = from + i
		}
		list = append(list, b.columns(at))
	}
	return list
}

// runnable lists the lanes into which jobs have gone.
func (b *batch) runnable() []store.Lane {
	if b.plain {
		return b.lanes
	}
	var lanes []store.Lane
	seen := map[store.Lane]bool{}
	for i := range b.jobs {
		l := store.Lane{Queue: b.jobs[i].job.Queue, Priority: int16(b.jobs[i].job.Priority)}
		if r := b.results[i]; (!r.Duplicate || r.Replaced) && !b.jobs[i].later && !seen[l] {
			seen[l] = true
			lanes = append(lanes, l)
		}
	}
	return lanes
}

func nonEmpty(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func nonZero(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

func positive(d time.Duration) *int64 {
	if d <= 0 {
		return nil
	}
	us := max(1, d.Microseconds())
	return &us
}
