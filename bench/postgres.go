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
	var ticks int64
	for _, path := range paths {
		pid, _ := strconv.Atoi(filepath.Base(path))
		process, err := readProcess(pid)
		switch {
		case err != nil: // ended meanwhile
		case pid == p.postmaster:
			ticks += process.own + process.children
		case process.parent == p.postmaster:
			ticks += process.own
		}
	}
	const ticksPerSecond = 100 // USER_HZ, the same on all Linux machines of today
	return time.Duration(ticks) * time.Second / ticksPerSecond, nil
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

// printStatements reports where the server's time has gone.
func printStatements(ctx context.Context, db *pgxpool.Pool, name string, jobs int) error {
	rows, err := db.Query(ctx, `
SELECT calls, rows, total_exec_time, wal_bytes::bigint,
       left(regexp_replace(query, '\s+', ' ', 'g'), 100)
FROM pg_stat_statements
WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
ORDER BY total_exec_time DESC
LIMIT 12`)
	if err != nil {
		return err
	}
	defer rows.Close()
	fmt.Fprintf(os.Stderr, "%s: calls, rows a call, ms a call, us a job, WAL bytes a job, statement\n", name)
	for rows.Next() {
		var calls, n, wal int64
		var ms float64
		var query string
		if err := rows.Scan(&calls, &n, &ms, &wal, &query); err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "%8d %8.1f %8.3f %8.2f %8.0f  %s\n", calls, float64(n)/float64(calls), ms/float64(calls),
			ms*1000/float64(jobs), float64(wal)/float64(jobs), query)
	}
	return rows.Err()
}
