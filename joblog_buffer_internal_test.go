package simplequeue

import (
	"log/slog"
	"strings"
	"testing"
	"time"
)

// While lines cannot be written their memory is bounded, however many jobs have
// lines to drop, and what was dropped is told within it too.
func TestLineBufferIsBoundedWhileNothingIsWritten(t *testing.T) {
	t.Parallel()
	b := &lineBuffer{stats: &counters{}, wake: make(chan struct{}, 1)}
	for range 3 * maxLines {
		b.add(&attemptLines{}, time.Time{}, slog.LevelInfo, "message", []byte("{}"))
	}
	if len(b.lines) != maxLines || len(b.lossy) != maxLines || b.bytes != maxLines*len("message{}") {
		t.Fatalf("%d lines, %d bytes, %d jobs with dropped ones, want %d of each", len(b.lines), b.bytes, len(b.lossy), maxLines)
	}
	told, most := 0, 0
	for batch := b.take(); len(batch) > 0; batch = b.take() {
		for _, l := range batch {
			if strings.HasSuffix(l.Message, "dropped here") {
				told++
			}
		}
		most = max(most, len(b.lines)+len(batch))
		left := 0
		for _, l := range b.lines {
			left += len(l.Message) + len(l.Attrs)
		}
		if b.bytes != left {
			t.Fatalf("%d bytes counted, %d there", b.bytes, left)
		}
	}
	if told != maxLines || most > maxLines {
		t.Errorf("%d jobs told of, want %d; %d lines at once, at most %d", told, maxLines, most, maxLines)
	}
}
