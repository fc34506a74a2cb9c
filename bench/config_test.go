package main

import (
	"slices"
	"testing"
	"time"
)

func TestBaselinesAreAdded(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ asked, want []string }{
		{[]string{"drain"}, []string{"drain"}},
		{[]string{"drain", "pinned", "dump"}, []string{"drain", "steady", "pinned", "dump"}},
		{[]string{"dump", "steady"}, []string{"dump", "steady"}},
	} {
		if got := withBaselines(c.asked); !slices.Equal(got, c.want) {
			t.Errorf("withBaselines(%v) = %v, want %v", c.asked, got, c.want)
		}
	}
}

func TestWindows(t *testing.T) {
	t.Parallel()
	for expected, want := range map[time.Duration]time.Duration{
		120 * time.Second:      10 * time.Second,
		20 * time.Second:       2500 * time.Millisecond,
		200 * time.Millisecond: 100 * time.Millisecond,
		0:                      time.Second,
	} {
		if got := windowFor(expected); got != want {
			t.Errorf("windowFor(%v) = %v, want %v", expected, got, want)
		}
	}
}

func TestNamesRefusesUnknown(t *testing.T) {
	t.Parallel()
	var list []string
	set := names(&list, []string{"a", "b"})
	if err := set("b,a"); err != nil || !slices.Equal(list, []string{"b", "a"}) {
		t.Errorf("b,a: %v, %v", list, err)
	}
	if err := set("a,c"); err == nil {
		t.Error("c is not refused")
	}
}
