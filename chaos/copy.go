package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// copied is a server made by a base backup of another.
type copied struct {
	stage *stage
	args  []string // of pg_basebackup
	bin   string
	dir   string // with the data folder in it
	owner *syscall.Credential
	port  int
	cmd   *exec.Cmd // nil while it does not run
}

// newCopy prepares for a copy of the server at source. With follow set it will be
// a standby of the server at that address.
func (s *stage) newCopy(ctx context.Context, source string, follow bool) (_ *copied, err error) {
	c := &copied{stage: s}
	if c.bin, err = s.binDir(ctx); err != nil {
		return nil, err
	}
	if c.dir, err = os.MkdirTemp("", "simplequeue-chaos-copy-"); err != nil {
		return nil, err
	}
	s.cleanup(func() error { return errors.Join(c.kill(), os.RemoveAll(c.dir)) })
	if os.Geteuid() == 0 {
		if c.owner, err = dataOwner(ctx, s); err != nil {
			return nil, err
		}
		if err := os.Chown(c.dir, int(c.owner.Uid), int(c.owner.Gid)); err != nil {
			return nil, err
		}
	}
	c.args = []string{"--pgdata=" + c.data(), "--dbname=" + source, "--wal-method=stream", "--checkpoint=fast", "--no-sync"}
	if follow {
		c.args = append(c.args, "--write-recovery-conf")
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	c.port = listener.Addr().(*net.TCPAddr).Port
	return c, listener.Close()
}

// backUp makes the base backup.
func (c *copied) backUp(ctx context.Context) error {
	if out, err := c.command(ctx, "pg_basebackup", c.args...).CombinedOutput(); err != nil {
		return fmt.Errorf("pg_basebackup: %w: %s", err, out)
	}
	return nil
}

func (c *copied) data() string { return filepath.Join(c.dir, "data") }

func (c *copied) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(c.bin, name), args...)
	cmd.Dir = c.dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: c.owner}
	return cmd
}

// address is the server's host and port.
func (c *copied) address() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(c.port)) }

// run starts the server and waits until it can be asked.
func (c *copied) run(ctx context.Context) error {
	log, err := os.Create(filepath.Join(c.stage.logs, "copy.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	c.cmd = c.command(context.WithoutCancel(ctx), "postgres", "-D", c.data(), "-p", strconv.Itoa(c.port),
		"-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=")
	c.cmd.Stdout, c.cmd.Stderr = log, log
	if err := c.cmd.Start(); err != nil {
		return err
	}
	var last error
	ok := eventually(ctx, 30*time.Second, func() bool {
		last = c.exec(ctx, "SELECT 1")
		return last == nil
	})
	if !ok {
		return fmt.Errorf("the copy of the server does not come up: %w", last)
	}
	return nil
}

// exec runs a statement on the server, in the database postgres.
func (c *copied) exec(ctx context.Context, statement string) error {
	u, err := url.Parse(c.stage.server.URL())
	if err != nil {
		return err
	}
	u.Host = c.address()
	conn, err := pgx.Connect(ctx, u.String())
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, statement)
	return err
}

func (c *copied) kill() error {
	if c.cmd == nil {
		return nil
	}
	_ = c.cmd.Process.Signal(syscall.SIGQUIT)
	err := c.cmd.Wait()
	c.cmd = nil
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil // it was told to end at once
	}
	return err
}

// dataOwner is the user that the server under test runs as.
func dataOwner(ctx context.Context, s *stage) (*syscall.Credential, error) {
	var data string
	if err := s.db.QueryRow(ctx, "SHOW data_directory").Scan(&data); err != nil {
		return nil, err
	}
	info, err := os.Stat(data)
	if err != nil {
		return nil, err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil, errors.New("the owner of the data folder cannot be told")
	}
	return &syscall.Credential{Uid: stat.Uid, Gid: stat.Gid}, nil
}
