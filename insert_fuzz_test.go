package simplequeue_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"testing"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// sameJSON reports whether two JSON texts mean the same. Numbers are compared
// as the decimals that they are.
func sameJSON(t testing.TB, a, b []byte) bool {
	t.Helper()
	decode := func(text []byte) any {
		d := json.NewDecoder(bytes.NewReader(text))
		d.UseNumber()
		var v any
		if err := d.Decode(&v); err != nil {
			t.Fatalf("decode %.200q: %v", text, err)
		}
		return v
	}
	return sameValue(decode(a), decode(b))
}

func sameValue(a, b any) bool {
	switch a := a.(type) {
	case json.Number:
		b, ok := b.(json.Number)
		if !ok {
			return false
		}
		return decimal(a) == decimal(b)
	case []any:
		b, ok := b.([]any)
		if !ok || len(a) != len(b) {
			return false
		}
		for i := range a {
			if !sameValue(a[i], b[i]) {
				return false
			}
		}
		return true
	case map[string]any:
		b, ok := b.(map[string]any)
		if !ok || len(a) != len(b) {
			return false
		}
		for k := range a {
			if v, ok := b[k]; !ok || !sameValue(a[k], v) {
				return false
			}
		}
		return true
	}
	return a == b
}

// decimal is a number as its sign, its digits without zeros at either end, and
// the exponent of the last digit.
func decimal(n json.Number) string {
	text, negative := strings.CutPrefix(strings.ToLower(n.String()), "-")
	mantissa, exponent, _ := strings.Cut(text, "e")
	e, _ := strconv.Atoi(exponent)
	whole, fraction, _ := strings.Cut(mantissa, ".")
	digits := strings.TrimLeft(whole+fraction, "0")
	short := strings.TrimRight(digits, "0")
	if short == "" {
		return "0"
	}
	return strconv.FormatBool(negative) + short + "e" + strconv.Itoa(e-len(fraction)+len(digits)-len(short))
}

// JSON text is either refused with an InvalidJobError or stored and returned
// with the same meaning; raw bytes come back as they are.
func FuzzPayloadRoundTrip(f *testing.F) {
	for _, s := range []string{
		`null`, `true`, `""`, `{}`, `[]`, ` {"a" : [1, 2.50, -0, 1e2, 1E-7, 9007199254740993, 18446744073709551616]} `,
		`"\u0000"`, `"\\u0000"`, `"\\\u0000"`, `{"\u0000":1}`, `"\ud83d\ude00"`, `"\ud83d"`, `"\ude00\ud83d"`, `"\uD83D\uDE00\uFFFF\ufffd"`,
		"\"\xff\"", "\"\u2028\u00e9\"", `{"a":1,"a":{"b":2}}`, `[[[[[[]]]]]]`, `1e400`, `1e100000`, `-1e-15990`, `1e-16500`, `1e999999999999`,
		`0.000000000000000000000000000000000000000000000000000000000000000000001`, `"'; DROP TABLE x; --"`, `"$1 {} ,\\ \" \b\f\n\r\t"`, "", "{", "1 2", "\x00",
	} {
		f.Add([]byte(s))
	}
	q := newQueue(f, pgtest.New(f), simplequeue.Options{})
	f.Fuzz(func(t *testing.T, text []byte) {
		ctx := context.Background()
		r, err := q.Insert(ctx, simplequeue.NewJob{Queue: "fuzz", Payload: json.RawMessage(text), Raw: text})
		var invalid *simplequeue.InvalidJobError
		switch {
		case errors.As(err, &invalid):
			r, err = q.Insert(ctx, simplequeue.NewJob{Queue: "fuzz", Raw: text})
			if err != nil {
				t.Fatalf("raw bytes %.200q: %v", text, err)
			}
		case err != nil:
			t.Fatalf("payload %.200q: %v", text, err)
		}
		info, err := q.Get(ctx, r.ID)
		if err != nil {
			t.Fatal(err)
		}
		if invalid == nil && text != nil && !sameJSON(t, text, info.Payload) {
			t.Errorf("payload %.200q came back as %.200q", text, info.Payload)
		}
		if !bytes.Equal(info.Raw, text) {
			t.Errorf("raw bytes %.200q came back as %.200q", text, info.Raw)
		}
	})
}
