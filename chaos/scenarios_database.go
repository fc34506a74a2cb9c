package main

import (
	"context"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5"
)

func init() {
	addScenario(scenario{name: "terminate", order: 4, about: "connections are terminated, by chance and all at once", inject: injectTerminations})
	addScenario(scenario{name: "pgrestart", order: 5, about: "the server is stopped at once and started again", inject: injectRestart})
	addScenario(scenario{name: "locktable", order: 9, about: "tables are locked for up to two seconds", strict: true, inject: injectLocks})
	addScenario(scenario{name: "lockrows", order: 9, about: "jobs at the head of a queue are locked for seconds", workloads: []string{"backlog"}, inject: injectRowLocks})
	addScenario(scenario{name: "snapshot", order: 10, about: "a snapshot is held open throughout", inject: injectSnapshot})
	addScenario(scenario{name: "dump", order: 11, about: "pg_dump runs throughout", inject: injectDump})
	addScenario(scenario{
		name: "timeouts", order: 12, about: "sessions have tiny statement, lock and idle timeouts, and tables are locked",
		prepare: sessionSettings("statement_timeout = '50ms'", "lock_timeout = '20ms'", "idle_in_transaction_session_timeout = '40ms'"),
		inject:  injectBriefLocks,
	})
	addScenario(scenario{
		name: "serializable", order: 13, about: "sessions are SERIALIZABLE by default",
		prepare: sessionSettings("default_transaction_isolation = 'serializable'"), inject: injectNothing("serializable"),
	})
	addScenario(scenario{
		name: "repeatable", order: 13, about: "sessions are REPEATABLE READ by default",
		prepare: sessionSettings("default_transaction_isolation = 'repeatable read'"), inject: injectNothing("repeatable read"),
	})
}

// injectNothing is for scenarios whose fault is how things are.
func injectNothing(what string) func(context.Context, *stage) error {
	return func(ctx context.Context, s *stage) error {
		end := s.fault("%s", what)
		defer end()
		<-ctx.Done()
		return nil
	}
}

// sessionSettings gives the database's sessions settings.
func sessionSettings(settings ...string) func(context.Context, *stage) error {
	return func(ctx context.Context, s *stage) error {
		for _, set := range settings {
			if _, err := s.db.Exec(ctx, "ALTER DATABASE "+s.db.Config().ConnConfig.Database+" SET "+set); err != nil {
				return err
			}
		}
		return nil
	}
}

func injectTerminations(ctx context.Context, s *stage) error {
	share := []float64{0.1, 0.5, 1}[s.rand.IntN(3)]
	end := s.fault("terminate %.0f %%", 100*share)
	_, err := s.db.Exec(ctx, `
		SELECT pg_terminate_backend(pid)
		FROM pg_stat_activity
		WHERE datname = current_database() AND application_name <> 'chaos' AND random() < $1`, share)
	end()
	if ctx.Err() != nil {
		return nil
	}
	pause(ctx, s.between(50*time.Millisecond, 600*time.Millisecond))
	return err
}

func injectRestart(ctx context.Context, s *stage) error {
	pause(ctx, s.between(500*time.Millisecond, 2*time.Second))
	end := s.outage("restart")
	defer end()
	if err := s.server.Kill(); err != nil {
		return err
	}
	pause(ctx, s.between(0, 2*time.Second))
	if err := s.server.Restart(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	return nil
}

// lockable are the tables that the scenarios lock.
var lockable = []string{
	"job_queue", "job_running", "job_waiting", "job_lease", "job_queue_archive", "job_queue_dlq",
	"job_finished", "job_unique", "job_payload", "job_lane", "job_sweep", "job_worker", "job_client_id", "job_cancel",
	"job_gated", "job_gate_hold", "job_gate_look", "job_held", "job_bound", "job_slot",
}

// lock holds a lock on a table for a while.
func (s *stage) lock(ctx context.Context, table string, hold time.Duration) error {
	end := s.fault("lock %s", table)
	defer end()
	tx, err := s.db.Begin(context.WithoutCancel(ctx))
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	mode := []string{"ACCESS EXCLUSIVE", "EXCLUSIVE"}[s.rand.IntN(2)] // nobody reads, nobody writes
	// Waiting for the lock already holds up others. A deadlock with a statement
	// that is under way ends it; then the next lock will do.
	if _, err := tx.Exec(context.WithoutCancel(ctx), "LOCK TABLE simplequeue."+table+" IN "+mode+" MODE"); err == nil {
		pause(ctx, hold)
	}
	return nil
}

func injectLocks(ctx context.Context, s *stage) error {
	err := s.lock(ctx, lockable[s.rand.IntN(len(lockable))], s.between(100*time.Millisecond, 2*time.Second))
	pause(ctx, s.between(100*time.Millisecond, 500*time.Millisecond))
	return err
}

func injectBriefLocks(ctx context.Context, s *stage) error {
	err := s.lock(ctx, lockable[s.rand.IntN(len(lockable))], s.between(20*time.Millisecond, 300*time.Millisecond))
	pause(ctx, s.between(100*time.Millisecond, 300*time.Millisecond))
	return err
}

// rowsLocked is a fault that must not keep any worker from claiming.
const rowsLocked = "lock rows"

func injectRowLocks(ctx context.Context, s *stage) error {
	tx, err := s.db.Begin(context.WithoutCancel(ctx))
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	tag, err := tx.Exec(context.WithoutCancel(ctx), `
		SELECT FROM simplequeue.job_queue WHERE queue = 'backlog' ORDER BY seq LIMIT 3 FOR UPDATE SKIP LOCKED`)
	if err != nil || tag.RowsAffected() == 0 {
		pause(ctx, 20*time.Millisecond)
		return err
	}
	end := s.fault("%s", rowsLocked)
	pause(ctx, 3*time.Second)
	end()
	return nil
}

func injectSnapshot(ctx context.Context, s *stage) error {
	end := s.fault("snapshot")
	defer end()
	tx, err := s.db.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	statement := "SELECT 1" // a snapshot alone
	if s.rand.IntN(2) == 0 {
		statement = "SELECT count(*) FROM simplequeue.job" // and a lock on every table
	}
	if _, err := tx.Exec(ctx, statement); err != nil {
		return err
	}
	pause(ctx, s.between(s.config.seconds/2, s.config.seconds))
	return nil
}

func injectDump(ctx context.Context, s *stage) error {
	bin, err := s.binDir(ctx)
	if err != nil {
		return err
	}
	end := s.fault("dump")
	defer end()
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "pg_dump"), "--dbname="+s.url)
	cmd.Stdout = io.Discard
	if err := cmd.Run(); err != nil && ctx.Err() == nil {
		return fmt.Errorf("pg_dump: %w", err)
	}
	pause(ctx, 100*time.Millisecond)
	return nil
}

// binDir is where the programs of the server under test are.
func (s *stage) binDir(ctx context.Context) (dir string, err error) {
	err = s.db.QueryRow(ctx, "SELECT setting FROM pg_config WHERE name = 'BINDIR'").Scan(&dir)
	return dir, err
}
