package simplequeue_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
	"github.com/simplequeue/simplequeue/reaper"
)

// Each field of a filter selects, together they all must match, and List and
// Count see the same jobs.
func TestFiltersSelect(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, handler("run", func(_ context.Context, job *simplequeue.Job) error {
		if job.Kind == "dead" {
			return simplequeue.Critical(nil)
		}
		return nil
	}))
	start(t, q)
	jobs := map[string]simplequeue.NewJob{
		"pending": {Queue: "a", Kind: "x", Fingerprint: "f", UniqueKey: "k", Metadata: map[string]string{"team": "ops"}},
		"waiting": {Queue: "a", Kind: "y", Fingerprint: "f", Delay: time.Hour},
		"global":  {Queue: "b", Kind: "x", UniqueKey: "k", UniqueGlobal: true},
		"done":    {Queue: "run", Kind: "x", Fingerprint: "f", UniqueKey: "k"},
		"dead":    {Queue: "run", Kind: "dead", Fingerprint: "f", Metadata: map[string]string{"team": "ops", "at": "night"}},
	}
	ids := map[string]uuid.UUID{}
	names := map[uuid.UUID]string{}
	now := func() time.Time { return queryOne[time.Time](t, pool, "SELECT clock_timestamp()") }
	put := func(name string) {
		ids[name] = insert(t, q, jobs[name])
		names[ids[name]] = name
	}
	before := now()
	put("pending")
	middle := now()
	for _, name := range []string{"waiting", "global", "done"} {
		put(name)
	}
	awaitState(t, q, ids["done"], simplequeue.StateCompleted)
	ended := now()
	put("dead")
	awaitState(t, q, ids["dead"], simplequeue.StateCritical)
	live := []simplequeue.State{simplequeue.StatePending, simplequeue.StateWaiting, simplequeue.StateRunning}
	for _, c := range []struct {
		f    simplequeue.Filter
		want []string
	}{
		{simplequeue.Filter{}, []string{"dead", "done", "global", "pending", "waiting"}},
		{simplequeue.Filter{Queue: "a"}, []string{"pending", "waiting"}},
		{simplequeue.Filter{Kind: "x"}, []string{"done", "global", "pending"}},
		{simplequeue.Filter{Queue: "a", Kind: "x"}, []string{"pending"}},
		{simplequeue.Filter{Fingerprint: "f"}, []string{"dead", "done", "pending", "waiting"}},
		{simplequeue.Filter{Fingerprint: "f", States: live}, []string{"pending", "waiting"}},
		{simplequeue.Filter{UniqueKey: "k"}, []string{"done", "global", "pending"}},
		{simplequeue.Filter{UniqueKey: "k", States: live}, []string{"global", "pending"}},
		{simplequeue.Filter{UniqueKey: "k", States: live, Queue: "a"}, []string{"pending"}},
		{simplequeue.Filter{UniqueKey: "k", States: live, Queue: "b"}, []string{"global"}},
		{simplequeue.Filter{States: []simplequeue.State{simplequeue.StateCompleted, simplequeue.StateWaiting}}, []string{"done", "waiting"}},
		{simplequeue.Filter{IDs: []uuid.UUID{ids["dead"], ids["pending"], uuid.New()}}, []string{"dead", "pending"}},
		{simplequeue.Filter{States: []simplequeue.State{simplequeue.StateRunning, simplequeue.StateCritical}}, []string{"dead"}},
		{simplequeue.Filter{Metadata: map[string]string{"team": "ops"}}, []string{"dead", "pending"}},
		{simplequeue.Filter{Metadata: map[string]string{"team": "ops", "at": "night"}}, []string{"dead"}},
		{simplequeue.Filter{Metadata: map[string]string{"team": "op"}}, nil},
		{simplequeue.Filter{CreatedFrom: before, CreatedBefore: middle}, []string{"pending"}},
		{simplequeue.Filter{CreatedFrom: middle}, []string{"dead", "done", "global", "waiting"}},
		{simplequeue.Filter{CreatedBefore: before}, nil},
		{simplequeue.Filter{FinishedFrom: before}, []string{"dead", "done"}},
		{simplequeue.Filter{FinishedFrom: ended}, []string{"dead"}},
		{simplequeue.Filter{FinishedBefore: ended}, []string{"done"}},
		{simplequeue.Filter{FinishedBefore: ended, States: live}, nil},
		{simplequeue.Filter{Fingerprint: "f", Newest: true}, []string{"dead", "done", "pending", "waiting"}},
		{simplequeue.Filter{IDs: []uuid.UUID{}}, nil},
		{simplequeue.Filter{Queue: "nobody"}, nil},
		{simplequeue.Filter{Queue: "'; --"}, nil},
	} {
		list, err := q.List(t.Context(), c.f)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		want := map[simplequeue.State]int64{}
		for _, j := range list {
			got = append(got, names[j.ID])
			want[j.State]++
		}
		slices.Sort(got)
		if !cmp.Equal(c.want, got) {
			t.Errorf("List(%+v) = %v, want %v", c.f, got, c.want)
		}
		count, err := q.Count(t.Context(), c.f)
		if err != nil || !cmp.Equal(want, count) {
			t.Errorf("Count(%+v) = %v, %v, want %v", c.f, count, err, want)
		}
	}
}

// Pages follow each other by id without a gap or a repetition, in the order of
// the inserts.
func TestListPagesByID(t *testing.T) {
	t.Parallel()
	q := newQueue(t, pgtest.New(t), simplequeue.Options{})
	var want []uuid.UUID
	for i := range 250 {
		want = append(want, insert(t, q, simplequeue.NewJob{Queue: "a", Delay: time.Duration(i%2) * time.Hour}))
	}
	for limit, pages := range map[int]int{0: 3, 7: 36, 250: 1, 1000: 1} {
		var got []uuid.UUID
		n, cursor := 0, ""
		for {
			page, err := q.Page(t.Context(), simplequeue.Filter{Queue: "a", Limit: limit}, cursor)
			if err != nil {
				t.Fatal(err)
			}
			if len(page.Jobs) > 0 {
				n++
			}
			for _, j := range page.Jobs {
				got = append(got, j.ID)
			}
			if cursor = page.Next; cursor == "" {
				break
			}
		}
		if !cmp.Equal(want, got) || n != pages {
			t.Errorf("limit %d: %d jobs on %d pages, want all 250 in order on %d", limit, len(got), n, pages)
		}
	}
}

// An id that nobody has is unknown.
func TestGetOfAnUnknownJob(t *testing.T) {
	t.Parallel()
	q := newQueue(t, pgtest.New(t), simplequeue.Options{})
	for _, id := range []uuid.UUID{uuid.Nil, uuid.New(), uuid.Max} {
		if _, err := q.Get(t.Context(), id); !errors.Is(err, simplequeue.ErrNotFound) {
			t.Errorf("Get(%v): %v, want ErrNotFound", id, err)
		}
	}
}

// One statement reads all tables: a job on its way through them is seen in
// every look, and in one state.
func TestAMovingJobIsAlwaysSeenOnce(t *testing.T) {
	t.Parallel()
	q := newQueue(t, pgtest.New(t), handler("a", func(_ context.Context, job *simplequeue.Job) error {
		if job.ReprocessCount < 60 {
			return simplequeue.RescheduleAfter(0)
		}
		return nil
	}))
	var ids []uuid.UUID
	for range 5 {
		ids = append(ids, insert(t, q, simplequeue.NewJob{Queue: "a"}))
	}
	start(t, q)
	for {
		list, err := q.List(t.Context(), simplequeue.Filter{IDs: ids})
		if err != nil {
			t.Fatal(err)
		}
		if len(list) != len(ids) {
			t.Fatalf("%d of %d jobs are seen: %+v", len(list), len(ids), list)
		}
		if !slices.ContainsFunc(list, func(j simplequeue.JobInfo) bool { return !j.State.Terminal() }) {
			return
		}
	}
}

// The reaper notes live jobs that share a fingerprint: each points to the
// oldest one, and the oldest to none.
func TestJobsThatShareAFingerprintAreFound(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{})
	ended := insert(t, q, simplequeue.NewJob{Queue: "a", Fingerprint: "f"})
	if _, err := q.Cancel(t.Context(), ended, ""); err != nil {
		t.Fatal(err)
	}
	var ids []uuid.UUID
	for i := range 3 {
		ids = append(ids, insert(t, q, simplequeue.NewJob{Queue: fmt.Sprint(i), Fingerprint: "f"}))
	}
	alone := insert(t, q, simplequeue.NewJob{Queue: "a", Fingerprint: "g"})
	r, err := reaper.New(pool, reaper.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := r.Once(t.Context()); err != nil || got.Duplicates != 2 {
		t.Errorf("reaper: %+v, %v, want 2 duplicates", got, err)
	}
	for i, id := range append(ids, alone) {
		want := ids[0]
		if i == 0 || i == 3 {
			want = uuid.Nil
		}
		if got := get(t, q, id).DuplicateOf; got != want {
			t.Errorf("job %d is a duplicate of %v, want %v", i, got, want)
		}
	}
}
