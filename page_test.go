package simplequeue_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// pages reads all pages and returns how often each job came.
func pages(t *testing.T, q *simplequeue.SimpleQueue, f simplequeue.Filter) (seen map[uuid.UUID]int, n int) {
	t.Helper()
	seen = map[uuid.UUID]int{}
	for cursor := ""; ; {
		page, err := q.Page(context.Background(), f, cursor)
		if err != nil {
			t.Fatal(err)
		}
		n++
		for _, j := range page.Jobs {
			seen[j.ID]++
		}
		if cursor = page.Next; cursor == "" {
			return seen, n
		}
	}
}

// Jobs run, wait, retry and end while they are listed, and others come: those
// that were there all the time are each listed once.
func TestPagesShowEveryJobOnceWhileAllMove(t *testing.T) {
	t.Parallel()
	q := newQueue(t, pgtest.New(t), handler("a", func(_ context.Context, job *simplequeue.Job) error {
		if job.ReprocessCount < 20 {
			return simplequeue.RescheduleAfter(0)
		}
		return nil
	}))
	jobs := make([]simplequeue.NewJob, 500)
	for i := range jobs {
		jobs[i] = simplequeue.NewJob{Queue: "a", Kind: []string{"x", "y"}[i%2]}
	}
	inserted, err := q.InsertMany(t.Context(), jobs)
	if err != nil {
		t.Fatal(err)
	}
	start(t, q)
	var others sync.WaitGroup
	others.Go(func() {
		for range 30 {
			if _, err := q.InsertMany(context.Background(), jobs[:10]); err != nil {
				t.Errorf("insert: %v", err)
				return
			}
		}
	})
	for range 3 {
		for _, f := range []simplequeue.Filter{{Limit: 40}, {Limit: 40, Newest: true}, {Limit: 20, Kind: "x"}} {
			seen, n := pages(t, q, f)
			if n < 10 {
				t.Errorf("%d pages, want many", n)
			}
			for i, r := range inserted {
				want := 1
				if f.Kind != "" && jobs[i].Kind != f.Kind {
					want = 0
				}
				if seen[r.ID] != want {
					t.Errorf("%+v: job %v was listed %d times, want %d", f, r.ID, seen[r.ID], want)
				}
			}
		}
	}
	others.Wait()
}

// A page reads a bounded part of the tables however few jobs match; the jobs
// come on one of the pages all the same.
func TestARareJobIsFoundPageByPage(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{})
	if _, err := pool.Exec(t.Context(), `
		INSERT INTO simplequeue.job_queue_archive
		    (id, created_at, finished_at, expires_on, attempt, max_attempts, reprocess_count, crash_count, priority, state, queue, kind)
		SELECT lpad(to_hex(i), 32, '0')::uuid, now(), now(), 'infinity', 1, 3, 0, 0, 0, 'completed', 'a', CASE WHEN i = 24500 THEN 'rare' ELSE 'often' END
		FROM generate_series(1, 25000) AS i`); err != nil {
		t.Fatal(err)
	}
	waiting := insert(t, q, simplequeue.NewJob{Queue: "a", Kind: "rare"})
	rare := uuid.MustParse("00000000-0000-0000-0000-000000005fb4")
	for _, newest := range []bool{false, true} {
		f := simplequeue.Filter{Kind: "rare", Newest: newest}
		first, err := q.Page(t.Context(), f, "")
		if err != nil {
			t.Fatal(err)
		}
		if !newest && (len(first.Jobs) != 0 || first.Next == "") {
			t.Errorf("the first page holds %d jobs, next %q: it read 24,500 rows", len(first.Jobs), first.Next)
		}
		if newest && len(first.Jobs) != 2 {
			t.Errorf("the newest rows hold %d jobs, want 2", len(first.Jobs))
		}
		seen, n := pages(t, q, f)
		if want := map[uuid.UUID]int{rare: 1, waiting: 1}; !cmp.Equal(want, seen) || n != 3 {
			t.Errorf("newest %t: found %v on %d pages, want %v on 3", newest, seen, n, want)
		}
		list, err := q.List(t.Context(), f)
		if err != nil || len(list) != 2 {
			t.Errorf("List found %d jobs (%v), want both", len(list), err)
		}
	}
}

// What makes no sense is refused with the name of the field.
func TestFiltersAreChecked(t *testing.T) {
	t.Parallel()
	q := newQueue(t, pgtest.New(t), simplequeue.Options{})
	for range 3 {
		insert(t, q, simplequeue.NewJob{Queue: "a"})
	}
	page, err := q.Page(t.Context(), simplequeue.Filter{Queue: "a", Limit: 1}, "")
	if err != nil || page.Next == "" {
		t.Fatalf("Page: %+v, %v", page, err)
	}
	if next, err := q.Page(t.Context(), simplequeue.Filter{Queue: "a", Limit: 2}, page.Next); err != nil || len(next.Jobs) != 2 {
		t.Errorf("the next page with another limit: %d jobs, %v", len(next.Jobs), err)
	}
	for _, c := range []struct {
		field  string
		f      simplequeue.Filter
		cursor string
	}{
		{"cursor", simplequeue.Filter{Queue: "a"}, "x"},
		{"cursor", simplequeue.Filter{Queue: "a"}, page.Next + "A"},
		{"cursor", simplequeue.Filter{Queue: "b"}, page.Next},
		{"cursor", simplequeue.Filter{Queue: "a", Newest: true}, page.Next},
		{"Limit", simplequeue.Filter{Limit: -1}, ""},
		{"Limit", simplequeue.Filter{Limit: 10_001}, ""},
		{"States", simplequeue.Filter{States: []simplequeue.State{"done"}}, ""},
		{"Queue", simplequeue.Filter{Queue: "a\x00"}, ""},
		{"Kind", simplequeue.Filter{Kind: "\xff"}, ""},
		{"UniqueKey", simplequeue.Filter{UniqueKey: strings.Repeat("k", 513)}, ""},
		{"Metadata", simplequeue.Filter{Metadata: map[string]string{"a": "\x00"}}, ""},
	} {
		_, err := q.Page(t.Context(), c.f, c.cursor)
		var invalid *simplequeue.InvalidFilterError
		if !errors.As(err, &invalid) || invalid.Field != c.field {
			t.Errorf("Page(%+v, %q): %v, want an InvalidFilterError of %s", c.f, c.cursor, err, c.field)
		}
	}
}
