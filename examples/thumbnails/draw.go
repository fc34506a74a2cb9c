package main

import (
	"context"
	"image"
	"image/color"
	"math"

	"golang.org/x/image/draw"
	"golang.org/x/image/font"
	"golang.org/x/image/font/basicfont"
	"golang.org/x/image/math/fixed"
)

// The measures of a contact sheet, in pixels.
const (
	margin     = 24 // around the sheet
	gap        = 16 // between cells
	pad        = 6  // between a thumbnail and the edge of its cell
	box        = side + 2*pad
	letter     = 7  // the width of a letter
	lineHeight = 15 // of the captions
	maxLines   = 2  // of a caption
	cellHeight = box + 6 + maxLines*lineHeight
	maxColumns = 12
)

// The colours of a contact sheet.
var (
	paper = color.Gray{0xff}
	tile  = color.Gray{0xee}
	ink   = color.Gray{0x22}
	pale  = color.Gray{0x77}
)

// drawSheet draws thumbnails in a grid, each with its caption below.
func drawSheet(ctx context.Context, title string, shown []caption) (image.Image, error) {
	columns := min(maxColumns, max(4, int(math.Ceil(math.Sqrt(float64(len(shown)))))))
	rows := (len(shown) + columns - 1) / columns
	top := margin + 2*lineHeight
	sheet := image.NewRGBA(image.Rect(0, 0,
		2*margin+columns*(box+gap)-gap,
		top+rows*(cellHeight+gap)-gap+margin))
	draw.Draw(sheet, sheet.Bounds(), image.NewUniform(paper), image.Point{}, draw.Src)
	write(sheet, margin, margin+lineHeight-4, pale, shorten(title, (sheet.Bounds().Dx()-2*margin)/letter))

	for i, c := range shown {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		x := margin + i%columns*(box+gap)
		y := top + i/columns*(cellHeight+gap)
		cell := image.Rect(x, y, x+box, y+box)
		draw.Draw(sheet, cell, image.NewUniform(tile), image.Point{}, draw.Src)
		img, err := readImage(c.path)
		if err != nil {
			return nil, err
		}
		b := img.Bounds()
		at := cell.Min.Add(image.Pt((box-b.Dx())/2, (box-b.Dy())/2))
		draw.Draw(sheet, image.Rectangle{at, at.Add(b.Size())}, img, b.Min, draw.Over)

		for n, line := range lines(c.text, box/letter) {
			left := x + (box-len([]rune(line))*letter)/2
			write(sheet, left, y+box+6+(n+1)*lineHeight-4, ink, line)
		}
	}
	return sheet, nil
}

// write writes a line of text whose letters stand on y.
func write(dst draw.Image, x, y int, c color.Color, text string) {
	d := font.Drawer{Dst: dst, Src: image.NewUniform(c), Face: basicfont.Face7x13, Dot: fixed.P(x, y)}
	d.DrawString(text)
}

// lines breaks a file name into at most two lines of width letters, behind a
// full stop, a dash or an underscore where there is one.
func lines(name string, width int) []string {
	letters := []rune(name)
	if len(letters) <= width {
		return []string{name}
	}
	first := width
	for i := width; i > width/2; i-- {
		if c := letters[i-1]; c == '.' || c == '-' || c == '_' || c == ' ' {
			first = i
			break
		}
	}
	return []string{string(letters[:first]), shorten(string(letters[first:]), width)}
}

// shorten leaves out the middle of a text that has more than width letters.
func shorten(text string, width int) string {
	letters := []rune(text)
	if len(letters) <= width {
		return text
	}
	tail := (width - 2) / 2
	head := width - 2 - tail
	return string(letters[:head]) + ".." + string(letters[len(letters)-tail:])
}
