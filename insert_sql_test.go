package simplequeue_test

import (
	"context"
	"database/sql"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgxpool"
	_ "github.com/jackc/pgx/v5/stdlib"
	_ "github.com/lib/pq"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// sqlDrivers are the drivers of database/sql that users bring.
var sqlDrivers = []string{"pgx", "postgres"}

// openSQL opens the database of a pool with a driver of database/sql.
func openSQL(t testing.TB, driver string, pool *pgxpool.Pool) *sql.DB {
	t.Helper()
	db, err := sql.Open(driver, pool.Config().ConnString())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

// insertPaths are all ways to insert a list, each in a transaction of its own
// that it commits.
func insertPaths(t testing.TB, pool *pgxpool.Pool, q *simplequeue.SimpleQueue) map[string]func([]simplequeue.NewJob) ([]simplequeue.Inserted, error) {
	ctx := context.Background()
	paths := map[string]func([]simplequeue.NewJob) ([]simplequeue.Inserted, error){
		"InsertMany": func(jobs []simplequeue.NewJob) ([]simplequeue.Inserted, error) { return q.InsertMany(ctx, jobs) },
		"InsertManyTx": func(jobs []simplequeue.NewJob) ([]simplequeue.Inserted, error) {
			tx, err := pool.Begin(ctx)
			if err != nil {
				return nil, err
			}
			defer func() { _ = tx.Rollback(ctx) }()
			r, err := q.InsertManyTx(ctx, tx, jobs)
			if err != nil {
				return nil, err
			}
			return r, tx.Commit(ctx)
		},
	}
	for _, driver := range sqlDrivers {
		db := openSQL(t, driver, pool)
		paths["InsertManySQLTx "+driver] = func(jobs []simplequeue.NewJob) ([]simplequeue.Inserted, error) {
			tx, err := db.BeginTx(ctx, nil)
			if err != nil {
				return nil, err
			}
			defer func() { _ = tx.Rollback() }()
			r, err := q.InsertManySQLTx(ctx, tx, jobs)
			if err != nil {
				return nil, err
			}
			return r, tx.Commit()
		}
	}
	return paths
}

// Every way to insert stores the same row for the same job, alone or in a list,
// with a key or without.
func TestEveryInsertPathStoresTheSameRow(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{})
	keyed := allFields()
	plain := keyed
	plain.UniqueKey, plain.UniqueGlobal = "", false
	big := plain
	big.Payload, big.Raw = make([]int, 2000), make([]byte, 3000)
	later := keyed
	later.UniqueKey, later.RunAt = "later", time.Date(2200, 1, 2, 3, 4, 5, 6789, time.FixedZone("", 3600))
	jobs := []simplequeue.NewJob{{Queue: "a"}, plain, big, keyed, later}

	var want []simplequeue.JobInfo
	for path, insertInto := range insertPaths(t, pool, q) {
		for _, form := range []string{"all", "one by one"} {
			var results []simplequeue.Inserted
			if form == "all" {
				r, err := insertInto(jobs)
				if err != nil {
					t.Fatalf("%s: %v", path, err)
				}
				results = r
			} else {
				for _, job := range jobs {
					r, err := insertInto([]simplequeue.NewJob{job})
					if err != nil {
						t.Fatalf("%s: %v", path, err)
					}
					results = append(results, r...)
				}
			}
			var got []simplequeue.JobInfo
			for _, r := range results {
				if r.Duplicate {
					t.Fatalf("%s: %+v", path, r)
				}
				got = append(got, get(t, q, r.ID))
			}
			if want == nil {
				want = got
			}
			if d := cmp.Diff(want, got, ignoreIdentity); d != "" {
				t.Errorf("%s, %s differs:\n%s", path, form, d)
			}
			for _, r := range results {
				if _, err := q.Cancel(t.Context(), r.ID, ""); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if got := want[4].RunAt; !got.Equal(time.Date(2200, 1, 2, 2, 4, 5, 6000, time.UTC)) {
		t.Errorf("run at %v, want the time that was given, to the microsecond", got)
	}
}

// A transaction of database/sql inserts as one of pgx does: with the caller's
// rows or not at all, and the results tell of duplicates.
func TestInsertInASQLTransaction(t *testing.T) {
	t.Parallel()
	for _, driver := range sqlDrivers {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.New(t)
			execute(t, pool, "CREATE TABLE orders (id int)")
			ran := make(chan string, 10)
			q := newQueue(t, pool, simplequeue.Options{
				PollInterval: time.Minute, // what runs was woken
				Handlers: []simplequeue.Handler{simplequeue.HandlerFunc("a", func(_ context.Context, job *simplequeue.Job) error {
					ran <- string(job.Payload)
					return nil
				})},
			})
			start(t, q)
			db := openSQL(t, driver, pool)
			for _, commit := range []bool{false, true} {
				tx, err := db.BeginTx(t.Context(), nil)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := tx.Exec("INSERT INTO orders VALUES (1)"); err != nil {
					t.Fatal(err)
				}
				one, err := q.InsertSQLTx(t.Context(), tx, simplequeue.NewJob{Queue: "a", Payload: "one"})
				if err != nil {
					t.Fatal(err)
				}
				many, err := q.InsertManySQLTx(t.Context(), tx, []simplequeue.NewJob{
					{Queue: "a", Payload: "two", UniqueKey: "k"}, {Queue: "a", UniqueKey: "k"},
				})
				if err != nil {
					t.Fatal(err)
				}
				if many[0].Duplicate || !many[1].Duplicate || many[1].ID != many[0].ID {
					t.Errorf("results %+v, want the second to be a duplicate of the first", many)
				}
				if got := state(t, q, one.ID); got != "" {
					t.Errorf("job is %s before the commit", got)
				}
				end := tx.Rollback
				if commit {
					end = tx.Commit
				}
				if err := end(); err != nil {
					t.Fatal(err)
				}
			}
			got := map[string]bool{<-ran: true, <-ran: true}
			if want := map[string]bool{`"one"`: true, `"two"`: true}; !cmp.Equal(got, want) {
				t.Errorf("ran %v, want %v", got, want)
			}
			eventually(t, "both completed", func() bool { return counts(t, q, "a")[simplequeue.StateCompleted] == 2 })
			if n := queryOne[int](t, pool, "SELECT count(*) FROM orders"); n != 1 {
				t.Errorf("%d orders, want 1", n)
			}
		})
	}
}
