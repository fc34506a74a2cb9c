package simplequeue_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

func ptr[T any](v T) *T { return &v }

// Each field changes, in either table, and nothing else does.
func TestChangeOfAWaitingOrPendingJob(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{})
	big := strings.Repeat("b", 3000)
	for _, delay := range []time.Duration{0, time.Hour} {
		for _, c := range []struct {
			name   string
			before simplequeue.NewJob
			change simplequeue.Change
			want   func(i simplequeue.JobInfo) bool
		}{
			{"priority", simplequeue.NewJob{Priority: 5}, simplequeue.Change{Priority: ptr(2)}, func(i simplequeue.JobInfo) bool { return i.Priority == 2 }},
			{"later", simplequeue.NewJob{}, simplequeue.Change{Delay: 3 * time.Hour}, func(i simplequeue.JobInfo) bool {
				return i.State == simplequeue.StateWaiting && i.RunAt.After(time.Now().Add(2*time.Hour))
			}},
			{"now", simplequeue.NewJob{}, simplequeue.Change{RunAt: time.Now().Add(-time.Hour)}, func(i simplequeue.JobInfo) bool { return i.State == simplequeue.StatePending }},
			{"payload", simplequeue.NewJob{Payload: "a", Raw: []byte("r")}, simplequeue.Change{Payload: "b"}, func(i simplequeue.JobInfo) bool {
				return string(i.Payload) == `"b"` && string(i.Raw) == "r"
			}},
			{"raw", simplequeue.NewJob{Payload: "a", Raw: []byte("r")}, simplequeue.Change{Raw: []byte{}}, func(i simplequeue.JobInfo) bool {
				return string(i.Payload) == `"a"` && i.Raw == nil
			}},
			{"to big", simplequeue.NewJob{Payload: "a", Raw: []byte("r")}, simplequeue.Change{Payload: big}, func(i simplequeue.JobInfo) bool {
				return len(i.Payload) == 3002 && string(i.Raw) == "r"
			}},
			{"big to big", simplequeue.NewJob{Payload: big, Raw: []byte("r")}, simplequeue.Change{Payload: big + "x"}, func(i simplequeue.JobInfo) bool {
				return len(i.Payload) == 3003 && string(i.Raw) == "r"
			}},
			{"to small", simplequeue.NewJob{Payload: big, Raw: []byte("r")}, simplequeue.Change{Payload: "s"}, func(i simplequeue.JobInfo) bool {
				return string(i.Payload) == `"s"` && string(i.Raw) == "r"
			}},
			{"priority of a big one", simplequeue.NewJob{Payload: big}, simplequeue.Change{Priority: ptr(1)}, func(i simplequeue.JobInfo) bool {
				return len(i.Payload) == 3002 && i.Priority == 1
			}},
		} {
			job := c.before
			job.Queue, job.Delay, job.UniqueKey, job.Fingerprint, job.Metadata = "a", delay, "u"+c.name+delay.String(), "f", map[string]string{"a": "b"}
			id := insert(t, q, job)
			if err := q.Change(t.Context(), id, c.change); err != nil {
				t.Errorf("%s, delay %v: %v", c.name, delay, err)
				continue
			}
			info := get(t, q, id)
			if !c.want(info) {
				t.Errorf("%s, delay %v: %+v", c.name, delay, info)
			}
			if info.UniqueKey != job.UniqueKey || info.Fingerprint != "f" || info.Metadata["a"] != "b" || info.MaxAttempts != 3 {
				t.Errorf("%s, delay %v: something else has changed: %+v", c.name, delay, info)
			}
			if delay > 0 && c.change.RunAt.IsZero() && c.change.Delay == 0 && (info.State != simplequeue.StateWaiting || info.Reason != "scheduled") {
				t.Errorf("%s: the waiting job is %s (%s)", c.name, info.State, info.Reason)
			}
			apart := queryOne[bool](t, pool, "SELECT EXISTS (SELECT FROM simplequeue.job_payload WHERE id = '"+id.String()+"')")
			if want := len(info.Payload)+len(info.Raw) > 1024; apart != want {
				t.Errorf("%s, delay %v: stored apart is %t, want %t", c.name, delay, apart, want)
			}
		}
	}
}

// A changed job runs as it was changed, also one whose time was moved to now;
// one that keeps its priority keeps its place.
func TestAChangedJobRunsAsChanged(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var ran []string
	opts := handler("a", func(_ context.Context, job *simplequeue.Job) error {
		mu.Lock()
		defer mu.Unlock()
		ran = append(ran, strings.Trim(string(job.Payload), `"`))
		return nil
	})
	opts.GlobalPermits = 1
	pool := pgtest.New(t)
	q := newQueue(t, pool, opts)
	ids := map[string]uuid.UUID{}
	for _, name := range []string{"first", "second", "third", "last", "never"} {
		job := simplequeue.NewJob{Queue: "a", Payload: name, Priority: 5}
		if name == "never" {
			job.Delay = time.Hour
		}
		ids[name] = insert(t, q, job)
	}
	for name, c := range map[string]simplequeue.Change{
		"first":  {Payload: "first changed"},
		"last":   {Priority: ptr(1)},
		"never":  {RunAt: time.Unix(0, 0)},
		"second": {Priority: ptr(5), Raw: []byte("r")},
	} {
		if err := q.Change(t.Context(), ids[name], c); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	start(t, q)
	for _, id := range ids {
		awaitState(t, q, id, simplequeue.StateCompleted)
	}
	if got := strings.Join(ran, ", "); got != "last, first changed, second, third, never" {
		t.Errorf("ran %s", got)
	}
	for what, err := range map[string]error{
		"ended":   q.Change(t.Context(), ids["first"], simplequeue.Change{Priority: ptr(1)}),
		"unknown": q.Change(t.Context(), uuid.New(), simplequeue.Change{Priority: ptr(1)}),
	} {
		want := map[string]error{"ended": simplequeue.ErrFinished, "unknown": simplequeue.ErrNotFound}[what]
		if !errors.Is(err, want) {
			t.Errorf("Change of a job that is %s: %v, want %v", what, err, want)
		}
	}
}

// A change and a claim race, a thousand times: where the change says that it
// was made, the run sees it; else it says that it came too late, and the run
// does not.
func TestAChangeIsSeenOrTooLate(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	saw := map[uuid.UUID]string{}
	opts := handler("a", func(_ context.Context, job *simplequeue.Job) error {
		mu.Lock()
		defer mu.Unlock()
		saw[job.ID] += string(job.Payload)
		return nil
	})
	pool := pgtest.Pool(t, pgtest.Database(t), 10)
	q := newQueue(t, pool, opts)
	start(t, q)
	start(t, newQueue(t, pool, opts))
	const n = 1000
	outcome := make([]error, n)
	ids := make([]uuid.UUID, n)
	var all sync.WaitGroup
	for g := range 5 {
		all.Go(func() {
			for i := g; i < n; i += 5 {
				job := simplequeue.NewJob{Queue: "a", Payload: 0}
				c := simplequeue.Change{Payload: 1}
				switch i % 3 {
				case 1:
					job.Delay = time.Millisecond
				case 2:
					c.Priority, c.RunAt = ptr(4), time.Unix(0, 0)
				}
				r, err := q.Insert(context.Background(), job)
				if err != nil {
					t.Error(err)
					return
				}
				ids[i] = r.ID
				outcome[i] = q.Change(context.Background(), r.ID, c)
			}
		})
	}
	all.Wait()
	eventually(t, "all have ended", func() bool { return counts(t, q, "a")[simplequeue.StateCompleted] == n })
	made := 0
	for i, err := range outcome {
		want := "0"
		switch {
		case err == nil:
			want = "1"
			made++
		case !errors.Is(err, simplequeue.ErrStarted) && !errors.Is(err, simplequeue.ErrFinished):
			t.Errorf("Change: %v", err)
		}
		if saw[ids[i]] != want {
			t.Errorf("job %d: the change said %v, the runs saw %q", i, err, saw[ids[i]])
		}
	}
	t.Logf("%d of %d changes were in time", made, n)
}

// Many change at once, by filter, and what cannot be changed is refused.
func TestChangeMatching(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{})
	jobs := make([]simplequeue.NewJob, 700)
	for i := range jobs {
		jobs[i] = simplequeue.NewJob{Queue: "a", Kind: fmt.Sprint(i % 2), Priority: 5, Delay: time.Duration(i%3) * time.Hour}
	}
	if _, err := q.InsertMany(t.Context(), jobs); err != nil {
		t.Fatal(err)
	}
	n, err := q.ChangeMatching(t.Context(), simplequeue.Filter{Kind: "1"}, simplequeue.Change{Priority: ptr(0), RunAt: time.Unix(0, 0)})
	if err != nil || n != 350 {
		t.Fatalf("ChangeMatching: %d, %v, want 350", n, err)
	}
	if got := queryOne[int](t, pool, "SELECT count(*) FROM simplequeue.job WHERE kind = '1' AND priority = 0 AND state = 'pending'"); got != 350 {
		t.Errorf("%d jobs are as they should be", got)
	}
	if got := queryOne[int](t, pool, "SELECT count(*) FROM simplequeue.job WHERE kind = '0' AND priority = 5"); got != 350 {
		t.Errorf("%d jobs were left alone", got)
	}
	a := simplequeue.Filter{Queue: "a"}
	for what, err := range map[string]error{
		"everything": second(q.ChangeMatching(t.Context(), simplequeue.Filter{}, simplequeue.Change{Priority: ptr(1)})),
		"running":    second(q.ChangeMatching(t.Context(), simplequeue.Filter{Queue: "a", States: []simplequeue.State{simplequeue.StateRunning}}, simplequeue.Change{Priority: ptr(1)})),
		"nothing":    second(q.ChangeMatching(t.Context(), a, simplequeue.Change{})),
		"priority":   second(q.ChangeMatching(t.Context(), a, simplequeue.Change{Priority: ptr(10)})),
		"payload":    second(q.ChangeMatching(t.Context(), a, simplequeue.Change{Payload: "\x00"})),
		"large":      second(q.ChangeMatching(t.Context(), a, simplequeue.Change{Raw: make([]byte, 2<<20)})),
		"two times":  second(q.ChangeMatching(t.Context(), a, simplequeue.Change{RunAt: time.Now(), Delay: time.Hour})),
	} {
		if err == nil {
			t.Errorf("%s: not refused", what)
		}
	}
}
