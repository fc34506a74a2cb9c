package simplequeue_test

import (
	"encoding/json"
	"errors"
	"math"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// encodesBadly panics in its encoder.
type encodesBadly struct{}

func (encodesBadly) MarshalJSON() ([]byte, error) { panic("oh") }

// deep is JSON of arrays within arrays.
func deep(n int) json.RawMessage {
	return json.RawMessage(strings.Repeat("[", n) + strings.Repeat("]", n))
}

// layers are as many lists, one in the other. As Go values they go through the
// encoder, which has no limit of its own.
func layers(n int) any {
	v := []any{}
	for range n - 1 {
		v = []any{v}
	}
	return v
}

// What cannot be stored is refused before the database is asked, on every
// path, with the field's name; nothing is cut, replaced or dropped.
func TestJobsThatCannotBeStoredAreRefused(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	q := newQueue(t, pool, simplequeue.Options{MaxPayloadBytes: 200_000})
	long := func(n int) string { return strings.Repeat("x", n) }
	raw := func(s string) json.RawMessage { return json.RawMessage(s) }
	for name, c := range map[string]struct {
		job   simplequeue.NewJob
		field string
	}{
		"no queue":                    {simplequeue.NewJob{}, "Queue"},
		"long queue":                  {simplequeue.NewJob{Queue: long(129)}, "Queue"},
		"NUL in queue":                {simplequeue.NewJob{Queue: "a\x00"}, "Queue"},
		"newline in queue":            {simplequeue.NewJob{Queue: "a\n"}, "Queue"},
		"star in queue":               {simplequeue.NewJob{Queue: "a*"}, "Queue"},
		"bytes in queue":              {simplequeue.NewJob{Queue: "\xff"}, "Queue"},
		"long kind":                   {simplequeue.NewJob{Queue: "a", Kind: long(129)}, "Kind"},
		"NUL in kind":                 {simplequeue.NewJob{Queue: "a", Kind: "\x00"}, "Kind"},
		"bytes in kind":               {simplequeue.NewJob{Queue: "a", Kind: "\xc3"}, "Kind"},
		"long key":                    {simplequeue.NewJob{Queue: "a", UniqueKey: long(513)}, "UniqueKey"},
		"NUL in key":                  {simplequeue.NewJob{Queue: "a", UniqueKey: "\x00"}, "UniqueKey"},
		"bytes in key":                {simplequeue.NewJob{Queue: "a", UniqueKey: "\x80"}, "UniqueKey"},
		"global without key":          {simplequeue.NewJob{Queue: "a", UniqueGlobal: true}, "UniqueGlobal"},
		"long fingerprint":            {simplequeue.NewJob{Queue: "a", Fingerprint: long(513)}, "Fingerprint"},
		"NUL in fingerprint":          {simplequeue.NewJob{Queue: "a", Fingerprint: "\x00"}, "Fingerprint"},
		"priority below":              {simplequeue.NewJob{Queue: "a", Priority: -1}, "Priority"},
		"priority above":              {simplequeue.NewJob{Queue: "a", Priority: 10}, "Priority"},
		"attempts below":              {simplequeue.NewJob{Queue: "a", MaxAttempts: -1}, "MaxAttempts"},
		"attempts above":              {simplequeue.NewJob{Queue: "a", MaxAttempts: math.MaxInt32}, "MaxAttempts"},
		"delay below":                 {simplequeue.NewJob{Queue: "a", Delay: -1}, "Delay"},
		"delay above":                 {simplequeue.NewJob{Queue: "a", Delay: math.MaxInt64}, "Delay"},
		"delay and time":              {simplequeue.NewJob{Queue: "a", Delay: 1, RunAt: time.Now()}, "Delay"},
		"time before year 1":          {simplequeue.NewJob{Queue: "a", RunAt: time.Date(-5, 1, 1, 0, 0, 0, 0, time.UTC)}, "RunAt"},
		"time after year 9999":        {simplequeue.NewJob{Queue: "a", RunAt: time.Date(10_000, 1, 1, 0, 0, 0, 0, time.UTC)}, "RunAt"},
		"timeout":                     {simplequeue.NewJob{Queue: "a", Timeout: -2}, "Timeout"},
		"archive":                     {simplequeue.NewJob{Queue: "a", Retention: simplequeue.Retention{Archive: -2}}, "Retention.Archive"},
		"archive too long":            {simplequeue.NewJob{Queue: "a", Retention: simplequeue.Retention{Archive: math.MaxInt64 - 1}}, "Retention.Archive"},
		"dead letter":                 {simplequeue.NewJob{Queue: "a", Retention: simplequeue.Retention{DeadLetter: -3}}, "Retention.DeadLetter"},
		"NUL in metadata":             {simplequeue.NewJob{Queue: "a", Metadata: map[string]string{"k": "\x00"}}, "Metadata"},
		"NUL in a metadata key":       {simplequeue.NewJob{Queue: "a", Metadata: map[string]string{"\x00": ""}}, "Metadata"},
		"bytes in metadata":           {simplequeue.NewJob{Queue: "a", Metadata: map[string]string{"k": "\xff"}}, "Metadata"},
		"large metadata":              {simplequeue.NewJob{Queue: "a", Metadata: map[string]string{"a": long(40_000), "b": long(40_000)}}, "Metadata"},
		"bytes in trace":              {simplequeue.NewJob{Queue: "a", TraceContext: map[string]string{"k": "\xff"}}, "TraceContext"},
		"function":                    {simplequeue.NewJob{Queue: "a", Payload: func() {}}, "Payload"},
		"infinity":                    {simplequeue.NewJob{Queue: "a", Payload: math.Inf(1)}, "Payload"},
		"panicking encoder":           {simplequeue.NewJob{Queue: "a", Payload: encodesBadly{}}, "Payload"},
		"no JSON":                     {simplequeue.NewJob{Queue: "a", Payload: raw(`{"a":`)}, "Payload"},
		"empty JSON":                  {simplequeue.NewJob{Queue: "a", Payload: raw("")}, "Payload"},
		"two values":                  {simplequeue.NewJob{Queue: "a", Payload: raw("1 2")}, "Payload"},
		"NUL in payload":              {simplequeue.NewJob{Queue: "a", Payload: "a\x00b"}, "Payload"},
		"NUL in a payload's key":      {simplequeue.NewJob{Queue: "a", Payload: map[string]int{"\x00": 1}}, "Payload"},
		"escaped NUL":                 {simplequeue.NewJob{Queue: "a", Payload: raw(`"\\\u0000"`)}, "Payload"},
		"high surrogate":              {simplequeue.NewJob{Queue: "a", Payload: raw(`"\ud83d"`)}, "Payload"},
		"low surrogate":               {simplequeue.NewJob{Queue: "a", Payload: raw(`"\udc00"`)}, "Payload"},
		"two high surrogates":         {simplequeue.NewJob{Queue: "a", Payload: raw(`"\ud83d\ud83d"`)}, "Payload"},
		"surrogate, then letter":      {simplequeue.NewJob{Queue: "a", Payload: raw(`"\ud83dx\ude00"`)}, "Payload"},
		"bytes in JSON":               {simplequeue.NewJob{Queue: "a", Payload: raw("\"\xff\"")}, "Payload"},
		"bytes in a string":           {simplequeue.NewJob{Queue: "a", Payload: "\xff"}, "Payload"},
		"bytes in a field":            {simplequeue.NewJob{Queue: "a", Payload: struct{ A []any }{[]any{1, map[string]*string{"k": new("\xc3\x28")}}}}, "Payload"},
		"bytes in a payload's key":    {simplequeue.NewJob{Queue: "a", Payload: map[string]int{"\xff": 1}}, "Payload"},
		"large exponent":              {simplequeue.NewJob{Queue: "a", Payload: raw("1e200000")}, "Payload"},
		"large exponent behind text":  {simplequeue.NewJob{Queue: "a", Payload: raw(`["\"", "\\", 1e200000]`)}, "Payload"},
		"large negative exponent":     {simplequeue.NewJob{Queue: "a", Payload: raw("1e-20000")}, "Payload"},
		"exponent beyond an integer":  {simplequeue.NewJob{Queue: "a", Payload: raw("1e99999999999999999999")}, "Payload"},
		"many digits after the point": {simplequeue.NewJob{Queue: "a", Payload: raw("0." + long(0) + strings.Repeat("1", 20_000))}, "Payload"},
		"many digits":                 {simplequeue.NewJob{Queue: "a", Payload: raw(strings.Repeat("1", 150_000))}, "Payload"},
		"numbers that print large":    {simplequeue.NewJob{Queue: "a", Payload: raw("[1e100000,-1e99999]")}, "Payload"},
		"long small numbers":          {simplequeue.NewJob{Queue: "a", Payload: raw("[" + strings.Repeat("1e-15990,", 13) + "1]")}, "Payload"},
		"deep":                        {simplequeue.NewJob{Queue: "a", Payload: layers(50_000)}, "Payload"},
		"a level too deep":            {simplequeue.NewJob{Queue: "a", Payload: layers(10_001)}, "Payload"},
		"large payload":               {simplequeue.NewJob{Queue: "a", Payload: long(200_000)}, "Payload"},
		"large raw":                   {simplequeue.NewJob{Queue: "a", Raw: make([]byte, 200_001)}, "Payload"},
		"large together":              {simplequeue.NewJob{Queue: "a", Payload: long(100_000), Raw: make([]byte, 100_000)}, "Payload"},
	} {
		t.Run(name, func(t *testing.T) {
			paths := insertPaths(t, pool, q)
			for path, insertInto := range paths {
				_, err := insertInto([]simplequeue.NewJob{{Queue: "a"}, c.job})
				var invalid *simplequeue.InvalidJobError
				if !errors.As(err, &invalid) {
					t.Fatalf("%s: error %v, want an InvalidJobError", path, err)
				}
				if invalid.Field != c.field || invalid.Index != 1 {
					t.Errorf("%s: error names field %q of job %d, want %q of job 1", path, invalid.Field, invalid.Index, c.field)
				}
				if len(err.Error()) > 500 || strings.ContainsRune(err.Error(), 0) {
					t.Errorf("%s: error text has %d bytes or a NUL: %.600q", path, len(err.Error()), err)
				}
			}
		})
	}
	if c := counts(t, q, ""); len(c) != 0 {
		t.Errorf("jobs were inserted: %v", c)
	}
}

// exits ends the goroutine that encodes it.
type exits struct{}

func (exits) MarshalJSON() ([]byte, error) { runtime.Goexit(); return nil, nil }

// Many jobs are on their way to the server when the last of them turns out bad.
// Nothing of them stays, and the connection serves the next.
func TestBadJobBehindManyTakesThemAllBack(t *testing.T) {
	t.Parallel()
	q := newQueue(t, pgtest.Pool(t, pgtest.Database(t), 1), simplequeue.Options{})
	jobs := make([]simplequeue.NewJob, 5_000)
	for i := range jobs {
		jobs[i] = simplequeue.NewJob{Queue: "a", Payload: i, Fingerprint: "f"}
	}
	bad := len(jobs) - 1
	jobs[bad].Payload = "\xff"
	_, err := q.InsertMany(t.Context(), jobs)
	var invalid *simplequeue.InvalidJobError
	if !errors.As(err, &invalid) || invalid.Index != bad || invalid.Field != "Payload" {
		t.Errorf("error %v, want one about the payload of job %d", err, bad)
	}
	jobs[bad].Payload = exits{}
	over := make(chan struct{})
	go func() {
		defer close(over)
		_, _ = q.InsertMany(t.Context(), jobs)
	}()
	<-over
	if c := counts(t, q, ""); len(c) != 0 {
		t.Fatalf("jobs were inserted: %v", c)
	}
	jobs[bad].Payload = nil
	if _, err := q.InsertMany(t.Context(), jobs); err != nil {
		t.Fatal(err)
	}
	if c := counts(t, q, ""); c[simplequeue.StatePending] != int64(len(jobs)) {
		t.Errorf("jobs %v, want %d pending", c, len(jobs))
	}
}

// What is just within the bounds is stored as it is.
func TestJobsAtTheBoundsAreStored(t *testing.T) {
	t.Parallel()
	q := newQueue(t, pgtest.New(t), simplequeue.Options{})
	long := strings.Repeat("ü", 256)
	far := time.Date(9999, 12, 31, 23, 59, 59, 999_999_000, time.FixedZone("", -14*3600))
	for name, job := range map[string]simplequeue.NewJob{
		"lengths":        {Queue: long[:128], Kind: long[:128], UniqueKey: long, Fingerprint: long, Priority: 9, MaxAttempts: 1 << 20},
		"odd names":      {Queue: `"; DROP SCHEMA simplequeue; --`, Kind: "'\t", UniqueKey: "\n\u2028\ufffd", Fingerprint: `\`},
		"long delay":     {Queue: "a", Delay: 100 * 365 * 24 * time.Hour},
		"late":           {Queue: "a", RunAt: far},
		"early":          {Queue: "a", RunAt: time.Date(1, 1, 1, 0, 0, 0, 1, time.FixedZone("", 14*3600))},
		"short":          {Queue: "a", Delay: 1, Timeout: 1},
		"retention":      {Queue: "a", Retention: simplequeue.Retention{Archive: 87600 * time.Hour, DeadLetter: 1}},
		"own id":         {Queue: "a", ID: uuid.UUID{15: 1}},
		"deep":           {Queue: "a", Payload: deep(10_000)},
		"deep values":    {Queue: "a", Payload: layers(10_000)},
		"brackets":       {Queue: "a", Payload: "\"" + strings.Repeat("[", 30_000)},
		"genuine U+FFFD": {Queue: "a", Payload: map[string]any{"a": "\ufffd", "b": json.RawMessage(`"\ufffd"`)}},
		"exact payload":  {Queue: "a", Payload: strings.Repeat("x", 1<<20-2)},
		"no number":      {Queue: "a", Payload: json.RawMessage(`"1e200000 \" 1e200000 \\"`)},
		"exact raw":      {Queue: "a", Raw: make([]byte, 1<<20)},
	} {
		id := insert(t, q, job)
		info := get(t, q, id)
		if info.Queue != job.Queue || info.Kind != job.Kind || info.UniqueKey != job.UniqueKey || info.Fingerprint != job.Fingerprint {
			t.Errorf("%s: came back as %+v", name, info)
		}
		if name == "late" && !info.RunAt.Equal(far) {
			t.Errorf("late: run at %v, want %v", info.RunAt, far)
		}
	}
}
