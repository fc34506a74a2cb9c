package simplequeue

import (
	"context"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/simplequeue/simplequeue/internal/pgtest"
	"github.com/simplequeue/simplequeue/internal/store"
)

// TestNotificationsRoundTrip: what is sent is what arrives, whatever the queue's
// name; what does not fit, or comes from a newer program, means any lane.
func TestNotificationsRoundTrip(t *testing.T) {
	t.Parallel()
	lanes := []store.Lane{
		{Queue: "a"},
		{Queue: "a:b", Priority: 9},
		{Queue: "!"},
		{Queue: "?x", Priority: 3},
		{Queue: "ü ☃", Priority: store.FrontLane},
		{Queue: strings.Repeat("q", maxQueueName), Priority: store.SuspectLane},
	}
	got := decodeNote(encodeWake(lanes) + "\n" + noteCancel)
	if !slices.Equal(got.lanes, lanes) || !got.cancel || got.any || got.probe != "" {
		t.Errorf("got %+v, want %v and a cancel", got, lanes)
	}
	many := slices.Repeat([]store.Lane{{Queue: strings.Repeat("q", maxQueueName)}}, 100)
	if text := encodeWake(many); len(text) > 8000 || !decodeNote(text).any {
		t.Errorf("100 long names became %d bytes", len(text))
	}
	for _, text := range []string{"", "*", "future stuff", "99999:q", "x:q", "0:", "0:a*", "\x00", "+1"} {
		if n := decodeNote(text); !n.any || len(n.lanes) > 0 {
			t.Errorf("%q became %+v, want any", text, n)
		}
	}
	ids := newIDs(maxEnded)
	text := encodeEnded(ids)
	if n := decodeNote(text); len(text) > 8000 || !slices.Equal(n.ended, ids) || n.any {
		t.Errorf("%d ids became %d bytes, and these %d ids", len(ids), len(text), len(n.ended))
	}
	if n := decodeNote(noteProbe + "token"); n.any || n.probe != noteProbe+"token" {
		t.Errorf("a probe became %+v", n)
	}
}

// TestBusyListenerIsHealthy: a listener that is kept busy by notifications never
// comes to ask whether its connection lives; they are a sign of life too.
func TestBusyListenerIsHealthy(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t)
	received, away := make(chan note, 10), make(chan struct{}, 10)
	l := &listener{
		config: pool.Config(), channel: "busy", receive: func(n note) { received <- n }, away: func() { away <- struct{}{} },
		log: slog.New(slog.NewTextHandler(io.Discard, nil)), health: (&health{}).loop("listener", probeEvery),
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); l.run(ctx) }()
	defer func() { cancel(); <-done }()
	if n := <-received; !n.any || !n.cancel {
		t.Errorf("first note %+v, want a look at everything", n)
	}
	seen := func() time.Time {
		l.health.mu.Lock()
		defer l.health.mu.Unlock()
		return l.health.seen
	}
	before := seen()
	if _, err := pool.Exec(t.Context(), "SELECT pg_notify('busy', '0:a')"); err != nil {
		t.Fatal(err)
	}
	<-received
	if after := seen(); !after.After(before) {
		t.Errorf("last seen %v after a notification, %v before", after, before)
	}
	if len(away) != 0 {
		t.Error("it was away while it listened")
	}
	if _, err := pool.Exec(t.Context(), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"); err != nil {
		t.Fatal(err)
	}
	<-away
	if n := <-received; !n.any {
		t.Errorf("first note after that %+v, want a look at everything", n)
	}
}
