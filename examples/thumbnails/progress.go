package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"
)

// progress shows how far the work is: a bar on a terminal, elsewhere a line
// every second.
type progress struct {
	w     io.Writer
	width func() int // of the terminal; nil elsewhere
	last  time.Time  // of the last line
}

func newProgress(w io.Writer) *progress {
	p := &progress{w: w, last: time.Now()}
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return p
	}
	p.width = func() int {
		width, _, err := term.GetSize(int(f.Fd()))
		if err != nil {
			return 80
		}
		return width
	}
	return p
}

// show draws the bar again, or writes a line when the last is a second old.
func (p *progress) show(done, total int64) {
	text := fmt.Sprintf("%d of %d images", done, total)
	if done == total {
		text += ", now the contact sheet"
	}
	if p.width == nil {
		if time.Since(p.last) >= time.Second {
			p.last = time.Now()
			fmt.Fprintln(p.w, text)
		}
		return
	}
	fmt.Fprint(p.w, "\r", bar(done, total, min(p.width()-len(text)-5, 50)), text, "\x1b[K")
}

// bar is empty where the terminal is too narrow for one.
func bar(done, total int64, width int) string {
	if width < 5 {
		return ""
	}
	full := width
	if total > 0 {
		full = int(int64(width) * done / total)
	}
	return "[" + strings.Repeat("#", full) + strings.Repeat("-", width-full) + "] "
}

// end leaves the bar where it is and goes to a new line.
func (p *progress) end() {
	if p.width != nil {
		fmt.Fprintln(p.w)
	}
}
