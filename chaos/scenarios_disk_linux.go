package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

func init() {
	addScenario(scenario{
		name: "diskfull", order: 19, about: "the server's disk is full for a while", server: serverOnSmallDisk, inject: injectFullDisk,
	})
}

// smallDisk is where the server of the scenario has its data.
const smallDiskBytes = 320 << 20

func serverOnSmallDisk(ctx context.Context, s *stage) error {
	if os.Geteuid() != 0 {
		return notHere("only root can mount a small disk")
	}
	dir, err := os.MkdirTemp("/tmp", "simplequeue-chaos-disk-")
	if err != nil {
		return err
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=755", smallDiskBytes)); err != nil {
		return errors.Join(notHere("a small disk cannot be mounted: "+err.Error()), os.Remove(dir))
	}
	s.cleanup(func() error { return errors.Join(syscall.Unmount(dir, 0), os.Remove(dir)) })
	s.disk = dir
	before, had := os.LookupEnv("TMPDIR")
	if err := os.Setenv("TMPDIR", dir); err != nil {
		return err
	}
	err = ownServer(nil)(ctx, s)
	if had {
		return errors.Join(err, os.Setenv("TMPDIR", before))
	}
	return errors.Join(err, os.Unsetenv("TMPDIR"))
}

func injectFullDisk(ctx context.Context, s *stage) error {
	pause(ctx, s.between(time.Second, 2*time.Second))
	end := s.fault("full disk")
	defer end()
	filler := filepath.Join(s.disk, "filler")
	if err := fill(filler); err != nil {
		return err
	}
	pause(ctx, s.between(500*time.Millisecond, 3*time.Second))
	if err := os.Remove(filler); err != nil {
		return err
	}
	// A server that could not write its log has ended and is started again, by
	// itself or, where that failed, by its operator.
	whole := context.WithoutCancel(ctx)
	if !eventually(whole, 5*time.Second, func() bool {
		conn, err := pgx.Connect(whole, s.server.URL())
		if err != nil {
			return false
		}
		defer conn.Close(whole)
		_, err = conn.Exec(whole, "CREATE TABLE chaos_probe (); DROP TABLE chaos_probe")
		return err == nil
	}) {
		return s.server.Restart(whole)
	}
	return nil
}

// fill writes a file until there is no room.
func fill(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for chunk := 1 << 20; chunk > 0; chunk /= 2 {
		block := make([]byte, chunk)
		for {
			if _, err := f.Write(block); errors.Is(err, syscall.ENOSPC) {
				break
			} else if err != nil {
				return err
			}
		}
	}
	return nil
}
