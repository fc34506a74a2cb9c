package simplequeue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/simplequeue/simplequeue/internal/inside"
	"github.com/simplequeue/simplequeue/internal/store"
)

// processAlone runs a job that is nowhere.
func processAlone(ctx context.Context, h Handler, job NewJob, as []func(*Job)) (*inside.Attempt, error) {
	q, err := newOn(nil, Options{Handlers: []Handler{h}, PollOnly: true})
	if err != nil {
		return nil, err
	}
	q.db.Within, q.kept = store.NewWithin(noDatabase{}), forgetful{}
	if names := q.routes.names(); job.Queue == "" && len(names) == 1 && queueNameProblem(names[0]) == "" {
		job.Queue = names[0]
	}
	b, err := q.prepare(ctx, []NewJob{job})
	if err != nil {
		return nil, err
	}
	r := &b.jobs[0]
	route := q.routes.find(job.Queue)
	if route == nil {
		return nil, fmt.Errorf("the handler serves %q, not queue %q", q.routes.names(), job.Queue)
	}
	now := time.Now()
	c := &claim{id: 1, nonce: 1, route: route, claimedAt: now, verdict: make(chan error, 1), job: &Job{
		ID: r.id, Queue: job.Queue, Kind: job.Kind, Raw: job.Raw, Priority: job.Priority, Attempt: 1, MaxAttempts: r.maxAttempts,
		UniqueKey: job.UniqueKey, Fingerprint: job.Fingerprint, OrderKey: job.OrderKey, FairnessKey: job.FairnessKey, gates: r.gates, Metadata: job.Metadata, TraceContext: job.TraceContext,
		Timeout: job.Timeout, Retention: job.Retention, CreatedAt: now,
	}}
	if r.payload != nil {
		c.job.Payload = json.RawMessage(*r.payload)
	}
	for _, change := range as {
		change(c.job)
	}
	w := newInlinerWithout(ctx, q)
	o, _, err := w.run(c)
	if err != nil {
		return nil, err
	}
	return w.attempt(o), nil
}

// noDatabase is the transaction of a queue that has none.
type noDatabase struct{}

func (noDatabase) Begin(context.Context) (pgx.Tx, error) {
	return nil, errors.New("simplequeuetest: Process has no database: insert the job and use Work for a handler that needs one")
}

// forgetful keeps what handlers keep for as long as the attempt goes on.
type forgetful struct{}

func (forgetful) Changed(context.Context, time.Duration, store.Step) (bool, error) { return true, nil }

func (forgetful) ChangedWithin(context.Context, store.Querier, store.Step) (bool, error) {
	return true, nil
}

func (forgetful) Unseen(context.Context, time.Duration, store.Querier, store.Claim) error { return nil }

func (forgetful) Steps(context.Context, time.Duration, [16]byte) ([]byte, error) { return nil, nil }
