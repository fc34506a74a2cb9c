package simplequeue_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// examplePool is a pool on a fresh, migrated database; done removes both.
func examplePool() (pool *pgxpool.Pool, done func()) {
	t := &exampleTB{}
	return pgtest.New(t), t.cleanup
}

// A job exists if and only if the rows do that it is about.
func ExampleSimpleQueue_InsertTx() {
	pool, done := examplePool()
	defer done()
	queue, err := simplequeue.New(pool, simplequeue.Options{})
	if err != nil {
		panic(err)
	}
	ctx := context.Background()
	if _, err := pool.Exec(ctx, "CREATE TABLE customer (name text)"); err != nil {
		panic(err)
	}
	signUp := func(name string, last error) {
		err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, "INSERT INTO customer VALUES ($1)", name); err != nil {
				return err
			}
			if _, err := queue.InsertTx(ctx, tx, simplequeue.NewJob{Queue: "mails", Payload: name}); err != nil {
				return err
			}
			return last
		})
		counts, _ := queue.Count(ctx, simplequeue.Filter{Queue: "mails"})
		fmt.Println(err, counts)
	}
	signUp("ada", errors.New("rolled back"))
	signUp("ada", nil)
	// Output:
	// rolled back map[]
	// <nil> map[pending:1]
}

// The same with database/sql, and any driver.
func ExampleSimpleQueue_InsertSQLTx() {
	pool, done := examplePool()
	defer done()
	db := stdlib.OpenDBFromPool(pool)
	defer func() { _ = db.Close() }()
	queue, err := simplequeue.New(pool, simplequeue.Options{})
	if err != nil {
		panic(err)
	}
	ctx := context.Background()
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		panic(err)
	}
	defer func() { _ = tx.Rollback() }()
	in, err := queue.InsertSQLTx(ctx, tx, simplequeue.NewJob{Queue: "mails"})
	if err != nil {
		panic(err)
	}
	_, err = queue.Get(ctx, in.ID)
	fmt.Println("before the commit:", errors.Is(err, simplequeue.ErrNotFound))
	if err := tx.Commit(); err != nil {
		panic(err)
	}
	job, err := queue.Get(ctx, in.ID)
	fmt.Println("after it:", job.State, err)
	// Output:
	// before the commit: true
	// after it: pending <nil>
}

// SQL inserts jobs by a function, from any language.
func Example_enqueue() {
	pool, done := examplePool()
	defer done()
	for range 2 {
		var duplicate bool
		if err := pool.QueryRow(context.Background(), `
			SELECT duplicate FROM simplequeue.enqueue('mails', '{"to": "ada@example.org"}', unique_key => 'welcome:ada', delay => '10 minutes')`).Scan(&duplicate); err != nil {
			panic(err)
		}
		fmt.Println("duplicate:", duplicate)
	}
	// Output:
	// duplicate: false
	// duplicate: true
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

// One report a day, by the days of Berlin.
func ExampleUnique_window() {
	pool, done := examplePool()
	defer done()
	queue, err := simplequeue.New(pool, simplequeue.Options{})
	if err != nil {
		panic(err)
	}
	ctx := context.Background()
	for _, at := range []string{"2100-05-01T21:00:00Z", "2100-05-01T21:30:00Z", "2100-05-01T22:30:00Z"} {
		due, err := time.Parse(time.RFC3339, at)
		if err != nil {
			panic(err)
		}
		in, err := queue.Insert(ctx, simplequeue.NewJob{
			Queue: "reports", UniqueKey: "report", RunAt: due,
			Unique: simplequeue.Unique{Window: 24 * time.Hour, Zone: "Europe/Berlin"},
		})
		if err != nil {
			panic(err)
		}
		job, err := queue.Get(ctx, in.ID)
		fmt.Println(job.UniqueKey, in.Duplicate, err)
	}
	// Output:
	// report@2100-05-01 false <nil>
	// report@2100-05-01 true <nil>
	// report@2100-05-02 false <nil>
}

// A job that runs an hour after the last call.
func ExampleUnique_debounce() {
	pool, done := examplePool()
	defer done()
	queue, err := simplequeue.New(pool, simplequeue.Options{})
	if err != nil {
		panic(err)
	}
	ctx := context.Background()
	for range 2 {
		in, err := queue.Insert(ctx, simplequeue.NewJob{
			Queue: "index", UniqueKey: "document 7", Delay: time.Hour, Payload: "the first one's",
			Unique: simplequeue.Unique{OnConflict: simplequeue.ConflictDebounce, MaxDelay: 24 * time.Hour},
		})
		fmt.Println("put off:", in.Replaced, err)
	}
	counts, err := queue.Count(ctx, simplequeue.Filter{Queue: "index"})
	fmt.Println(counts, err)
	// Output:
	// put off: false <nil>
	// put off: true <nil>
	// map[waiting:1] <nil>
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
