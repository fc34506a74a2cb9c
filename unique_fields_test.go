package simplequeue_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// keyOf inserts a job and returns its unique key.
func keyOf(t testing.TB, pool *pgxpool.Pool, q *simplequeue.SimpleQueue, job simplequeue.NewJob) string {
	t.Helper()
	r, err := q.Insert(t.Context(), job)
	if err != nil {
		t.Fatalf("Insert of %+v: %v", job, err)
	}
	return queryOne[string](t, pool, "SELECT unique_key FROM simplequeue.job_live WHERE id = $1", r.ID)
}

// Payloads that say the same in the chosen fields have one key, however they are
// written; payloads that do not, have two.
func TestUniqueKeysOfFields(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{})
	fields := func(payload string, names ...string) simplequeue.NewJob {
		return simplequeue.NewJob{Queue: "a", Payload: json.RawMessage(payload), Unique: simplequeue.Unique{Fields: names}}
	}
	kind := fields(`{"n":1}`, "n")
	kind.Kind = "k"
	prefix := fields(`{"n":1}`, "n")
	prefix.UniqueKey = "p"
	seen := map[string]int{}
	for class, jobs := range [][]simplequeue.NewJob{
		{fields(`{"n":1}`, "n"), fields(`{"other":2,"n":1.0}`, "n"), fields(`{ "n" : 1e0 }`, "n"), fields(`{"n":5,"n":10e-1}`, "n"), fields(`{"n":1.000}`, "n", "n")},
		{fields(`{"n":"1"}`, "n")},
		{fields(`{"n":null}`, "n")},
		{fields(`{}`, "n"), fields(`{"N":1}`, "n"), fields(`[]`, "n"), fields(`null`, "n"), fields(`{"m":{"n":1}}`, "n")},
		{fields(`{"n":""}`, "n")},
		{fields(`{"n":{}}`, "n")},
		{fields(`{"n":[]}`, "n")},
		{fields(`{"n":false}`, "n")},
		{fields(`{"n":0}`, "n"), fields(`{"n":-0}`, "n"), fields(`{"n":0.00}`, "n"), fields(`{"n":0e7}`, "n")},
		{fields(`{"n":9007199254740993}`, "n"), fields(`{"n":9007199254740993.0}`, "n")},
		{fields(`{"n":9007199254740992}`, "n")},
		{fields(`{"n":[1,2]}`, "n")},
		{fields(`{"n":[2,1]}`, "n")},
		{fields(`{"m":1}`, "m")},
		{fields(`{"a":{"b":[{"x":1.50,"y":2}]}}`, "a.b"), fields(`{"a":{"c":0,"b":[{"y":2.0,"x":1.5}]}}`, "a.b")},
		{fields(`{"a":{"b":[{"x":1.5,"y":2}]}}`, "a")},
		{fields(`{"n":1,"m":2}`, "n", "m"), fields(`{"m":2,"n":1}`, "m", "n")},
		{fields(`{"n":2,"m":1}`, "n", "m")},
		{fields(`{"a":"x\u0041<"}`, "a"), fields(`{"a":"xA\u003c"}`, "a")},
		{fields(`{"a":"1.0"}`, "a")},
		{fields(`{"a":"1.00"}`, "a")},
		{fields(`{"n":1}`, "."), fields(`{"n":1.0}`, ".")},
		{fields(`{"n":1,"m":2}`, ".")},
		{kind},
		{prefix},
	} {
		for _, job := range jobs {
			key := keyOf(t, pool, q, job)
			if was, ok := seen[key]; ok != (len(jobs) > 1 && was == class) && ok {
				t.Errorf("%s by %q has the key of class %d, want one of its own (%d)", job.Payload, job.Unique.Fields, was, class)
			}
			if was, ok := seen[key]; !ok && classSeen(seen, class) {
				t.Errorf("%s by %q has another key than its class %d (%d)", job.Payload, job.Unique.Fields, class, was)
			}
			seen[key] = class
			if len(key) > 512 || !strings.HasPrefix(key, job.UniqueKey+"#") {
				t.Errorf("key %q", key)
			}
		}
	}
}

func classSeen(seen map[string]int, class int) bool {
	for _, c := range seen {
		if c == class {
			return true
		}
	}
	return false
}

// FuzzUniqueKeyOfFields: a payload written in another way has the same key, and
// a changed one has another.
func FuzzUniqueKeyOfFields(f *testing.F) {
	for _, s := range []string{`{"a":1}`, `{"a":{"b":[1.50,null,{"c":"x.0"}]},"d":""}`, `[0.10]`, `"1.0"`, `{"a":-1.5e3}`} {
		f.Add(s, uint64(len(s)))
	}
	pool := pgtest.New(f)
	key := func(t *testing.T, v any) string {
		text, err := json.Marshal(map[string]any{"kind": "", "fields": map[string]any{".": []any{v}}})
		if err != nil {
			t.Skip("does not encode")
		}
		return queryOne[string](t, pool, "SELECT simplequeue.unique_key('', $1::text::jsonb, now())", string(text))
	}
	f.Fuzz(func(t *testing.T, text string, seed uint64) {
		d := json.NewDecoder(strings.NewReader(text))
		d.UseNumber()
		var v any
		if d.Decode(&v) != nil || strings.Contains(text, `\u`) || strings.ContainsAny(text, "\x00\ufffd") || strings.ContainsAny(text, "eE") || len(text) > 10_000 {
			t.Skip("no JSON that can be stored")
		}
		r := rand.New(rand.NewPCG(seed, 0))
		want := key(t, v)
		if got := key(t, json.RawMessage(rewrite(v, r))); got != want {
			t.Errorf("%s written as %s has another key", text, rewrite(v, r))
		}
		for _, other := range []any{[]any{v}, map[string]any{"a": v}, map[string]any{".": v}} {
			if key(t, other) == want {
				t.Errorf("%v has the key of %s", other, text)
			}
		}
		if changed, ok := change(v, r); ok && key(t, changed) == want {
			t.Errorf("%v has the key of %s", changed, text)
		}
	})
}

// rewrite is the JSON of v with fields in random order, spaces and numbers
// written in another way.
func rewrite(v any, r *rand.Rand) []byte {
	var b bytes.Buffer
	switch v := v.(type) {
	case map[string]any:
		b.WriteString("{ ")
		names := make([]string, 0, len(v))
		for name := range v {
			names = append(names, name)
		}
		r.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
		for i, name := range names {
			if i > 0 {
				b.WriteString(" ,\n")
			}
			quoted, _ := json.Marshal(name)
			fmt.Fprintf(&b, "%s : %s", quoted, rewrite(v[name], r))
		}
		b.WriteString("}")
	case []any:
		b.WriteString("[\t")
		for i, e := range v {
			if i > 0 {
				b.WriteString(" , ")
			}
			b.Write(rewrite(e, r))
		}
		b.WriteString(" ]")
	case json.Number:
		b.WriteString(v.String())
		if strings.Contains(v.String(), ".") {
			b.WriteString(strings.Repeat("0", r.IntN(3)))
		} else if r.IntN(2) == 0 {
			b.WriteString(".0")
		}
	default:
		quoted, _ := json.Marshal(v)
		b.Write(quoted)
	}
	return b.Bytes()
}

// change returns v with one value changed.
func change(v any, r *rand.Rand) (any, bool) {
	switch v := v.(type) {
	case map[string]any:
		for name := range v {
			other := map[string]any{}
			for n, e := range v {
				other[n] = e
			}
			if c, ok := change(v[name], r); ok {
				other[name] = c
				return other, true
			}
		}
		return map[string]any{"x": nil}, len(v) == 0
	case []any:
		return append([]any{nil}, v...), true
	case string:
		return v + "x", true
	case json.Number:
		return "n" + v.String(), true
	case bool:
		return !v, true
	}
	return false, true
}

// A window is that of the time at which the job is to run, in UTC or in the days
// of a zone, whatever its clocks do.
func TestUniqueKeysOfWindows(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{})
	const hour, day = time.Hour, 24 * time.Hour
	for _, c := range []struct {
		window time.Duration
		zone   string
		at     string
		want   string
	}{
		{hour, "", "2300-03-01T10:00:00Z", "2300-03-01T10:00:00Z"},
		{hour, "", "2300-03-01T10:59:59.999999Z", "2300-03-01T10:00:00Z"},
		{hour, "", "2300-03-01T11:00:00Z", "2300-03-01T11:00:00Z"},
		{hour, "", "2300-03-01T10:30:00+05:30", "2300-03-01T05:00:00Z"},
		{15 * time.Minute, "", "2300-03-01T10:44:59Z", "2300-03-01T10:30:00Z"},
		{time.Second, "", "2300-03-01T23:59:59.9Z", "2300-03-01T23:59:59Z"},
		{day, "", "2300-03-01T23:59:59Z", "2300-03-01"},
		{day, "Europe/Berlin", "2300-03-01T23:30:00Z", "2300-03-02"},
		{day, "America/New_York", "2300-03-02T04:59:59Z", "2300-03-01"},
		// Days of 23 and of 25 hours.
		{day, "Europe/Berlin", "2026-03-28T22:59:59Z", "2026-03-28"},
		{day, "Europe/Berlin", "2026-03-28T23:00:00Z", "2026-03-29"},
		{day, "Europe/Berlin", "2026-03-29T21:59:59Z", "2026-03-29"},
		{day, "Europe/Berlin", "2026-03-29T22:00:00Z", "2026-03-30"},
		{day, "Europe/Berlin", "2026-10-24T22:00:00Z", "2026-10-25"},
		{day, "Europe/Berlin", "2026-10-25T22:59:59Z", "2026-10-25"},
		{day, "Europe/Berlin", "2026-10-25T23:00:00Z", "2026-10-26"},
		// The repeated hour is two hours.
		{hour, "", "2026-10-25T00:30:00Z", "2026-10-25T00:00:00Z"},
		{hour, "", "2026-10-25T01:30:00Z", "2026-10-25T01:00:00Z"},
		// Midnight does not exist on this day.
		{day, "America/Santiago", "2026-09-06T04:00:00Z", "2026-09-06"},
		// Weeks begin on Mondays.
		{7 * day, "", "2026-11-15T23:59:59Z", "2026-11-09"},
		{7 * day, "", "2026-11-16T00:00:00Z", "2026-11-16"},
		{7 * day, "Europe/Berlin", "2026-11-15T23:00:00Z", "2026-11-16"},
		// Before the day from which windows are counted.
		{hour, "", "1999-12-31T23:59:59Z", "1999-12-31T23:00:00Z"},
		{7 * hour, "", "1969-12-31T23:59:59Z", "1969-12-31T22:00:00Z"},
		{day, "", "1969-07-20T20:17:00Z", "1969-07-20"},
		{7 * day, "", "1969-07-20T20:17:00Z", "1969-07-14"},
	} {
		at, err := time.Parse(time.RFC3339Nano, c.at)
		if err != nil {
			t.Fatal(err)
		}
		job := simplequeue.NewJob{Queue: "a", UniqueKey: "k", RunAt: at, Unique: simplequeue.Unique{Window: c.window, Zone: c.zone}}
		if got := keyOf(t, pool, q, job); got != "k@"+c.want {
			t.Errorf("%v in %q at %s: key %q, want %q", c.window, c.zone, c.at, got, "k@"+c.want)
		}
	}

	// What runs now or after a delay is in the window of the database's clock.
	for _, delay := range []time.Duration{0, 400 * day} {
		job := simplequeue.NewJob{Queue: "now", UniqueKey: fmt.Sprint(delay), Delay: delay, Unique: simplequeue.Unique{Window: day}}
		got := keyOf(t, pool, q, job)
		want := queryOne[string](t, pool, `SELECT to_char((created_at + $1::float8 * interval '1 second') AT TIME ZONE 'UTC', 'YYYY-MM-DD')
			FROM simplequeue.job_live WHERE queue = 'now' AND unique_key = $2`, delay.Seconds(), got)
		if got != fmt.Sprint(delay)+"@"+want {
			t.Errorf("key %q after %v, want the window of %s", got, delay, want)
		}
	}
}

// One live job in each window; the next window has room again.
func TestOneJobInEachWindow(t *testing.T) {
	t.Parallel()
	q := newQueue(t, pgtest.New(t), simplequeue.Options{})
	job := simplequeue.NewJob{
		Queue: "a", Payload: map[string]any{"user": map[string]int{"id": 7}, "n": 1}, RunAt: time.Date(2200, 5, 1, 10, 10, 0, 0, time.UTC),
		Unique: simplequeue.Unique{Fields: []string{"user.id"}, Window: time.Hour},
	}
	first := insert(t, q, job)
	job.Payload, job.RunAt = map[string]any{"user": map[string]any{"id": 7.0}, "n": 2}, job.RunAt.Add(49*time.Minute)
	mustBeDuplicate(t, q, job, first)
	job.RunAt = job.RunAt.Add(time.Minute)
	insert(t, q, job)
	many, err := q.InsertMany(t.Context(), []simplequeue.NewJob{job, job})
	if err != nil || !many[0].Duplicate || !many[1].Duplicate {
		t.Errorf("InsertMany = %+v, %v, want two duplicates", many, err)
	}
}

// What makes no sense about a unique key is refused by name.
func TestUniqueThatMakesNoSense(t *testing.T) {
	t.Parallel()
	q := newQueue(t, pgtest.New(t), simplequeue.Options{})
	type unique = simplequeue.Unique
	for _, c := range []struct {
		field string
		job   simplequeue.NewJob
	}{
		{"Unique", simplequeue.NewJob{Unique: unique{Window: time.Hour}}},
		{"Unique", simplequeue.NewJob{Unique: unique{OnConflict: simplequeue.ConflictReplace}}},
		{"Unique.Fields", simplequeue.NewJob{Raw: []byte("x"), Unique: unique{Fields: []string{"a"}}}},
		{"Unique.Fields", simplequeue.NewJob{Payload: 1, Unique: unique{Fields: []string{""}}}},
		{"Unique.Fields", simplequeue.NewJob{Payload: 1, Unique: unique{Fields: []string{"a..b"}}}},
		{"Unique.Fields", simplequeue.NewJob{Payload: 1, Unique: unique{Fields: []string{"a."}}}},
		{"Unique.Fields", simplequeue.NewJob{Payload: 1, Unique: unique{Fields: []string{"\xff"}}}},
		{"Unique.Window", simplequeue.NewJob{UniqueKey: "k", Unique: unique{Window: -time.Second}}},
		{"Unique.Window", simplequeue.NewJob{UniqueKey: "k", Unique: unique{Window: time.Millisecond}}},
		{"Unique.Zone", simplequeue.NewJob{UniqueKey: "k", Unique: unique{Zone: "UTC"}}},
		{"Unique.Zone", simplequeue.NewJob{UniqueKey: "k", Unique: unique{Window: time.Hour, Zone: "Asia/Kolkata"}}},
		{"Unique.Zone", simplequeue.NewJob{UniqueKey: "k", Unique: unique{Window: 24 * time.Hour, Zone: "Mars/Olympus"}}},
		{"Unique.Zone", simplequeue.NewJob{UniqueKey: "k", Unique: unique{Window: 24 * time.Hour, Zone: "Local"}}},
		{"Unique.OnConflict", simplequeue.NewJob{UniqueKey: "k", Unique: unique{OnConflict: 7}}},
		{"Unique.OnConflict", simplequeue.NewJob{UniqueKey: "k", Unique: unique{OnConflict: simplequeue.ConflictDebounce}}},
		{"Unique.MaxDelay", simplequeue.NewJob{UniqueKey: "k", Unique: unique{MaxDelay: time.Hour}}},
		{"Unique.MaxDelay", simplequeue.NewJob{UniqueKey: "k", Unique: unique{OnConflict: simplequeue.ConflictReplace, MaxDelay: -1}}},
		{"UniqueKey", simplequeue.NewJob{UniqueKey: strings.Repeat("k", 500), Unique: unique{Window: time.Hour}}},
		{"UniqueGlobal", simplequeue.NewJob{UniqueGlobal: true}},
	} {
		c.job.Queue = "a"
		_, err := q.Insert(t.Context(), c.job)
		var invalid *simplequeue.InvalidJobError
		if !errors.As(err, &invalid) || invalid.Field != c.field {
			t.Errorf("%+v: error %v, want an InvalidJobError of %s", c.job.Unique, err, c.field)
		}
	}
}
