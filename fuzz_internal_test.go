package simplequeue

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/simplequeue/simplequeue/internal/store"
)

// FuzzNote: a notification of a program, of whatever version or of somebody
// else, is read without harm, and what this one writes comes back.
func FuzzNote(f *testing.F) {
	for _, s := range []string{
		"", "*", "!", "=", "&", "+0190f3a1-0000-7000-8000-000000000001", "+x", "?x", "0:emails", "-2:a:b", "9:q\n3:r\n!", "99999:q", "0:", "0:a*", ":", "\n\n", "x", "0:\xff", "0:" + strings.Repeat("q", 128), "0:" + strings.Repeat("q", 129),
	} {
		f.Add(s, int16(3))
	}
	f.Fuzz(func(t *testing.T, text string, priority int16) {
		n := decodeNote(text)
		for _, l := range n.lanes {
			if problem := queueNameProblem(l.Queue); problem != "" {
				t.Errorf("%q names the queue %q, which %s", text, l.Queue, problem)
			}
		}
		if text != "" && len(n.lanes) == 0 && !n.any && !n.cancel && !n.pause && !n.gate && len(n.ended) == 0 && n.probe == "" {
			t.Errorf("%q means nothing: a note that is not understood is to mean that any lane may hold jobs", text)
		}
		if queueNameProblem(text) != "" {
			return
		}
		lanes := []store.Lane{{Queue: text, Priority: priority}, {Queue: "other", Priority: 1}}
		if back := decodeNote(encodeWake(lanes) + "\n" + noteCancel); !slices.Equal(back.lanes, lanes) || back.any || !back.cancel {
			t.Errorf("%v became %+v", lanes, back)
		}
	})
}

// FuzzCursor: a cursor is one that Page has returned for the filter, or an error.
func FuzzCursor(f *testing.F) {
	filter := Filter{Queue: "q", Metadata: map[string]string{"a": "b"}}
	id := uuid.MustParse("0190f3a1-0000-7000-8000-000000000001")
	for _, s := range []string{"", "x", filter.cursor(id.String()), (&Filter{Queue: "r"}).cursor(id.String()), "AAAA", strings.Repeat("A", 27), strings.Repeat("=", 27), "\x00\xff"} {
		f.Add(s, "q")
	}
	f.Fuzz(func(t *testing.T, cursor, queue string) {
		filter := Filter{Queue: queue}
		p, err := filter.place(cursor)
		var invalid *InvalidFilterError
		switch {
		case err != nil && (!errors.As(err, &invalid) || p.After != ""):
			t.Errorf("%q: %v and %+v", cursor, err, p)
		case err == nil && cursor != "":
			if _, err := uuid.Parse(p.After); err != nil {
				t.Errorf("%q is the place %q", cursor, p.After)
			}
			if again, err := filter.place(filter.cursor(p.After)); err != nil || again != p {
				t.Errorf("%q became %+v, %v", cursor, again, err)
			}
		}
	})
}

// FuzzJobID: the id of a holder, as the database gives it.
func FuzzJobID(f *testing.F) {
	for _, s := range []string{"", "x", "0190f3a1-0000-7000-8000-000000000001", "{0190f3a1-0000-7000-8000-000000000001}", "0190f3a1000070008000000000000001", strings.Repeat("0", 36)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := duplicateOf(text)
		if err != nil && r != (Inserted{}) {
			t.Errorf("%q: %+v beside %v", text, r, err)
		}
		if err == nil {
			if again, err := duplicateOf(r.ID.String()); err != nil || again != r {
				t.Errorf("%q became %v and then %v, %v", text, r.ID, again.ID, err)
			}
		}
	})
}

// FuzzArrayText: what goes to a database/sql driver as the text of an array is
// read as the same array.
func FuzzArrayText(f *testing.F) {
	for _, s := range []string{"", "a", `{`, `"`, `\`, `NULL`, `null`, `a,b`, ` a `, `'; --`, "\n\t", "é\U0001F4A9", `{"a":"b,\"c\""}`} {
		f.Add(s, []byte(s))
	}
	types := pgtype.NewMap()
	f.Fuzz(func(t *testing.T, text string, raw []byte) {
		if !utf8.ValidString(text) || strings.ContainsRune(text, 0) {
			t.Skip("no text of PostgreSQL")
		}
		list := []*string{&text, nil, &text}
		got, err := arrayText(list)
		if err != nil {
			t.Fatal(err)
		}
		var back []*string
		if err := types.Scan(pgtype.TextArrayOID, pgtype.TextFormatCode, []byte(got.(string)), &back); err != nil || !reflect.DeepEqual(back, list) {
			t.Errorf("%q became %v, %v", text, got, err)
		}
		bytesList := [][]byte{raw, nil, raw}
		if got, err = arrayText(bytesList); err != nil {
			t.Fatal(err)
		}
		var rawBack [][]byte
		if err := types.Scan(pgtype.ByteaArrayOID, pgtype.TextFormatCode, []byte(got.(string)), &rawBack); err != nil || len(rawBack) != 3 || !bytes.Equal(rawBack[2], raw) {
			t.Errorf("%x became %v, %v", raw, got, err)
		}
	})
}

// FuzzProps: what travels with a job beside its columns comes back, and what
// another program has put there is read or refused.
func FuzzProps(f *testing.F) {
	for _, s := range []string{`{}`, `{"metadata":{"a":"b"}}`, `{"timeout_ms":-1,"keep_archive":-2}`, `{"parent_id":"x"}`, `null`, `[]`, `{"bounded":1}`, `{"metadata":{"a":null}}`, `{"new":{"x":[1]}}`} {
		f.Add(s, "key", "value")
	}
	f.Fuzz(func(t *testing.T, text, key, value string) {
		var p props
		if json.Unmarshal([]byte(text), &p) == nil {
			if _, err := json.Marshal(p); err != nil {
				t.Errorf("%q was read, and is not written again: %v", text, err)
			}
		}
		if textProblem(key, maxPropsBytes) != "" || textProblem(value, maxPropsBytes) != "" {
			return
		}
		want := props{Metadata: map[string]string{key: value}, TraceContext: map[string]string{value: key}}
		out, err := json.Marshal(want)
		var back props
		if err != nil || json.Unmarshal(out, &back) != nil || !maps.Equal(back.Metadata, want.Metadata) || !maps.Equal(back.TraceContext, want.TraceContext) {
			t.Errorf("%+v became %s, %+v, %v", want, out, back, err)
		}
	})
}

// FuzzPick: a path finds a part of a payload, or nothing.
func FuzzPick(f *testing.F) {
	for _, s := range []string{`{"a":{"b":1}}`, `[1]`, `null`, `{"a":null,"":1}`, `{"a":{"a":{"a":[]}}}`} {
		for _, path := range []string{".", "a", "a.b", "a.a.a", ".a", "a.", "a..b", ""} {
			f.Add(s, path)
		}
	}
	f.Fuzz(func(t *testing.T, text, path string) {
		if !json.Valid([]byte(text)) || pathProblem(path) != "" {
			return
		}
		found := pick(json.RawMessage(text), path)
		if found == nil || len(found) > 1 || len(found) == 1 && !json.Valid(found[0]) {
			t.Errorf("%q in %q is %q", path, text, found)
		}
	})
}

// FuzzSpooledJobs: what a spool has kept is read as it was, or refused.
func FuzzSpooledJobs(f *testing.F) {
	for _, s := range []string{
		``, `{}`, `null`, `{"at":"2026-01-02T03:04:05Z","jobs":[{"ID":"0190f3a1-0000-7000-8000-000000000001","Queue":"q","Payload":{"a":"<b>"},"Raw":"AQI="}]}`,
		`{"jobs":[null]}`, `{"jobs":[{"Payload":null}]}`, `{"parent":"x"}`, `{"jobs":[{"NewField":1}]}`, `{"jobs":[{"Delay":1e99}]}`, `{"jobs":[{}]} {}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var s SpooledJobs
		if s.UnmarshalBinary(text) != nil {
			return
		}
		out, err := s.MarshalBinary()
		if err != nil {
			t.Skip("a time that cannot be written, which Take refuses")
		}
		var back SpooledJobs
		if err := back.UnmarshalBinary(out); err != nil {
			t.Fatalf("%q was written as %q, which is not read: %v", text, out, err)
		}
		if again, err := back.MarshalBinary(); err != nil || !bytes.Equal(again, out) {
			t.Errorf("%q became %q and then %q, %v", text, out, again, err)
		}
	})
}
