package simplequeue_test

import (
	"context"
	"fmt"
	"log/slog"
	"testing"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// A handler's return value is stored with its job's completion.
func ExampleTypedResult() {
	sums := simplequeue.TypedResult("sums", func(_ context.Context, _ *simplequeue.Job, terms []int) (int, error) {
		sum := 0
		for _, n := range terms {
			sum += n
		}
		return sum, nil
	})

	job := runExample(sums, simplequeue.NewJob{Queue: "sums", Payload: []int{1, 2, 3}})
	sum, err := simplequeue.ResultOf[int](job)
	fmt.Println(job.State, sum, err)
	// Output: completed 6 <nil>
}

// runExample runs a job to its end in a database of its own.
func runExample(h simplequeue.Handler, job simplequeue.NewJob) simplequeue.JobInfo {
	var t exampleTB
	defer t.cleanup()
	q := newQueue(&t, pgtest.New(&t), simplequeue.Options{
		Handlers: []simplequeue.Handler{h}, Logger: slog.New(slog.DiscardHandler),
	})
	stop := start(&t, q)
	defer func() { _ = stop() }()
	inserted, err := q.Insert(context.Background(), job)
	if err != nil {
		panic(err)
	}
	var info simplequeue.JobInfo
	eventually(&t, "the job has ended", func() bool {
		info = get(&t, q, inserted.ID)
		return info.State.Terminal()
	})
	return info
}

// exampleTB lends the helpers of the tests to examples.
type exampleTB struct {
	testing.TB
	cleanups []func()
}

func (*exampleTB) Helper()                           {}
func (*exampleTB) Logf(string, ...any)               {}
func (*exampleTB) Errorf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
func (*exampleTB) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
func (*exampleTB) Fatal(args ...any)                 { panic(fmt.Sprint(args...)) }
func (t *exampleTB) Cleanup(f func())                { t.cleanups = append(t.cleanups, f) }

func (t *exampleTB) cleanup() {
	for i := len(t.cleanups) - 1; i >= 0; i-- {
		t.cleanups[i]()
	}
}
