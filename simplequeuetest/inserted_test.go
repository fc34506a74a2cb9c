package simplequeuetest_test

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
	"github.com/simplequeue/simplequeue/simplequeuetest"
)

// A job is found by whatever a NewJob says of it, and not by anything else; on
// the pool, and inside a transaction that nobody sees.
func TestInserted(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{})
	tx := begin(t, pool)
	at := time.Now().Add(time.Hour)
	job := simplequeue.NewJob{
		ID: uuid.New(), Queue: "mails", Kind: "welcome", Raw: []byte("raw"), Priority: 4, MaxAttempts: 7, UniqueKey: "ada", Fingerprint: "f",
		Metadata: map[string]string{"m": "1", "n": "2"}, TraceContext: map[string]string{"t": "3", "u": "4"}, Timeout: time.Minute, RunAt: at,
		Retention: simplequeue.Retention{Archive: time.Hour},
		Payload:   map[string]any{"to": "ada", "list": []any{1, map[string]any{"a": 1, "b": nil}}, "big": int64(math.MaxInt64), "part": 0.25, "flag": true},
	}
	type M = map[string]any
	like, unlike := []simplequeue.NewJob{
		{},
		job,
		{ID: job.ID},
		{Queue: "mails"},
		{Kind: "welcome"},
		{Raw: []byte("raw")},
		{Priority: 4},
		{MaxAttempts: 7},
		{UniqueKey: "ada"},
		{Fingerprint: "f"},
		{Metadata: map[string]string{"m": "1"}},
		{TraceContext: map[string]string{"u": "4"}},
		{Timeout: time.Minute},
		{RunAt: at},

		{Retention: job.Retention},
		{Payload: M{"to": "ada"}},
		{Payload: M{"part": 25e-2, "big": int64(math.MaxInt64)}},
		{Payload: struct {
			To string `json:"to"`
		}{"ada"}},
		{Payload: M{"list": []any{1.0, M{"a": 1}}}},
		{Payload: M{"flag": true}},
		{Payload: M{"list": []any{1, M{"b": nil}}}},
	}, []simplequeue.NewJob{
		{ID: uuid.New()},
		{Queue: "mail"},
		{Kind: "other"},
		{Raw: []byte("other")},
		{Priority: 5},
		{MaxAttempts: 8},
		{UniqueKey: "bob"},
		{Fingerprint: "g"},
		{Metadata: map[string]string{"m": "2"}},
		{TraceContext: map[string]string{"v": "4"}},
		{Timeout: time.Hour},
		{RunAt: at.Add(time.Second)},
		{Delay: time.Hour + 5*time.Second},
		{Retention: simplequeue.Retention{DeadLetter: time.Hour}},
		{Payload: M{"to": "bob"}},
		{Payload: M{"from": nil}},
		{Payload: M{"big": int64(math.MaxInt64 - 1)}},
		{Payload: M{"list": []any{1}}},
		{Payload: M{"list": []any{M{"a": 1}, 1}}},
		{Payload: []any{}},
		{Payload: "ada"},
		{Payload: M{"flag": "true"}},
		{Payload: M{"to": nil}},
	}
	for _, c := range []struct {
		how string
		q   *simplequeue.SimpleQueue
	}{{"in a transaction", simplequeuetest.In(tx, q)}, {"on the pool", q}} {
		simplequeuetest.Inserted(t, c.q, 0, simplequeue.NewJob{})
		insert(t, c.q, job)
		for _, l := range like {
			if r, _ := record(t, func(t testing.TB) {
				if found := simplequeuetest.Inserted(t, c.q, 1, l); found[0].ID != job.ID || found[0].State != simplequeue.StateWaiting {
					t.Fatalf("found %v, %s", found[0].ID, found[0].State)
				}
			}); r.failed {
				t.Errorf("%s: %+v: %s", c.how, l, r.text)
			}
		}
		for _, l := range unlike {
			if r, _ := record(t, func(t testing.TB) { simplequeuetest.Inserted(t, c.q, 0, l) }); r.failed {
				t.Errorf("%s: %+v: %s", c.how, l, r.text)
			}
		}
		_ = tx.Rollback(t.Context())
	}
	insert(t, q, simplequeue.NewJob{Queue: "mails", Payload: "second"}, simplequeue.NewJob{Queue: "mails", Payload: "third"}, simplequeue.NewJob{Queue: "mails"})
	insert(t, q, simplequeue.NewJob{Queue: "later", Delay: time.Hour})
	simplequeuetest.Inserted(t, q, 1, simplequeue.NewJob{Queue: "later", Delay: time.Hour})
	simplequeuetest.Inserted(t, q, 0, simplequeue.NewJob{Queue: "later", Delay: time.Hour + 3*time.Second})
	found := simplequeuetest.Inserted(t, q, 4, simplequeue.NewJob{Queue: "mails"})
	if n := len(found); string(found[n-3].Payload) != `"second"` || string(found[n-2].Payload) != `"third"` || found[n-1].Payload != nil {
		t.Errorf("not in the order of insert: %s, %s, %s", found[n-3].Payload, found[n-2].Payload, found[n-1].Payload)
	}
	for want, like := range map[string]simplequeue.NewJob{
		`want 5; there are:`:                     {Queue: "mails"},
		`"second"`:                               {Queue: "mails", Payload: "second"},
		`there are: none`:                        {Queue: "elsewhere"},
		`NewJob.UniqueGlobal cannot be compared`: {UniqueGlobal: true, UniqueKey: "ada"},
		`NewJob.Unique cannot be compared`:       {Unique: simplequeue.Unique{Fields: []string{"to"}}},
		`payload to compare with`:                {Payload: func() {}},
	} {
		if text := fails(t, func(t testing.TB) { simplequeuetest.Inserted(t, q, 5, like) }); !strings.Contains(text, want) {
			t.Errorf("%+v: %s", like, text)
		}
	}
}

// More jobs than a page holds are all looked at.
func TestInsertedAmongMany(t *testing.T) {
	t.Parallel()
	q := newQueue(t, pgtest.New(t), simplequeue.Options{})
	jobs := make([]simplequeue.NewJob, 2500)
	for i := range jobs {
		jobs[i] = simplequeue.NewJob{Queue: "a", Payload: i}
	}
	insert(t, q, jobs...)
	simplequeuetest.Inserted(t, q, 2500, simplequeue.NewJob{Queue: "a"})
	simplequeuetest.Inserted(t, q, 1, simplequeue.NewJob{Payload: 2499})
}
