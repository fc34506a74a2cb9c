package simplequeue

import (
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// Any text becomes one that PostgreSQL stores: UTF-8 without NUL, no longer
// than the limit, unchanged where there is nothing to change.
func TestClean(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		in    string
		limit int
		want  string
	}{
		{"", 10, ""},
		{"fine ☃", 10, "fine ☃"},
		{"a\x00b", 10, "a\ufffdb"},
		{"a\xff\xfeb", 10, "a\ufffdb"},
		{`a\u0000`, 10, `a\u0000`}, // an escape is text like any other
		{"0123456789a", 10, "0123456…"},
		{"012345☃☃☃", 10, "012345…"},
		{"\xed\xa0\x80", 10, "\ufffd"}, // a surrogate encoded as if it were a character
		{strings.Repeat("\x00", 10), 10, "\ufffd\ufffd…"},
		{strings.Repeat("\x80", 100), 10, "\ufffd"},
	} {
		if got := clean(c.in, c.limit); got != c.want && (len(c.in) <= 50 || !strings.HasPrefix(got, c.want)) {
			t.Errorf("clean(%q, %d) = %q, want %q", c.in, c.limit, got, c.want)
		}
	}
}

func FuzzClean(f *testing.F) {
	for _, s := range []string{"", "abc", "a\x00", "\xff\xfe", "☃☃☃☃☃☃", "\x80\x80\x80\x80\x80", "\xf0\x9f\x98", "\x00\x00\x00\x00\x00\x00", "a\xffb\xffc\xff"} {
		f.Add(s, 8)
	}
	f.Fuzz(func(t *testing.T, s string, limit int) {
		limit = 8 + (limit&math.MaxInt)%100
		got := clean(s, limit)
		if !utf8.ValidString(got) || strings.ContainsRune(got, 0) {
			t.Errorf("clean(%q, %d) = %q cannot be stored", s, limit, got)
		}
		if len(got) > limit {
			t.Errorf("clean(%q, %d) has %d bytes", s, limit, len(got))
		}
		if len(s) <= limit && utf8.ValidString(s) && !strings.ContainsRune(s, 0) && got != s {
			t.Errorf("clean(%q, %d) = %q, want it unchanged", s, limit, got)
		}
		if again := clean(got, limit); again != got {
			t.Errorf("clean(%q, %d) = %q when cleaned again", got, limit, again)
		}
	})
}

// A retention survives the way through the database's seconds: what is not a
// whole number of seconds is kept longer, not shorter.
func TestRetentionInSeconds(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]time.Duration{
		0: 0, 1: time.Second, time.Second: time.Second, time.Second + 1: 2 * time.Second,
		KeepForever: KeepForever, KeepNothing: KeepNothing, maxKeep: maxKeep,
	} {
		if got := keepDuration(keepSeconds(d)); got != want {
			t.Errorf("%v became %v, want %v", d, got, want)
		}
	}
}

// A JSON text is refused for what PostgreSQL cannot store, and for nothing else.
func TestJSONProblem(t *testing.T) {
	t.Parallel()
	for text, refused := range map[string]bool{
		`"a"`: false, `"\\u0000"`: false, `"\\\\u0000"`: false, `"\u0000"`: true, `"\\\u0000"`: true,
		`"\ud83d\ude00"`: false, `"\uD83D\uDE00"`: false, `"\ud83d"`: true, `"\ude00"`: true, `"\ud83d\u0041"`: true,
		`"\ud83d\\ude00"`: true, `"x\ud83d\ude00\ud83d"`: true, `"\ufffd"`: false,
		`1e100000`: false, `1e100001`: true, `1e-15999`: false, `1e-16384`: true, `{"e":1e5}`: false, `"1e999999"`: false,
		"0." + strings.Repeat("1", 15_990):      false,
		"0." + strings.Repeat("1", 16_384):      true,
		strings.Repeat("[1,", 9000) + "1":       false, // broken, but that is not its concern
		`"` + strings.Repeat("1", 30_000) + `"`: false,
	} {
		if !json.Valid([]byte(text)) {
			continue
		}
		if _, got := jsonSize([]byte(text)); (got != "") != refused {
			t.Errorf("jsonSize(%.40q) = %q, want refused: %t", text, got, refused)
		}
	}
}

// The reason of a cancel is part of the cause that the handler sees.
func TestCancelledBecause(t *testing.T) {
	t.Parallel()
	if err := cancelledBecause(""); err.Error() != ErrCancelled.Error() {
		t.Errorf("cause %v, want ErrCancelled itself", err)
	}
	if err := cancelledBecause("obsolete"); !errors.Is(err, ErrCancelled) || !strings.Contains(err.Error(), "obsolete") {
		t.Errorf("cause %v, want ErrCancelled with the reason", err)
	}
}
