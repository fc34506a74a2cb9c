package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// postgres is a server whose processes run on this machine.
type postgres struct{ postmaster int }

// findPostgres finds the parent of the process that serves a connection. On a
// system without /proc there is nothing to find and nothing is measured.
func findPostgres(ctx context.Context, db *pgxpool.Pool) (*postgres, error) {
	var backend int
	if err := db.QueryRow(ctx, "SELECT pg_backend_pid()").Scan(&backend); err != nil {
		return nil, err
	}
	p, err := readProcess(backend)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return &postgres{postmaster: p.parent}, err
}

// cpu is the CPU time that the server has used: its processes, and the ended
// ones, which the postmaster has waited for.
func (p *postgres) cpu() (time.Duration, error) {
	paths, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, err
	}
	var total int64
	for _, path := range paths {
		pid, _ := strconv.Atoi(filepath.Base(path))
		process, err := readProcess(pid)
		switch {
		case err != nil: // ended meanwhile
		case pid == p.postmaster:
			total += process.own + process.children
		case process.parent == p.postmaster:
			total += process.own
		}
	}
	return ticks(total), nil
}

// ticks is the time that a count of /proc stands for.
func ticks(n int64) time.Duration {
	const perSecond = 100 // USER_HZ, the same on all Linux machines of today
	return time.Duration(n) * time.Second / perSecond
}

// process is a part of /proc/PID/stat; times are in ticks.
type process struct {
	parent        int
	own, children int64
}

func readProcess(pid int) (p process, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return p, err
	}
	// The second field is a name in parentheses that may hold anything.
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) < 15 {
		return p, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	number := func(i int) int64 {
		n, e := strconv.ParseInt(fields[i], 10, 64)
		err = errors.Join(err, e)
		return n
	}
	p.parent = int(number(1))
	p.own, p.children = number(11)+number(12), number(13)+number(14)
	return p, err
}
