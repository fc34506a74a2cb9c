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
)

func init() {
	addScenario(scenario{
		name: "bouncer-listen", order: 18, about: "behind PgBouncer in transaction mode, with LISTEN tried", missing: noBouncer,
		prepare: prepareBouncer(false), inject: injectTerminations,
	})
	addScenario(scenario{
		name: "bouncer", order: 18, about: "behind PgBouncer in transaction mode, polling only", missing: noBouncer,
		prepare: prepareBouncer(true), inject: injectTerminations,
	})
}

func findBouncer() (string, error) {
	if path, err := exec.LookPath("pgbouncer"); err == nil {
		return path, nil
	}
	return exec.LookPath("/usr/sbin/pgbouncer")
}

func noBouncer() string {
	if _, err := findBouncer(); err != nil {
		return "pgbouncer is not installed: " + err.Error()
	}
	return ""
}

// prepareBouncer puts a PgBouncer between the proxies and the server.
func prepareBouncer(pollOnly bool) func(context.Context, *stage) error {
	return func(ctx context.Context, s *stage) error {
		s.setup.PollOnly = pollOnly
		s.query = "default_query_exec_mode=exec"
		program, err := findBouncer()
		if err != nil {
			return err
		}
		server, err := url.Parse(s.url)
		if err != nil {
			return err
		}
		password, _ := server.User.Password()
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		port := listener.Addr().(*net.TCPAddr).Port
		if err := listener.Close(); err != nil {
			return err
		}
		dir, err := os.MkdirTemp("", "simplequeue-chaos-bouncer-")
		if err != nil {
			return err
		}
		s.cleanup(func() error { return os.RemoveAll(dir) })
		config := filepath.Join(dir, "pgbouncer.ini")
		text := fmt.Sprintf(`[databases]
* = host=%s port=%s user=%s password=%s
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 6
max_client_conn = 200
server_reset_query =
`, server.Hostname(), server.Port(), server.User.Username(), password, port)
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			return err
		}
		cmd := exec.Command(program, config)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if os.Geteuid() == 0 { // which PgBouncer refuses to be
			info, err := dataOwner(ctx, s)
			if err != nil {
				return err
			}
			for _, path := range []string{dir, config} {
				if err := os.Chown(path, int(info.Uid), int(info.Gid)); err != nil {
					return err
				}
			}
			cmd.SysProcAttr.Credential = info
		}
		log, err := os.Create(filepath.Join(s.logs, "pgbouncer.log"))
		if err != nil {
			return err
		}
		defer log.Close()
		cmd.Stdout, cmd.Stderr = log, log
		if err := cmd.Start(); err != nil {
			return err
		}
		s.cleanup(func() error {
			_ = cmd.Process.Kill()
			var exit *exec.ExitError
			if err := cmd.Wait(); !errors.As(err, &exit) {
				return err
			}
			return nil
		})
		s.target = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		if !eventually(ctx, 10*time.Second, func() bool {
			conn, err := net.Dial("tcp", s.target)
			if err == nil {
				_ = conn.Close()
			}
			return err == nil
		}) {
			return fmt.Errorf("pgbouncer does not come up: %s", s.lastLines("pgbouncer"))
		}
		return nil
	}
}
