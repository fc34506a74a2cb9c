package simplequeue

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// batched calls a batch's Process for each job in a goroutine and returns where
// the outcomes arrive, by the job's kind.
func batched(ctx context.Context, h Handler, kinds ...string) map[string]chan error {
	outcomes := map[string]chan error{}
	for _, kind := range kinds {
		outcome := make(chan error, 1)
		outcomes[kind] = outcome
		go func() { outcome <- h.Process(ctx, &Job{Queue: "q", Kind: kind}) }()
	}
	return outcomes
}

func kindsOf(jobs []*Job) string {
	var kinds []string
	for _, j := range jobs {
		kinds = append(kinds, j.Kind)
	}
	slices.Sort(kinds)
	return strings.Join(kinds, "")
}

// A batch starts when it is full, or when its first job has waited long enough.
func TestBatchStartsWhenFullOrLate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		type call struct {
			jobs string
			at   time.Duration
		}
		calls := make(chan call, 10)
		h := Batch("q", 3, time.Second, func(_ context.Context, jobs []*Job) error {
			calls <- call{kindsOf(jobs), time.Since(began)}
			time.Sleep(10 * time.Second)
			return nil
		})
		outcomes := batched(t.Context(), h, "a", "b", "c")
		synctest.Wait()
		late := batched(t.Context(), h, "d")
		time.Sleep(900 * time.Millisecond)
		later := batched(t.Context(), h, "e")
		for _, o := range []chan error{outcomes["a"], outcomes["b"], outcomes["c"], late["d"], later["e"]} {
			if err := <-o; err != nil {
				t.Error(err)
			}
		}
		if first, second := <-calls, <-calls; first != (call{"abc", 0}) || second != (call{"de", time.Second}) || len(calls) > 0 {
			t.Errorf("batches %v and %v, and %d more", first, second, len(calls))
		}
	})
}

// Each job has the outcome that is meant for it.
func TestBatchOutcomes(t *testing.T) {
	t.Parallel()
	boom := errors.New("boom")
	for name, c := range map[string]struct {
		process func(jobs []*Job) error
		want    map[string]string // by kind, "" for nil
	}{
		"nil":           {func([]*Job) error { return nil }, map[string]string{"a": "", "b": "", "c": ""}},
		"an error":      {func([]*Job) error { return boom }, map[string]string{"a": "boom", "b": "boom", "c": "boom"}},
		"no errors":     {func([]*Job) error { var none BatchErrors; return none }, map[string]string{"a": "", "b": "", "c": ""}},
		"of each":       {func(jobs []*Job) error { return ofEach(jobs) }, map[string]string{"a": "a fails", "b": "", "c": "c fails"}},
		"wrapped":       {func(jobs []*Job) error { return fmt.Errorf("w: %w", ofEach(jobs)) }, map[string]string{"a": "a fails", "b": "", "c": "c fails"}},
		"too few":       {func([]*Job) error { return BatchErrors{nil} }, map[string]string{"a": "3 jobs", "b": "outcomes of 1", "c": "3 jobs"}},
		"panic":         {func([]*Job) error { panic("oh") }, map[string]string{"a": "panic: oh", "b": "panic: oh", "c": "panic: oh"}},
		"Goexit":        {func([]*Job) error { runtime.Goexit(); return nil }, map[string]string{"a": "Goexit", "b": "Goexit", "c": "Goexit"}},
		"hostile error": {func([]*Job) error { return hostile{} }, map[string]string{"a": "panic: hostile", "b": "panic: hostile", "c": "panic: hostile"}},
		"sorted": {func(jobs []*Job) error {
			slices.SortFunc(jobs, func(x, y *Job) int { return strings.Compare(y.Kind, x.Kind) })
			return ofEach(jobs)
		}, map[string]string{"a": "a fails", "b": "", "c": "c fails"}},
		"taken out": {func(jobs []*Job) error {
			errs := ofEach(jobs)
			jobs[0] = jobs[1]
			return errs
		}, nil},
	} {
		synctest.Test(t, func(t *testing.T) {
			h := Batch("q", 3, time.Second, func(_ context.Context, jobs []*Job) error { return c.process(jobs) })
			failed := 0
			for kind, o := range batched(t.Context(), h, "a", "b", "c") {
				err := <-o
				if err != nil {
					failed++
				}
				var p *panicError
				switch want, ok := c.want[kind]; {
				case !ok:
				case want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)):
					t.Errorf("%s: job %s: %v, want %q", name, kind, err, want)
				case (strings.HasPrefix(want, "panic") || want == "Goexit") && (!errors.As(err, &p) || p.stack == ""):
					t.Errorf("%s: job %s has no stack", name, kind)
				}
			}
			if c.want == nil && failed == 0 {
				t.Errorf("%s: every job completes", name)
			}
		})
	}
	text := BatchErrors{nil, boom, errors.New("other")}.Error()
	if text != "2 of 3 jobs failed, the first: boom" {
		t.Error(text)
	}
}

// ofEach fails the jobs but b.
func ofEach(jobs []*Job) BatchErrors {
	errs := make(BatchErrors, len(jobs))
	for i, j := range jobs {
		if j.Kind != "b" {
			errs[i] = errors.New(j.Kind + " fails")
		}
	}
	return errs
}

// hostile panics when it is asked what it is.
type hostile struct{}

func (hostile) Error() string { return "hostile" }
func (hostile) As(any) bool   { panic("hostile") }

// The context of a batch ends when the last of its jobs' has, for that one's
// reason. A job whose context ends before the batch starts leaves it; one whose
// context ends later waits until the function has returned.
func TestBatchContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		type value struct{}
		base := context.WithValue(t.Context(), value{}, "v")
		of := func() (context.Context, context.CancelCauseFunc) { return context.WithCancelCause(base) }
		left, leave := of()
		first, endFirst := of()
		second, endSecond := of()
		ended := make(chan error, 1)
		release := make(chan struct{})
		h := Batch("q", 2, time.Hour, func(ctx context.Context, jobs []*Job) error {
			if got := kindsOf(jobs); got != "bc" || ctx.Value(value{}) != "v" {
				t.Errorf("jobs %s, value %v", got, ctx.Value(value{}))
			}
			<-ctx.Done()
			ended <- context.Cause(ctx)
			<-release
			return ctx.Err()
		})
		a := batched(left, h, "a")["a"]
		synctest.Wait()
		leave(ErrCancelled)
		if err := <-a; !errors.Is(err, context.Canceled) {
			t.Errorf("the job that left: %v", err)
		}
		b := batched(first, h, "b")["b"]
		synctest.Wait()
		c := batched(second, h, "c")["c"]
		synctest.Wait()
		endFirst(ErrLeaseLost)
		synctest.Wait()
		if len(ended) > 0 || len(b) > 0 {
			t.Error("the end of one job's context ended the batch, or its wait")
		}
		endSecond(ErrShutdown)
		if cause := <-ended; !errors.Is(cause, ErrShutdown) {
			t.Errorf("cause %v, want that of the last", cause)
		}
		synctest.Wait()
		if len(b) > 0 || len(c) > 0 {
			t.Error("a job's wait has ended before the function has")
		}
		close(release)
		for _, o := range []chan error{b, c} {
			if err := <-o; !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}
		if b := h.(*batcher); len(b.open) != 0 {
			t.Errorf("%d batches are left open", len(b.open))
		}
	})
}

// Jobs that time out do so together, and know why.
func TestBatchTimesOut(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		h := Batch("q", 2, time.Second, func(ctx context.Context, _ []*Job) error {
			<-ctx.Done()
			if d, ok := ctx.Deadline(); !ok || d.Sub(began) != 1500*time.Millisecond || !errors.Is(context.Cause(ctx), ErrTimeout) {
				t.Errorf("deadline %v, cause %v", d.Sub(began), context.Cause(ctx))
			}
			return ctx.Err()
		})
		outcomes := make(chan error, 2)
		for range 2 {
			ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, ErrTimeout)
			defer cancel()
			go func() {
				err := h.Process(ctx, &Job{Queue: "q"})
				if ctx.Err() == nil {
					t.Error("the job's own context has not ended")
				}
				outcomes <- err
			}()
			time.Sleep(500 * time.Millisecond)
		}
		for range 2 {
			if err := <-outcomes; !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
		}
	})
}

// Jobs of different queues, or with different timeouts, share no batch, and one
// that has crashed or panicked comes alone, at once.
func TestBatchesKeepApart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		type call struct {
			kinds string
			at    time.Duration
		}
		calls := make(chan call, 10)
		h := Batch("*", 10, time.Second, func(_ context.Context, jobs []*Job) error {
			calls <- call{kindsOf(jobs), time.Since(began)}
			return nil
		})
		for _, j := range []*Job{
			{Queue: "q", Kind: "a"},
			{Queue: "q", Kind: "b", Timeout: time.Minute},
			{Queue: "other", Kind: "c"},
			{Queue: "q", Kind: "d", CrashCount: 1},
			{Queue: "q", Kind: "e", Errors: []AttemptError{{Error: "panic: x", Stack: "s"}}},
			{Queue: "q", Kind: "f", Errors: []AttemptError{{Error: "plain"}}},
		} {
			go func() { _ = h.Process(t.Context(), j) }()
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		close(calls)
		got := map[call]bool{}
		for c := range calls {
			got[c] = true
		}
		for _, want := range []call{{"af", time.Second}, {"b", time.Second}, {"c", time.Second}, {"d", 0}, {"e", 0}} {
			if !got[want] {
				t.Errorf("no batch %v in %v", want, got)
			}
		}
	})
}

// A batch that could never be full, or never starts, is refused.
func TestBatchesAreChecked(t *testing.T) {
	t.Parallel()
	process := func(context.Context, []*Job) error { return nil }
	for what, h := range map[string]Handler{
		"size":     Batch("q", 0, time.Second, process),
		"wait":     Batch("q", 1, 0, process),
		"function": Batch("q", 1, time.Second, nil),
	} {
		for _, h := range []Handler{h, Wrap(h, nil), NewMux("q").Handle("k", h)} {
			var invalid *InvalidOptionError
			if _, err := newRoutes(&Options{Handlers: []Handler{h}}); !errors.As(err, &invalid) || !strings.Contains(invalid.Reason, what) {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
}
