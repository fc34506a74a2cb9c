package simplequeue

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/simplequeue/simplequeue/janitor"
)

// Bounds of what is recorded of a failed attempt, in bytes.
const (
	maxErrorText = 2 << 10
	maxStackText = 4 << 10
)

// clean makes any text storable: valid UTF-8 without NUL, at most limit bytes.
func clean(s string, limit int) string {
	long := len(s) > limit
	if long {
		s = s[:limit] // before the work, which a huge text must not cost
	}
	s = strings.ToValidUTF8(s, "\uFFFD")
	s = strings.ReplaceAll(s, "\x00", "\uFFFD")
	if !long && len(s) <= limit {
		return s
	}
	cut := min(len(s), limit-len("…"))
	for cut > 0 && cut < len(s) && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "…"
}

// text is clean text, nil for none.
func text(s string, limit int) *string {
	if s == "" {
		return nil
	}
	s = clean(s, limit)
	return &s
}

// keepSeconds is a retention as the janitor's statements take it.
func keepSeconds(d time.Duration) int64 {
	switch d {
	case KeepForever:
		return janitor.Forever
	case KeepNothing:
		return janitor.Nothing
	}
	return int64((d + time.Second - 1) / time.Second)
}

// keepDuration is the inverse of keepSeconds; 0 stays 0.
func keepDuration(seconds int64) time.Duration {
	switch seconds {
	case janitor.Forever:
		return KeepForever
	case janitor.Nothing:
		return KeepNothing
	}
	return time.Duration(seconds) * time.Second
}

func microseconds(d time.Duration) *int64 {
	us := d.Microseconds()
	return &us
}

// unixMicro is a time as microseconds since 1970, nil for none. A time outside
// the years that PostgreSQL and Go agree on is moved to their edge.
func unixMicro(t time.Time) *int64 {
	if t.IsZero() {
		return nil
	}
	us := t.UnixMicro()
	switch {
	case t.Year() > 9999:
		us = time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC).UnixMicro()
	case t.Year() < 1970:
		us = 0
	}
	return &us
}

// jittered spreads an interval by a tenth either way.
func jittered(d time.Duration) time.Duration { return d - d/10 + rand.N(d/5+1) }

func cancelledBecause(reason string) error {
	if reason == "" {
		return ErrCancelled
	}
	return fmt.Errorf("%w: %s", ErrCancelled, reason)
}
