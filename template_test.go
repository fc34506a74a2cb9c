package simplequeue_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/backoff"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

type resizeArgs struct{ Width int }

// A job of a template has the template's fields, but for what the options set,
// zero values included; it shares no map or bytes with the template.
func TestTemplateDefaultsAndOptions(t *testing.T) {
	t.Parallel()
	defaults := allFields()
	defaults.Delay, defaults.ID = time.Hour, uuid.New()
	tmpl := simplequeue.Template[resizeArgs]{Defaults: defaults}
	want := defaults
	want.Payload, want.ID = resizeArgs{Width: 7}, uuid.Nil
	if d := cmp.Diff(want, tmpl.New(resizeArgs{Width: 7})); d != "" {
		t.Errorf("without options (-want +got):\n%s", d)
	}

	at := time.Now().Add(time.Minute)
	job := tmpl.New(resizeArgs{}, func(j *simplequeue.NewJob) {
		j.Priority, j.MaxAttempts, j.UniqueKey, j.UniqueGlobal, j.Timeout = 0, 0, "", false, 0
		j.Metadata["a"], j.TraceContext, j.Raw[0] = "changed", nil, 9
	}, func(j *simplequeue.NewJob) { j.RunAt = at })
	want = defaults
	want.Payload, want.ID = resizeArgs{}, uuid.Nil
	want.Priority, want.MaxAttempts, want.UniqueKey, want.UniqueGlobal, want.Timeout = 0, 0, "", false, 0
	want.Metadata, want.TraceContext, want.Raw = map[string]string{"a": "changed", "": "ü"}, nil, []byte{9, 1, 0xff, '\\', '"'}
	want.Delay, want.RunAt = 0, at
	if d := cmp.Diff(want, job); d != "" {
		t.Errorf("with options (-want +got):\n%s", d)
	}
	if defaults.Raw[0] != 0 || defaults.Metadata["a"] == "changed" {
		t.Error("an option changed the template")
	}

	fixed := simplequeue.Template[resizeArgs]{Defaults: simplequeue.NewJob{Queue: "a", RunAt: at}}
	if job := fixed.New(resizeArgs{}, func(j *simplequeue.NewJob) { j.Delay = time.Second }); !job.RunAt.IsZero() || job.Delay != time.Second {
		t.Errorf("run at %v, delay %v, want the delay that was given only", job.RunAt, job.Delay)
	}
	both := fixed.New(resizeArgs{}, func(j *simplequeue.NewJob) { j.Delay, j.RunAt = time.Second, at.Add(1) })
	if both.RunAt.IsZero() || both.Delay == 0 {
		t.Error("two times given at insert: one was dropped, want the insert to refuse them")
	}
}

// Handlers of several kinds of one queue stand side by side; each takes the jobs
// of its kind, decoded; other kinds wait.
func TestTemplateHandlers(t *testing.T) {
	t.Parallel()
	resize := simplequeue.Template[resizeArgs]{Defaults: simplequeue.NewJob{Queue: "images", Kind: "resize"}}
	caption := simplequeue.Template[string]{Defaults: simplequeue.NewJob{Queue: "images", Kind: "caption"}}
	crop := simplequeue.Template[resizeArgs]{Defaults: simplequeue.NewJob{Queue: "images", Kind: "crop"}}
	all := simplequeue.Template[int]{Defaults: simplequeue.NewJob{Queue: "all"}}
	widths, texts, numbers := make(chan int, 1), make(chan string, 1), make(chan int, 1)
	q := newQueue(t, pgtest.New(t), simplequeue.Options{Handlers: []simplequeue.Handler{
		resize.Handler(func(_ context.Context, _ *simplequeue.Job, a resizeArgs) error { widths <- a.Width; return nil }),
		caption.Handler(func(_ context.Context, _ *simplequeue.Job, s string) error { texts <- s; return nil }),
		all.Handler(func(_ context.Context, _ *simplequeue.Job, n int) error { numbers <- n; return nil }),
	}})
	start(t, q)
	must := func(in simplequeue.Inserted, err error) uuid.UUID {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return in.ID
	}
	ctx := t.Context()
	must(resize.Insert(ctx, q, resizeArgs{Width: 3}))
	must(caption.Insert(ctx, q, "a cat"))
	must(all.Insert(ctx, q, 8, func(j *simplequeue.NewJob) { j.Kind = "any" }))
	unknown := must(crop.Insert(ctx, q, resizeArgs{}))
	odd := insert(t, q, simplequeue.NewJob{Queue: "images", Kind: "resize", Payload: "no object"})
	if w, s, n := <-widths, <-texts, <-numbers; w != 3 || s != "a cat" || n != 8 {
		t.Errorf("handlers got %d, %q and %d", w, s, n)
	}
	if got := awaitState(t, q, odd, simplequeue.StateUnprocessable); got.Attempt != 1 {
		t.Errorf("%d attempts of a payload that does not decode, want 1", got.Attempt)
	}
	if got := awaitState(t, q, unknown, simplequeue.StateWaiting); got.Reason != "unknown_kind" {
		t.Errorf("a job of another kind is %s for %q", got.State, got.Reason)
	}
}

// What two handlers both claim is refused by name.
func TestTemplateHandlersThatCollide(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	tmpl := func(queue, kind string) simplequeue.Handler {
		a := simplequeue.Template[int]{Defaults: simplequeue.NewJob{Queue: queue, Kind: kind}}
		return a.Handler(func(context.Context, *simplequeue.Job, int) error { return nil })
	}
	bad := simplequeue.Template[int]{Defaults: simplequeue.NewJob{Queue: "a", Kind: "k"}, Backoff: backoff.Exponential{Factor: -1}}
	for want, handlers := range map[string][]simplequeue.Handler{
		`kind "k" is served by an earlier handler`:  {tmpl("a", "k"), tmpl("a", "l"), tmpl("a", "k")},
		"Handlers[1] = a: is served by an earlier":  {tmpl("a", "k"), tmpl("a", "")},
		"Handlers[1] = a*: is served by an earlier": {tmpl("a*", "k"), tmpl("a*", "l")},
		"Handlers[0].Backoff":                       {bad.Handler(func(context.Context, *simplequeue.Job, int) error { return nil })},
	} {
		_, err := simplequeue.New(pool, simplequeue.Options{Handlers: handlers})
		var invalid *simplequeue.InvalidOptionError
		if !errors.As(err, &invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("New: %v, want %q", err, want)
		}
	}
}

// A template's backoff is that of its kind only, also after a panic, and a
// BackoffFunc sees the job and the error.
func TestTemplateBackoff(t *testing.T) {
	t.Parallel()
	slow := simplequeue.Template[int]{
		Defaults: simplequeue.NewJob{Queue: "a", Kind: "slow"},
		Backoff: simplequeue.BackoffFunc(func(job *simplequeue.Job, err error) time.Duration {
			if job.Kind != "slow" || err.Error() != "panic: oh" {
				return 0
			}
			return 3 * time.Hour
		}),
	}
	quick := simplequeue.Template[int]{Defaults: simplequeue.NewJob{Queue: "a", Kind: "quick"}}
	q := newQueue(t, pgtest.New(t), simplequeue.Options{
		Backoff: backoff.Constant(time.Hour),
		Handlers: []simplequeue.Handler{
			slow.Handler(func(context.Context, *simplequeue.Job, int) error { panic("oh") }),
			quick.Handler(func(context.Context, *simplequeue.Job, int) error { return errors.New("no") }),
		},
	})
	start(t, q)
	for _, c := range []struct {
		tmpl *simplequeue.Template[int]
		want time.Duration
	}{{&slow, 3 * time.Hour}, {&quick, time.Hour}} {
		in, err := c.tmpl.Insert(t.Context(), q, 1)
		if err != nil {
			t.Fatal(err)
		}
		got := awaitState(t, q, in.ID, simplequeue.StateWaiting)
		if wait := time.Until(got.RunAt); wait < c.want-time.Minute || wait > c.want+time.Minute {
			t.Errorf("%s is to run in %v, want %v", got.Kind, wait, c.want)
		}
	}
}

// The fields of a job's key are its own.
func TestAJobOfATemplateHasFieldsOfItsOwn(t *testing.T) {
	t.Parallel()
	template := simplequeue.Template[int]{Defaults: simplequeue.NewJob{Queue: "a", Unique: simplequeue.Unique{Fields: []string{"id"}}}}
	job := template.New(1)
	job.Unique.Fields[0] = "changed"
	if got := template.Defaults.Unique.Fields[0]; got != "id" {
		t.Errorf("the template's key is of %q", got)
	}
}
