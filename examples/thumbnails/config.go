package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// config is what the command line says.
type config struct {
	folder  string // of the images
	out     string // of the thumbnails
	workers int
	memory  int64 // bytes for decoded images
}

// parse returns nil when the command line only asks for help.
func parse(args []string, stdout io.Writer) (*config, error) {
	c := &config{}
	flags := flag.NewFlagSet("thumbnails", flag.ContinueOnError)
	flags.StringVar(&c.out, "out", filepath.Join(os.TempDir(), "thumbnails"), "the `folder` for thumbnails and contact sheet")
	flags.IntVar(&c.workers, "workers", runtime.NumCPU(), "how many images to work on at once")
	flags.Int64Var(&c.memory, "memory", 64<<20, "how many `bytes` decoded images may take at once")
	flags.Usage = func() {
		fmt.Fprintln(flags.Output(), "usage: thumbnails [flags] [FOLDER]\n\nFOLDER holds the images; without it, the Go toolchain's test images are taken.")
		fmt.Fprintln(flags.Output())
		flags.PrintDefaults()
	}
	flags.SetOutput(io.Discard)
	err := flags.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		flags.SetOutput(stdout)
		flags.Usage()
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w; -help lists the flags", err)
	}
	switch {
	case flags.NArg() > 1:
		return nil, fmt.Errorf("%d folders given, at most one is allowed; flags come before it", flags.NArg())
	case c.workers < 1:
		return nil, fmt.Errorf("-workers %d: must be at least 1", c.workers)
	case c.memory < 1:
		return nil, fmt.Errorf("-memory %d: must be at least 1", c.memory)
	}
	c.folder = flags.Arg(0)
	return c, nil
}

// toolchainImages is the folder of package image in the Go toolchain.
func toolchainImages(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return "", fmt.Errorf("looking for the Go toolchain's test images: %w; name a FOLDER with images", err)
	}
	return filepath.Join(strings.TrimSpace(string(out)), "src", "image"), nil
}

// check makes both folders absolute, so that the jobs mean the same to a worker
// that runs elsewhere, and looks whether they can be used.
func (c *config) check() (err error) {
	if c.folder, err = filepath.Abs(c.folder); err != nil {
		return err
	}
	if c.folder, err = filepath.EvalSymlinks(c.folder); err != nil {
		return fmt.Errorf("the folder of the images: %w", err)
	}
	info, err := os.Stat(c.folder)
	if err != nil {
		return fmt.Errorf("the folder of the images: %w", err)
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is not a folder", c.folder)
	}

	if c.out, err = filepath.Abs(c.out); err != nil {
		return err
	}
	if err := os.MkdirAll(c.out, 0o755); err != nil {
		return fmt.Errorf("%w; name another folder with -out", err)
	}
	if c.out, err = filepath.EvalSymlinks(c.out); err != nil {
		return err
	}
	probe, err := os.CreateTemp(c.out, ".probe-*")
	if err != nil {
		return fmt.Errorf("cannot write thumbnails: %w; name another folder with -out", err)
	}
	return errors.Join(probe.Close(), os.Remove(probe.Name()))
}
