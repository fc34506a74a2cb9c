package simplequeuetest_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/backoff"
	"github.com/simplequeue/simplequeue/internal/pgtest"
	"github.com/simplequeue/simplequeue/simplequeuetest"
)

var errBroken = errors.New("broken")

// conformCase is a handler, and a job for it in a queue of the case's name.
type conformCase struct {
	process func(ctx context.Context, job *simplequeue.Job) error
	handler simplequeue.Handler // instead
	job     simplequeue.NewJob
}

type permitted struct {
	simplequeue.Handler
	err error
}

func (p permitted) Acquire(context.Context, *simplequeue.Job) (func(), error) {
	return func() {}, p.err
}

func returns(err error) func(context.Context, *simplequeue.Job) error {
	return func(context.Context, *simplequeue.Job) error { return err }
}

func conformCases() map[string]conformCase {
	retryAt := time.Date(2200, 1, 2, 3, 4, 5, 0, time.UTC)
	nothing := func(name string) simplequeue.Handler { return simplequeue.HandlerFunc(name, returns(nil)) }
	return map[string]conformCase{
		"complete":       {process: returns(nil)},
		"complete early": {process: returns(fmt.Errorf("wrapped: %w", simplequeue.Complete()))},
		"result": {handler: simplequeue.TypedResult("result", func(_ context.Context, _ *simplequeue.Job, n int) (int, error) {
			return n + 1, nil
		}), job: simplequeue.NewJob{Payload: 41}},
		"fail":          {process: returns(errBroken)},
		"fail last":     {process: returns(errBroken), job: simplequeue.NewJob{MaxAttempts: 1}},
		"panic":         {process: func(context.Context, *simplequeue.Job) error { panic("at the disco") }},
		"exit":          {process: func(context.Context, *simplequeue.Job) error { runtime.Goexit(); return nil }},
		"retry at":      {process: returns(simplequeue.RetryAt(retryAt, errBroken))},
		"retry after":   {process: returns(simplequeue.RetryAfter(time.Hour, nil))},
		"reschedule":    {process: returns(simplequeue.RescheduleAfter(time.Hour))},
		"reschedule at": {process: returns(simplequeue.RescheduleAt(retryAt))},
		"cancel":        {process: returns(simplequeue.Cancel(errBroken))},
		"critical":      {process: returns(simplequeue.Critical(errBroken))},
		"unprocessable": {
			handler: simplequeue.Typed("unprocessable", func(context.Context, *simplequeue.Job, int) error { return nil }),
			job:     simplequeue.NewJob{Payload: "no number"},
		},
		"timeout": {
			process: func(ctx context.Context, _ *simplequeue.Job) error { <-ctx.Done(); return ctx.Err() },
			job:     simplequeue.NewJob{Timeout: time.Millisecond},
		},
		"unknown kind":    {handler: simplequeue.NewMux("unknown kind").Handle("known", nothing("unknown kind")), job: simplequeue.NewJob{Kind: "other"}},
		"known kind":      {handler: simplequeue.NewMux("known kind").Handle("known", nothing("known kind")), job: simplequeue.NewJob{Kind: "known"}},
		"permit":          {handler: permitted{nothing("permit"), nil}},
		"permit cancels":  {handler: permitted{nothing("permit cancels"), simplequeue.Cancel(errBroken)}},
		"permit defers":   {handler: permitted{nothing("permit defers"), simplequeue.RescheduleAfter(time.Hour)}},
		"permit fails":    {handler: permitted{nothing("permit fails"), errBroken}},
		"permit finishes": {handler: permitted{nothing("permit finishes"), simplequeue.Complete()}},
		"checkpoint": {process: func(ctx context.Context, job *simplequeue.Job) error {
			return errors.Join(job.Checkpoint(ctx, map[string]int{"row": 7}, []byte("raw")), errBroken)
		}, job: simplequeue.NewJob{Payload: strings.Repeat("large", 1000)}},
		"step": {process: func(ctx context.Context, job *simplequeue.Job) error {
			for range 2 {
				if n, err := simplequeue.Step(ctx, job, "one", func(context.Context) (int, error) { return 17, nil }); err != nil || n != 17 {
					return fmt.Errorf("step returned %d, %w", n, err)
				}
			}
			return nil
		}},
		"every field": {process: returns(errBroken), job: simplequeue.NewJob{
			Payload: "p", Raw: []byte("r"), Kind: "k", Priority: 3, MaxAttempts: 5, UniqueKey: "u", Fingerprint: "f", OrderKey: "o", FairnessKey: "s", Metadata: map[string]string{"m": "1"},
			TraceContext: map[string]string{"t": "2"}, Timeout: time.Minute, Retention: simplequeue.Retention{Archive: time.Hour, DeadLetter: 2 * time.Hour},
		}},
		"kept for no time": {process: returns(nil), job: simplequeue.NewJob{Retention: simplequeue.Retention{Archive: simplequeue.KeepNothing}}},
	}
}

func (c conformCase) make(name string) (simplequeue.Handler, simplequeue.NewJob) {
	h, job := c.handler, c.job
	if h == nil {
		h = simplequeue.HandlerFunc(name, c.process)
	}
	job.Queue = name
	return h, job
}

// conformOptions have a handler for each case, and no backoff of chance.
func conformOptions(schema string) simplequeue.Options {
	o := simplequeue.Options{Schema: schema, Backoff: backoff.Constant(time.Hour)}
	for name, c := range conformCases() {
		h, _ := c.make(name)
		o.Handlers = append(o.Handlers, h)
	}
	return o
}

// seen is a job without what differs from run to run; times to wait are kept to
// the minute.
func seen(job simplequeue.JobInfo) simplequeue.JobInfo {
	if !job.RunAt.IsZero() && job.RunAt.Year() < 2100 {
		job.RunAt = time.Unix(0, int64(job.RunAt.Sub(job.CreatedAt).Round(time.Minute)))
	}
	job.RunAt = job.RunAt.UTC()
	job.ID, job.WorkerID = uuid.Nil, uuid.Nil
	for _, at := range []*time.Time{&job.CreatedAt, &job.StartedAt, &job.FinishedAt} {
		if !at.IsZero() {
			*at = time.Unix(1, 0)
		}
	}
	for i := range job.Errors {
		e := &job.Errors[i]
		if e.At = time.Unix(1, 0); e.Stack != "" {
			e.Stack = "stack"
		}
	}
	return job
}

// Whatever a handler does, Work in a schema, Work in a transaction and Process
// say of its job what Run leaves.
func TestWorkIsLikeRun(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	var jobs []simplequeue.NewJob
	for name, c := range conformCases() {
		_, job := c.make(name)
		jobs = append(jobs, job)
	}
	ran := newQueue(t, pool, conformOptions("simplequeue"))
	insert(t, ran, jobs...)
	ctx, stop := context.WithCancel(t.Context())
	stopped := make(chan error, 1)
	go func() { stopped <- ran.Run(ctx) }()
	eventually(t, "all jobs have been run", func() bool {
		c := counts(t, ran)
		gated := simplequeuetest.Inserted(t, ran, 1, simplequeue.NewJob{OrderKey: "o"})[0]
		return c[simplequeue.StatePending]+c[simplequeue.StateRunning] == 0 && gated.Attempt > 0
	})
	stop()
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	want := map[string]simplequeue.JobInfo{}
	for _, job := range simplequeuetest.Inserted(t, ran, len(jobs)-1, simplequeue.NewJob{}) {
		want[job.Queue] = seen(job)
	}

	inSchema := newQueue(t, pool, conformOptions(simplequeuetest.Schema(t, pool)))
	inTx := simplequeuetest.In(begin(t, pool), newQueue(t, pool, conformOptions("simplequeue")))
	for how, q := range map[string]*simplequeue.SimpleQueue{"in a schema": inSchema, "in a transaction": inTx} {
		insert(t, q, jobs...)
		for _, o := range simplequeuetest.Work(t, q) {
			conforms(t, how, o, want)
		}
	}
	for name, c := range conformCases() {
		h, job := c.make(name)
		conforms(t, "without a database", simplequeuetest.Process(t, h, job), want)
	}
}

func conforms(t *testing.T, how string, o simplequeuetest.Outcome, want map[string]simplequeue.JobInfo) {
	t.Helper()
	got := seen(o.JobInfo)
	if o.Queue == "kept for no time" {
		if o.State != simplequeue.StateCompleted {
			t.Errorf("%s, %s: %s", o.Queue, how, o.State)
		}
		return
	}
	w := want[o.Queue]
	w.Payload = compact(w.Payload, got.Payload)
	if how == "without a database" && got.Reason == "retry" && !strings.HasPrefix(o.Queue, "retry") {
		got.RunAt, w.RunAt = time.Time{}, time.Time{} // the backoff is the default's, which has jitter
	}
	if !reflect.DeepEqual(got, w) {
		t.Errorf("%s, %s:\n%+v\nwant, as after Run:\n%+v", o.Queue, how, got, w)
	}
	clean := []string{"complete", "result", "permit", "known kind", "step"}
	if (o.Err == nil) != slices.Contains(clean, o.Queue) {
		t.Errorf("%s, %s: Err = %v", o.Queue, how, o.Err)
	}
	if o.Queue == "fail" && !errors.Is(o.Err, errBroken) {
		t.Errorf("%s, %s: Err = %v, want the handler's own", o.Queue, how, o.Err)
	}
}

// compact is a, if it is b but for the spaces that jsonb adds.
func compact(a, b []byte) []byte {
	if strings.ReplaceAll(string(a), " ", "") == strings.ReplaceAll(string(b), " ", "") {
		return b
	}
	return a
}
