package simplequeue_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// exampleTest is as much of a test as a database needs.
type exampleTest struct {
	testing.TB
	cleanups []func()
}

func (*exampleTest) Helper()                      {}
func (e *exampleTest) Cleanup(f func())           { e.cleanups = append(e.cleanups, f) }
func (*exampleTest) Errorf(s string, args ...any) { fmt.Printf(s+"\n", args...) }
func (*exampleTest) Fatalf(s string, args ...any) { panic(fmt.Sprintf(s, args...)) }

// examplePool is a pool on a fresh, migrated database; done removes both.
func examplePool() (pool *pgxpool.Pool, done func()) {
	e := &exampleTest{}
	pool = pgtest.New(e)
	return pool, func() {
		for i := len(e.cleanups) - 1; i >= 0; i-- {
			e.cleanups[i]()
		}
	}
}

func ExampleTemplate() {
	type Thumbnail struct{ File string }
	thumbnails := simplequeue.Template[Thumbnail]{
		Defaults: simplequeue.NewJob{Queue: "images", Kind: "thumbnail", MaxAttempts: 5, Priority: 4},
	}

	pool, done := examplePool()
	defer done()
	ctx, stop := context.WithCancel(context.Background())
	queue, err := simplequeue.New(pool, simplequeue.Options{Handlers: []simplequeue.Handler{
		thumbnails.Handler(func(_ context.Context, job *simplequeue.Job, t Thumbnail) error {
			fmt.Println(t.File, "at priority", job.Priority, "of", job.MaxAttempts, "attempts")
			stop()
			return nil
		}),
	}})
	if err != nil {
		panic(err)
	}
	urgent := func(j *simplequeue.NewJob) { j.Priority = 0 }
	if _, err := thumbnails.Insert(ctx, queue, Thumbnail{File: "cat.png"}, urgent); err != nil {
		panic(err)
	}
	if err := queue.Run(ctx); err != nil {
		panic(err)
	}
	// Output: cat.png at priority 0 of 5 attempts
}

func ExampleInsertMiddleware() {
	pool, done := examplePool()
	defer done()
	type tenant struct{}
	queue, err := simplequeue.New(pool, simplequeue.Options{InsertMiddleware: []simplequeue.InsertMiddleware{
		func(next simplequeue.InsertFunc) simplequeue.InsertFunc {
			return func(ctx context.Context, jobs []simplequeue.NewJob) ([]simplequeue.Inserted, error) {
				name, ok := ctx.Value(tenant{}).(string)
				if !ok {
					return nil, fmt.Errorf("%d jobs without a tenant", len(jobs))
				}
				for i := range jobs {
					jobs[i].Metadata = map[string]string{"tenant": name}
				}
				return next(ctx, jobs)
			}
		},
	}})
	if err != nil {
		panic(err)
	}
	ctx := context.Background()
	_, err = queue.Insert(ctx, simplequeue.NewJob{Queue: "mails"})
	fmt.Println("error:", err)
	in, err := queue.Insert(context.WithValue(ctx, tenant{}, "acme"), simplequeue.NewJob{Queue: "mails"})
	if err != nil {
		panic(err)
	}
	job, err := queue.Get(ctx, in.ID)
	if err != nil {
		panic(err)
	}
	fmt.Println(job.Metadata["tenant"])
	// Output:
	// error: 1 jobs without a tenant
	// acme
}

func ExampleUnique() {
	pool, done := examplePool()
	defer done()
	queue, err := simplequeue.New(pool, simplequeue.Options{})
	if err != nil {
		panic(err)
	}
	type Index struct {
		Document int
		Text     string
	}
	// One job a document, which runs when nothing has changed for a minute and
	// ten minutes after the first change at the latest, on the newest text.
	index := simplequeue.Template[Index]{Defaults: simplequeue.NewJob{
		Queue: "index", Delay: time.Minute,
		Unique: simplequeue.Unique{
			Fields:     []string{"Document"},
			OnConflict: simplequeue.ConflictReplace,
			MaxDelay:   10 * time.Minute,
		},
	}}
	ctx := context.Background()
	for _, change := range []Index{{7, "draft"}, {8, "other"}, {7, "final"}} {
		in, err := index.Insert(ctx, queue, change)
		if err != nil {
			panic(err)
		}
		job, err := queue.Get(ctx, in.ID)
		if err != nil {
			panic(err)
		}
		fmt.Printf("replaced: %t, %s\n", in.Replaced, job.Payload)
	}
	// Output:
	// replaced: false, {"Text": "draft", "Document": 7}
	// replaced: false, {"Text": "other", "Document": 8}
	// replaced: true, {"Text": "final", "Document": 7}
}

func ExampleSimpleQueue_SetQueueLimit() {
	pool, done := examplePool()
	defer done()
	queue, err := simplequeue.New(pool, simplequeue.Options{})
	if err != nil {
		panic(err)
	}
	ctx := context.Background()
	if err := queue.SetQueueLimit(ctx, "renders", 2); err != nil {
		panic(err)
	}
	for range 3 {
		_, err := queue.Insert(ctx, simplequeue.NewJob{Queue: "renders"})
		fmt.Println(err, errors.Is(err, simplequeue.ErrQueueFull))
	}
	// Output:
	// <nil> false
	// <nil> false
	// simplequeue: queue "renders" is full: its limit is 2 live jobs true
}
