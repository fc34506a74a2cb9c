package pgtest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// silence is how long a test listens for an answer that must not come.
const silence = 200 * time.Millisecond

func proxied(t *testing.T) (p *Proxy, through, direct *pgx.Conn) {
	t.Helper()
	url := EmptyDatabase(t)
	p = NewProxy(t, url)
	return p, connect(t, p.URL()), connect(t, url)
}

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = conn.Close(ctx) // It may be broken, which is what the tests are about.
	})
	return conn
}

// hears reports whether a statement is answered at all.
func hears(t *testing.T, conn *pgx.Conn, sql string) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), silence)
	defer cancel()
	_, err := conn.Exec(ctx, sql)
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%s failed with %v instead of silence", sql, err)
	}
	return err == nil
}

func TestProxyForwards(t *testing.T) {
	t.Parallel()
	_, conn, _ := proxied(t)
	var n int
	if err := conn.QueryRow(t.Context(), "SELECT length(repeat('x', 1000000))").Scan(&n); err != nil || n != 1_000_000 {
		t.Errorf("got %d, %v", n, err)
	}
}

func TestProxyBlackhole(t *testing.T) {
	t.Parallel()
	p, busy, direct := proxied(t)
	idle := connect(t, p.URL())
	p.Blackhole()
	if hears(t, busy, "CREATE TABLE lost ()") {
		t.Error("a statement went through the blackhole")
	}
	ctx, cancel := context.WithTimeout(t.Context(), silence)
	defer cancel()
	if _, err := pgx.Connect(ctx, p.URL()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("connecting in a blackhole: %v, want a deadline", err)
	}
	// The client gave up its connection; the server must not know.
	if n := backends(t, direct); n != 2 {
		t.Errorf("the server has %d connections of the proxy, want 2", n)
	}
	p.Heal()
	if !hears(t, idle, "SELECT") {
		t.Error("a connection that lost nothing is silent after healing")
	}
	connect(t, p.URL())
	var exists bool
	if err := direct.QueryRow(t.Context(), "SELECT to_regclass('lost') IS NOT NULL").Scan(&exists); err != nil || exists {
		t.Errorf("the lost statement ran: %t, %v", exists, err)
	}
}

func TestProxyDropReplies(t *testing.T) {
	t.Parallel()
	p, conn, direct := proxied(t)
	p.DropReplies()
	if hears(t, conn, "CREATE TABLE made ()") {
		t.Error("the answer came through")
	}
	eventually(t, "the statement ran", func() bool {
		var exists bool
		if err := direct.QueryRow(t.Context(), "SELECT to_regclass('made') IS NOT NULL").Scan(&exists); err != nil {
			t.Fatal(err)
		}
		return exists
	})
	p.Heal()
	connect(t, p.URL())
}

func TestProxyCut(t *testing.T) {
	t.Parallel()
	p, conn, direct := proxied(t)
	p.Cut()
	if err := conn.Ping(t.Context()); err == nil {
		t.Error("the connection survived the cut")
	}
	if _, err := pgx.Connect(t.Context(), p.URL()); err == nil {
		t.Error("a new connection was let in")
	}
	eventually(t, "the server noticed", func() bool { return backends(t, direct) == 0 })
	p.Heal()
	connect(t, p.URL())
}

// backends counts the other connections to conn's database.
func backends(t *testing.T, conn *pgx.Conn) (n int) {
	t.Helper()
	if err := conn.QueryRow(t.Context(), `
		SELECT count(*)
		FROM pg_stat_activity
		WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("it did not happen: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
