package simplequeue_test

import (
	"context"
	"database/sql"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
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

// storedRows is all that is stored of live jobs, of each as text, but for what
// differs between two inserts of the same job. A time is what passes until then,
// in units of ten minutes.
func storedRows(t testing.TB, pool *pgxpool.Pool, ids ...uuid.UUID) []string {
	t.Helper()
	rows, err := pool.Query(context.Background(), `
		SELECT concat_ws(E'\n',
			(SELECT to_jsonb(j) - '{id,created_at,seq}'::text[] FROM simplequeue.job_queue AS j WHERE j.id = i.id),
			to_jsonb(w) - '{id,created_at,run_at}'::text[] || jsonb_build_object('in', CASE WHEN w.run_at < 'infinity' THEN round(extract(epoch FROM w.run_at - w.created_at) / 600) END),
			(SELECT to_jsonb(p) - 'id' FROM simplequeue.job_payload AS p WHERE p.id = i.id),
			(SELECT to_jsonb(f) - 'job_id' FROM simplequeue.job_fingerprint AS f WHERE f.job_id = i.id),
			(SELECT to_jsonb(u) - 'job_id' FROM simplequeue.job_unique AS u WHERE u.job_id = i.id),
			(SELECT to_jsonb(g) - '{job_id,arrived,place,tx,run_at}'::text[] || jsonb_build_object('in', round(extract(epoch FROM g.run_at - w.created_at) / 600))
			 FROM simplequeue.job_gated AS g WHERE g.job_id = i.id),
			(SELECT to_jsonb(h) - '{job_id,expires_at,run_at}'::text[] || jsonb_build_object('in', round(extract(epoch FROM h.run_at - w.created_at) / 600),
			        'until', round(extract(epoch FROM h.expires_at - w.created_at) / 600))
			 FROM simplequeue.job_held AS h WHERE h.job_id = i.id),
			(SELECT 'chosen' FROM simplequeue.job_client_id AS c WHERE c.id = i.id),
			(SELECT 'slots: ' || nullif(count(*), 0) FROM simplequeue.job_slot AS s WHERE s.job_id = i.id))
		FROM unnest($1::uuid[]) WITH ORDINALITY AS i(id, n)
		LEFT JOIN simplequeue.job_waiting AS w ON w.id = i.id
		ORDER BY i.n`, ids)
	if err != nil {
		t.Fatal(err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// Every way to insert stores the same rows for the same job, whatever it asks for:
// alone, in a short list, and in one so long that InsertMany copies it.
func TestEveryInsertPathStoresTheSameRow(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{})
	keyed := allFields()
	plain := keyed
	plain.UniqueKey, plain.UniqueGlobal = "", false
	big, awaited := plain, plain
	big.Payload, big.Raw, awaited.Awaited = make([]int, 2000), make([]byte, 3000), true
	gated, later := awaited, keyed
	gated.OrderKey, gated.FairnessKey, gated.Delay = "o\t", "f", 2*time.Hour
	held := gated
	held.Hold = 3 * time.Hour
	runAt := time.Now().Add(100 * time.Hour).Truncate(time.Microsecond)
	later.UniqueKey, later.RunAt = "later", runAt.Add(789*time.Nanosecond).In(time.FixedZone("", 3600))
	runnable := []simplequeue.NewJob{{Queue: "a"}, plain, big, awaited}
	jobs := slices.Concat(runnable, []simplequeue.NewJob{gated, held, keyed, later})

	var want []string
	for path, insertInto := range insertPaths(t, pool, q) {
		for form, lists := range [][][]simplequeue.NewJob{{jobs}, slices.Collect(slices.Chunk(jobs, 1)), {slices.Repeat(runnable, 60)}} {
			var ids []uuid.UUID
			for _, list := range lists {
				results, err := insertInto(list)
				if err != nil {
					t.Fatalf("%s, form %d: %v", path, form, err)
				}
				ids = append(ids, idsOf(results)...)
			}
			got := storedRows(t, pool, ids...)
			if want == nil {
				want = got
			}
			if len(ids) > len(jobs) {
				if d := cmp.Diff(slices.Repeat(want[:len(runnable)], 60), got); d != "" {
					t.Errorf("%s of many differs:\n%s", path, d)
				}
				continue
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("%s, form %d differs:\n%s", path, form, d)
			}
			last := ids[len(ids)-1]
			if at := get(t, q, last).RunAt; !at.Equal(runAt) {
				t.Errorf("%s, form %d: run at %v, want the time that was given, to the microsecond: %v", path, form, at, runAt)
			}
			if n, err := q.CancelMatching(t.Context(), simplequeue.Filter{IDs: ids[len(ids)-2:]}, ""); err != nil || n != 2 {
				t.Fatalf("%d keys are free again, %v", n, err)
			}
		}
	}
	for i, part := range []string{`"queue": "a"`, `"payload_bytes"`, `"keep_archive"`, `"awaited"`, `"fairness_key": "f"`, `"until": 18`, `"unique_key"`, `"reason": "scheduled"`} {
		if !strings.Contains(want[i], part) {
			t.Errorf("job %d is stored as %s, without %s", i, want[i], part)
		}
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
