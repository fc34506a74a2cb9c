package main

import (
	"context"
	"errors"
	"fmt"
	"image"
	_ "image/gif"  // decoder
	_ "image/jpeg" // decoder
	"image/png"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/image/draw"

	"github.com/simplequeue/simplequeue"
)

// thumbnails is the queue with a job an image.
const thumbnails = "thumbnails"

// side is the longest side of a thumbnail, in pixels.
const side = 160

// thumbnailJob is the payload of a job.
type thumbnailJob struct {
	Name   string `json:"name"`   // for people
	Source string `json:"source"` // the image
	Target string `json:"target"` // the thumbnail
}

// thumbnailHandler makes thumbnails. It may do so twice for one job: the second
// replaces the first.
func thumbnailHandler() simplequeue.Handler {
	return simplequeue.Typed(thumbnails, func(_ context.Context, _ *simplequeue.Job, p thumbnailJob) error {
		img, err := readImage(p.Source)
		if err != nil {
			return err
		}
		return writePNG(p.Target, shrink(img))
	})
}

// readImage decodes an image. That the file cannot be read is an ordinary
// error, worth another attempt; what the decoder says about its content is not.
func readImage(path string) (img image.Image, err error) {
	err = withFile(path, func(f *os.File) error {
		r := &source{r: f}
		img, _, err = image.Decode(r)
		return r.verdict(err)
	})
	if err == nil && img.Bounds().Empty() {
		return nil, simplequeue.Unprocessable(errors.New("the image has no pixels"))
	}
	return img, err
}

// readConfig is readImage for the size and the colours only.
func readConfig(path string) (c image.Config, err error) {
	err = withFile(path, func(f *os.File) error {
		r := &source{r: f}
		c, _, err = image.DecodeConfig(r)
		return r.verdict(err)
	})
	return c, err
}

// source remembers an error of reading: a decoder may give it back as one of
// its own.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// verdict is what a decoder's error means for the job.
func (s *source) verdict(err error) error {
	switch {
	case err == nil:
		return nil
	case s.err != nil:
		return s.err
	}
	return simplequeue.Unprocessable(err)
}

// shrink makes a thumbnail.
func shrink(img image.Image) image.Image {
	w, h := fit(img.Bounds().Dx(), img.Bounds().Dy())
	small := image.NewRGBA(image.Rect(0, 0, w, h))
	draw.CatmullRom.Scale(small, small.Bounds(), img, img.Bounds(), draw.Src, nil)
	return small
}

// fit is the size of a thumbnail: the longest side is side, unless the image is
// smaller.
func fit(w, h int) (int, int) {
	longest := max(w, h)
	if longest <= side {
		return w, h
	}
	scale := float64(side) / float64(longest)
	return max(1, int(float64(w)*scale)), max(1, int(float64(h)*scale))
}

// writePNG writes a file that is there as a whole or not at all.
func writePNG(path string, img image.Image) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".unfinished-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	err = errors.Join(png.Encode(f, img), f.Chmod(0o644), f.Close())
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return os.Rename(f.Name(), path)
}
