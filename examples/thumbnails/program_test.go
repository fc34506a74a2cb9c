package main

import (
	"bytes"
	"context"
	"fmt"
	"image"
	"image/color"
	"image/gif"
	"image/jpeg"
	"image/png"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/simplequeue/simplequeue/internal/pgtest"
)

// patience is how long a test waits for what should come at once.
const patience = 3 * time.Minute

// program is the program's surroundings in a test.
type program struct {
	t           *testing.T
	pool        *pgxpool.Pool
	folder, out string
}

func newProgram(t *testing.T) *program {
	url := pgtest.EmptyDatabase(t)
	t.Setenv("DATABASE_URL", url)
	t.Setenv("SIMPLEQUEUE_TEST_PROVIDER", "environment")
	return &program{t: t, pool: pgtest.Pool(t, url, 4), folder: t.TempDir(), out: filepath.Join(t.TempDir(), "thumbnails")}
}

// run runs the program to its end and returns what it printed.
func (p *program) run(args ...string) string {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	var out bytes.Buffer
	if err := run(ctx, append([]string{"-out", p.out}, args...), &out); err != nil {
		p.t.Fatalf("run: %v\n%s", err, &out)
	}
	return out.String()
}

// write writes a file of the folder.
func (p *program) write(name string, content []byte) {
	p.t.Helper()
	path := filepath.Join(p.folder, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o644); err != nil {
		p.t.Fatal(err)
	}
}

// list runs a query with one text column.
func (p *program) list(query string) []string {
	p.t.Helper()
	rows, err := p.pool.Query(p.t.Context(), query)
	if err != nil {
		p.t.Fatal(err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		p.t.Fatal(err)
	}
	return lines
}

// sizes are the thumbnails in the out folder, by the pictures they are of, with
// their sizes in pixels.
func (p *program) sizes() map[string]string {
	p.t.Helper()
	pictures, err := find(p.t.Context(), p.folder, p.out, func(path string, err error) { p.t.Error(path, err) })
	if err != nil {
		p.t.Fatal(err)
	}
	sizes := map[string]string{}
	for _, picture := range pictures {
		if picture.hash, err = hash(picture.path); err != nil {
			p.t.Fatal(err)
		}
		if _, err := os.Stat(picture.thumbnail(p.out)); err != nil {
			continue
		}
		img, err := readImage(picture.thumbnail(p.out))
		if err != nil {
			p.t.Fatal(err)
		}
		sizes[picture.name] = fmt.Sprintf("%dx%d", img.Bounds().Dx(), img.Bounds().Dy())
	}
	return sizes
}

// encoded is an image of the given size in a file format.
func encoded(t *testing.T, format string, w, h int) []byte {
	t.Helper()
	img := image.NewPaletted(image.Rect(0, 0, w, h), color.Palette{
		color.RGBA{0xc0, 0x39, 0x2b, 0xff}, color.RGBA{0xf1, 0xc4, 0x0f, 0xff}, color.RGBA{0x29, 0x80, 0xb9, 0xff},
	})
	for i := range img.Pix {
		img.Pix[i] = uint8((i%w/9 + i/w/9) % 3)
	}
	var b bytes.Buffer
	var err error
	switch format {
	case "png":
		err = png.Encode(&b, img)
	case "jpeg":
		err = jpeg.Encode(&b, img, nil)
	case "gif":
		err = gif.Encode(&b, img, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func receive(t *testing.T, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(patience):
		t.Fatal("waited in vain")
	}
}

// waitFor waits until a condition is true.
func waitFor(t *testing.T, condition func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("waited in vain")
		}
	}
}
