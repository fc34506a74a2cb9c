package main

import (
	"context"
	"fmt"
	"image"
	"image/color"

	"golang.org/x/sync/semaphore"

	"github.com/simplequeue/simplequeue"
)

// memoryBound is a handler with a permit of its own: the images that it holds
// decoded at one time fit into a budget.
type memoryBound struct {
	simplequeue.Handler
	budget int64 // bytes
	free   *semaphore.Weighted
}

// boundMemory gives h, a handler of thumbnail jobs, a budget in bytes.
func boundMemory(h simplequeue.Handler, budget int64) simplequeue.Handler {
	return &memoryBound{Handler: h, budget: budget, free: semaphore.NewWeighted(budget)}
}

// Unwrap returns the handler without its budget.
func (m *memoryBound) Unwrap() simplequeue.Handler { return m.Handler }

// Acquire takes what the image needs from the budget, which it learns from the
// first bytes of the file. An image that would not fit into an empty budget
// ends as unprocessable, for it would wait for ever.
func (m *memoryBound) Acquire(ctx context.Context, job *simplequeue.Job) (func(), error) {
	var p thumbnailJob
	if err := job.Decode(&p); err != nil {
		return nil, err
	}
	c, err := readConfig(p.Source)
	if err != nil {
		return nil, err
	}
	need := memoryFor(c)
	if need > m.budget {
		return nil, simplequeue.Unprocessable(fmt.Errorf(
			"%d x %d pixels take %d bytes of memory, the budget is %d: run with -memory %[3]d", c.Width, c.Height, need, m.budget))
	}
	if err := m.free.Acquire(ctx, need); err != nil {
		return nil, err
	}
	return func() { m.free.Release(need) }, nil
}

// memoryFor estimates the bytes that an image takes while it is scaled.
func memoryFor(c image.Config) int64 {
	perPixel := int64(4)
	switch c.ColorModel {
	case color.RGBA64Model, color.NRGBA64Model:
		perPixel = 8
	}
	decoded := int64(c.Width) * int64(c.Height) * perPixel
	// The scaler shrinks the rows first and keeps them as four float64 a pixel.
	width, _ := fit(c.Width, c.Height)
	return decoded + int64(width)*int64(c.Height)*32
}
