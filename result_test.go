package simplequeue_test

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

type sum struct {
	Total int    `json:"total"`
	Note  string `json:"note,omitempty"`
}

// A job has the result of the attempt that completed it, and no other, whichever
// way its outcome takes.
func TestResultIsThatOfTheCompletingAttempt(t *testing.T) {
	t.Parallel()
	boom := errors.New("boom")
	jobs := map[string]struct {
		process func(job *simplequeue.Job) error
		state   simplequeue.State
		want    string // JSON, "" for none
	}{
		"set":  {func(job *simplequeue.Job) error { return job.SetResult(sum{Total: 3}) }, simplequeue.StateCompleted, `{"total": 3}`},
		"none": {func(*simplequeue.Job) error { return nil }, simplequeue.StateCompleted, ""},
		"null": {func(job *simplequeue.Job) error { return job.SetResult((*sum)(nil)) }, simplequeue.StateCompleted, "null"},
		"the last call wins": {func(job *simplequeue.Job) error {
			return errors.Join(job.SetResult(1), job.SetResult("two"))
		}, simplequeue.StateCompleted, `"two"`},
		"taken back": {func(job *simplequeue.Job) error {
			return errors.Join(job.SetResult(1), job.SetResult(nil))
		}, simplequeue.StateCompleted, ""},
		"complete from deep inside": {func(job *simplequeue.Job) error {
			return errors.Join(job.SetResult(1), simplequeue.Complete())
		}, simplequeue.StateCompleted, "1"},
		"of a failed attempt": {func(job *simplequeue.Job) error {
			if job.Attempt == 1 {
				return errors.Join(job.SetResult(1), simplequeue.RetryAfter(0, boom))
			}
			return nil
		}, simplequeue.StateCompleted, ""},
		"of a job that is cancelled": {func(job *simplequeue.Job) error {
			return errors.Join(job.SetResult(1), simplequeue.Cancel(boom))
		}, simplequeue.StateCancelled, ""},
		"with a large payload": {func(job *simplequeue.Job) error {
			return job.SetResult(len(job.Raw))
		}, simplequeue.StateCompleted, "5000"},
	}
	for _, aside := range []bool{false, true} {
		opts := handler("results", func(_ context.Context, job *simplequeue.Job) error { return jobs[job.Kind].process(job) })
		if aside {
			opts = opts.FinishAside()
		}
		q := newQueue(t, pgtest.New(t), opts)
		start(t, q)
		for name, want := range jobs {
			job := simplequeue.NewJob{Queue: "results", Kind: name}
			if strings.Contains(name, "large") {
				job.Raw = make([]byte, 5000)
			}
			info := awaitState(t, q, insert(t, q, job), want.state)
			if got := string(info.Result); got != want.want {
				t.Errorf("%s, aside %t: result %q, want %q", name, aside, got, want.want)
			}
			if _, err := simplequeue.ResultOf[any](info); errors.Is(err, simplequeue.ErrNoResult) != (want.want == "") {
				t.Errorf("%s, aside %t: ResultOf: %v", name, aside, err)
			}
		}
	}
}

// A typed handler's return value is the result, and is read back by its type.
func TestTypedResult(t *testing.T) {
	t.Parallel()
	add := simplequeue.TypedResult("add", func(_ context.Context, job *simplequeue.Job, terms []int) (sum, error) {
		var s sum
		for _, n := range terms {
			s.Total += n
		}
		switch {
		case job.Kind == "complete":
			return s, simplequeue.Complete()
		case s.Total < 0:
			return s, simplequeue.Critical(errors.New("negative"))
		}
		return s, nil
	})
	q := newQueue(t, pgtest.New(t), simplequeue.Options{Handlers: []simplequeue.Handler{add}})
	start(t, q)
	for _, kind := range []string{"", "complete"} {
		info := awaitState(t, q, insert(t, q, simplequeue.NewJob{Queue: "add", Kind: kind, Payload: []int{1, 2, 3}}), simplequeue.StateCompleted)
		if got, err := simplequeue.ResultOf[sum](info); err != nil || got != (sum{Total: 6}) {
			t.Errorf("kind %q: ResultOf() = %+v, %v, want a total of 6", kind, got, err)
		}
		if _, err := simplequeue.ResultOf[string](info); err == nil || errors.Is(err, simplequeue.ErrNoResult) {
			t.Errorf("kind %q: ResultOf another type: %v, want the decoder's error", kind, err)
		}
	}
	failed := awaitState(t, q, insert(t, q, simplequeue.NewJob{Queue: "add", Payload: []int{-1}}), simplequeue.StateCritical)
	if _, err := simplequeue.ResultOf[sum](failed); !errors.Is(err, simplequeue.ErrNoResult) {
		t.Errorf("ResultOf a failed job: %v, want %v", err, simplequeue.ErrNoResult)
	}
	waiting := get(t, q, insert(t, q, simplequeue.NewJob{Queue: "add", Delay: time.Hour}))
	if _, err := simplequeue.ResultOf[sum](waiting); !errors.Is(err, simplequeue.ErrNoResult) {
		t.Errorf("ResultOf a waiting job: %v, want %v", err, simplequeue.ErrNoResult)
	}
}

// What PostgreSQL would refuse is refused by SetResult: it changes nothing and
// keeps no job, this one or its neighbours, from ending.
func TestResultsThatCannotBeStoredAreRefused(t *testing.T) {
	t.Parallel()
	bad := map[string]any{
		"channel": make(chan int), "NaN": math.NaN(), "NUL": "a\x00b", "invalid UTF-8": "\xff", "invalid UTF-8 inside": []string{"\xff"},
		"invalid JSON": jsonText("{"), "lone surrogate": jsonText(`"\ud800"`), "escaped NUL": jsonText(`{"\u0000": 1}`),
		"beyond numeric": jsonText("1e1000000"), "too large": strings.Repeat("x", 1<<20), "numbers": jsonText("[" + strings.Repeat("1e100000,", 10) + "1e50000]"), "too deep": jsonText(nested(1001)),
	}
	good := map[string]any{"deep": jsonText(nested(1000)), "large": strings.Repeat("x", 1<<20-2), "number": jsonText("1e100000"), "brackets": strings.Repeat("[", 3000)}
	q := newQueue(t, pgtest.New(t), handler("results", func(_ context.Context, job *simplequeue.Job) error {
		if v, ok := good[job.Kind]; ok {
			return job.SetResult(v)
		}
		if err := job.SetResult("the one before"); err != nil {
			return err
		}
		err := job.SetResult(bad[job.Kind])
		var invalid *simplequeue.InvalidValueError
		if !errors.As(err, &invalid) || invalid.Name != "result" || invalid.Reason == "" {
			return simplequeue.Critical(errors.Join(errors.New("not an InvalidValueError"), err))
		}
		return nil
	}))
	start(t, q)
	for name := range bad {
		info := awaitState(t, q, insert(t, q, simplequeue.NewJob{Queue: "results", Kind: name}), simplequeue.StateCompleted)
		if got := string(info.Result); got != `"the one before"` {
			t.Errorf("%s: result %q, want the one before", name, got)
		}
	}
	for name := range good {
		if info := awaitState(t, q, insert(t, q, simplequeue.NewJob{Queue: "results", Kind: name}), simplequeue.StateCompleted); info.Result == nil {
			t.Errorf("%s: no result", name)
		}
	}
}

// A handler can be tested on a job that no queue runs.
func TestSetResultOutsideAQueue(t *testing.T) {
	t.Parallel()
	var job simplequeue.Job
	if err := job.SetResult(1); err != nil {
		t.Error(err)
	}
	if err := job.SetResult(strings.Repeat("x", 1<<20)); err == nil {
		t.Error("a result above the default bound is taken")
	}
}

func nested(levels int) string { return strings.Repeat("[", levels) + strings.Repeat("]", levels) }

// jsonText is a value that encodes as the text it is.
type jsonText string

func (j jsonText) MarshalJSON() ([]byte, error) { return []byte(j), nil }
