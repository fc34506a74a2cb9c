package main

import (
	"image/color"
	"strings"
	"testing"
)

func TestCaptions(t *testing.T) {
	for name, want := range map[string]string{
		"short.png":                      "short.png",
		"gray-gradient.interlaced.png":   "gray-gradient.|interlaced.png",
		"abcdefghijklmnopqrstuvwxyz.png": "abcdefghijklmnopqrst|uvwxyz.png",
		strings.Repeat("0123456789", 6):  "01234567890123456789|012345678..123456789",
		"äöüäöüäöü_äöüäöüäöü_äöüäöüäöü.png": "äöüäöüäöü_äöüäöüäöü_|äöüäöüäöü.png",
	} {
		if got := strings.Join(lines(name, 20), "|"); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

// checkSheet checks that a contact sheet shows n thumbnails: something in each
// cell of the grid, and nothing below the last.
func checkSheet(t *testing.T, path string, n int) {
	t.Helper()
	sheet, err := readImage(path)
	if err != nil {
		t.Error(err)
		return
	}
	b := sheet.Bounds()
	columns := (b.Dx() - 2*margin + gap) / (box + gap)
	top := margin + 2*lineHeight
	rows := (b.Dy() - top - margin + gap) / (cellHeight + gap)
	shown := 0
	for i := range rows * columns {
		x, y := margin+i%columns*(box+gap), top+i/columns*(cellHeight+gap)
		if sheet.At(x, y) != (color.RGBA{paper.Y, paper.Y, paper.Y, 0xff}) {
			shown++
		}
	}
	if shown != n || rows != (n+columns-1)/columns {
		t.Errorf("the contact sheet shows %d thumbnails in %d rows of %d, want %d", shown, rows, columns, n)
	}
}
