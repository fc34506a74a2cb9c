package main

import (
	"bytes"
	"testing"
	"time"
)

func TestProgress(t *testing.T) {
	var lines, bars bytes.Buffer
	p := newProgress(&lines)
	p.show(1, 4)
	p.last = p.last.Add(-time.Second)
	p.show(2, 4)
	p.show(3, 4)
	p.end()
	if got, want := lines.String(), "2 of 4 images\n"; got != want {
		t.Errorf("off a terminal: %q, want %q", got, want)
	}

	p = &progress{w: &bars, width: func() int { return 55 }}
	p.show(1, 4)
	p.show(4, 4)
	p.end()
	want := "\r[#########----------------------------] 1 of 4 images\x1b[K" +
		"\r[##############] 4 of 4 images, now the contact sheet\x1b[K\n"
	if got := bars.String(); got != want {
		t.Errorf("on a terminal:\n got %q\nwant %q", got, want)
	}
	if got := bar(1, 2, -3) + bar(0, 0, 5); got != "[#####] " {
		t.Errorf("narrow and empty bars: %q", got)
	}
}
