package simplequeue_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// insertBy makes insert middleware of a function that changes one job.
func insertBy(change func(job *simplequeue.NewJob)) simplequeue.InsertMiddleware {
	return func(next simplequeue.InsertFunc) simplequeue.InsertFunc {
		return func(ctx context.Context, jobs []simplequeue.NewJob) ([]simplequeue.Inserted, error) {
			for i := range jobs {
				change(&jobs[i])
			}
			return next(ctx, jobs)
		}
	}
}

// Middleware sees and changes every job on every path, whether its insert shares
// a transaction, is copied or holds a key, the first one outermost; the caller's
// jobs stay as they are.
func TestInsertMiddlewareIsOnEveryPath(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	mark := func(s string) simplequeue.InsertMiddleware {
		return insertBy(func(job *simplequeue.NewJob) {
			if job.Metadata == nil {
				job.Metadata = map[string]string{}
			}
			job.Metadata["marks"] += s
			job.Raw[0]++
		})
	}
	q := newQueue(t, pool, simplequeue.Options{InsertMiddleware: []simplequeue.InsertMiddleware{mark("a"), mark("b")}})
	paths := insertPaths(t, pool, q)
	paths["Insert"] = func(jobs []simplequeue.NewJob) (results []simplequeue.Inserted, err error) {
		for _, job := range jobs {
			r, err := q.Insert(t.Context(), job)
			if err != nil {
				return nil, err
			}
			results = append(results, r)
		}
		return results, nil
	}
	for path, insertInto := range paths {
		for form, jobs := range map[string][]simplequeue.NewJob{
			"group": repeat(3, simplequeue.NewJob{Queue: "a"}),
			"copy":  repeat(250, simplequeue.NewJob{Queue: "a"}),
			"keyed": {{Queue: "a", UniqueKey: path}, {Queue: "a", UniqueKey: path + " 2"}},
		} {
			for i := range jobs {
				jobs[i].Raw, jobs[i].Metadata = []byte{1}, map[string]string{"own": "x"}
			}
			results, err := insertInto(jobs)
			if err != nil {
				t.Fatalf("%s, %s: %v", path, form, err)
			}
			for i, r := range results {
				if jobs[i].Raw[0] != 1 || len(jobs[i].Metadata) != 1 {
					t.Fatalf("%s, %s: the caller's job was changed: %+v", path, form, jobs[i])
				}
				if i > 0 && form == "copy" {
					continue // one says enough
				}
				got := get(t, q, r.ID)
				if want := map[string]string{"own": "x", "marks": "ab"}; !cmp.Equal(got.Metadata, want) || got.Raw[0] != 3 {
					t.Errorf("%s, %s: metadata %v, raw %v, want %v and 3", path, form, got.Metadata, got.Raw, want)
				}
			}
			if n := queryOne[int](t, pool, "SELECT count(*) FROM simplequeue.job WHERE props -> 'metadata' ->> 'marks' = 'ab'"); n != len(jobs) {
				t.Errorf("%s, %s: %d jobs were marked, want %d", path, form, n, len(jobs))
			}
			execute(t, pool, "DELETE FROM simplequeue.job_queue", "DELETE FROM simplequeue.job_unique")
		}
	}
}

// What middleware refuses is not inserted and the caller gets its error; what it
// breaks is refused; it sees the results; an empty list does not reach it.
func TestInsertMiddlewareRefusesAndObserves(t *testing.T) {
	t.Parallel()
	quota := errors.New("quota used up")
	var seen []simplequeue.Inserted
	calls := 0
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{InsertMiddleware: []simplequeue.InsertMiddleware{
		func(next simplequeue.InsertFunc) simplequeue.InsertFunc {
			return func(ctx context.Context, jobs []simplequeue.NewJob) ([]simplequeue.Inserted, error) {
				calls++
				switch jobs[0].Kind {
				case "refused":
					return nil, fmt.Errorf("tenant 7: %w", quota)
				case "broken":
					jobs[0].Priority = 99
				case "dropped":
					jobs = jobs[1:]
				case "rootless":
					ctx = context.Background()
				}
				results, err := next(ctx, jobs)
				seen = results
				return results, err
			}
		},
	}})
	for kind, want := range map[string]string{
		"refused": "tenant 7: quota used up", "broken": "must be 0 to 9", "dropped": "1 results for 2 jobs", "rootless": "context",
	} {
		jobs := []simplequeue.NewJob{{Queue: "a", Kind: kind}, {Queue: "a"}}
		for path, insertInto := range insertPaths(t, pool, q) {
			if path == "InsertMany" && kind == "dropped" {
				continue // what was passed on is committed by then
			}
			_, err := insertInto(jobs)
			if err == nil || !strings.Contains(err.Error(), want) || errors.Is(err, quota) != (kind == "refused") {
				t.Errorf("%s, %s: error %v, want %q", path, kind, err, want)
			}
		}
	}
	if c := counts(t, q, ""); len(c) != 0 {
		t.Errorf("jobs were inserted: %v", c)
	}
	id := insert(t, q, simplequeue.NewJob{Queue: "a", UniqueKey: "k"})
	mustBeDuplicate(t, q, simplequeue.NewJob{Queue: "a", UniqueKey: "k"}, id)
	if want := []simplequeue.Inserted{{ID: id, Duplicate: true}}; !cmp.Equal(seen, want) {
		t.Errorf("middleware saw %+v, want %+v", seen, want)
	}
	before := calls
	if _, err := q.InsertMany(t.Context(), nil); err != nil || calls != before {
		t.Errorf("InsertMany of nothing: %v, %d calls of the middleware", err, calls-before)
	}
	_, err := simplequeue.New(pool, simplequeue.Options{InsertMiddleware: []simplequeue.InsertMiddleware{nil}})
	var invalid *simplequeue.InvalidOptionError
	if !errors.As(err, &invalid) || invalid.Option != "InsertMiddleware[0]" {
		t.Errorf("New with nil middleware: %v", err)
	}
}

// Middleware that changes the fields of a job's key does not change the caller's.
func TestMiddlewareChangesFieldsOfItsOwn(t *testing.T) {
	t.Parallel()
	refused := errors.New("refused")
	q := newQueue(t, pgtest.New(t), simplequeue.Options{InsertMiddleware: []simplequeue.InsertMiddleware{
		func(simplequeue.InsertFunc) simplequeue.InsertFunc {
			return func(_ context.Context, jobs []simplequeue.NewJob) ([]simplequeue.Inserted, error) {
				jobs[0].Unique.Fields[0] = "changed"
				return nil, refused
			}
		},
	}})
	fields := []string{"id"}
	_, err := q.Insert(t.Context(), simplequeue.NewJob{Queue: "a", Payload: 1, Unique: simplequeue.Unique{Fields: fields}})
	if !errors.Is(err, refused) || fields[0] != "id" {
		t.Errorf("%v, the caller's key is of %q", err, fields)
	}
}
