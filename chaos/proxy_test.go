package main

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// echo is a server that answers each line with the same line.
func echo(t *testing.T) (addr string, hungUp <-chan struct{}) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	ended := make(chan struct{}, 10)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(conn, conn)
				_ = conn.Close()
				ended <- struct{}{}
			}()
		}
	}()
	return listener.Addr().String(), ended
}

// client is a connection through a proxy.
type client struct {
	t    *testing.T
	conn net.Conn
	in   *bufio.Reader
}

func dial(t *testing.T, p *proxy) *client {
	t.Helper()
	conn, err := net.Dial("tcp", p.addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &client{t, conn, bufio.NewReader(conn)}
}

// says sends a line and reports what becomes of it: answered, silence or closed.
func (c *client) says(line string, wait time.Duration) string {
	c.t.Helper()
	if _, err := io.WriteString(c.conn, line+"\n"); err != nil {
		return "closed"
	}
	if err := c.conn.SetReadDeadline(time.Now().Add(wait)); err != nil {
		c.t.Fatal(err)
	}
	_, err := c.in.ReadString('\n')
	switch {
	case err == nil:
		return "answered"
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "silence"
	}
	return "closed"
}

const (
	ample   = 10 * time.Second
	silence = 100 * time.Millisecond
)

func newTestProxy(t *testing.T, target string) *proxy {
	t.Helper()
	p, err := newProxy(target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.close)
	return p
}

func TestBlackholeOfOnePurpose(t *testing.T) {
	target, _ := echo(t)
	p := newTestProxy(t, target)
	beats, control, other := dial(t, p), dial(t, p), dial(t, p)
	for c, text := range map[*client]string{
		beats: `SELECT FROM x.job_running; INSERT INTO x.job_lease AS l (claim_id)`, control: "DELETE FROM x.job_running", other: "SELECT 1",
	} {
		if got := c.says(text, ample); got != "answered" {
			t.Fatalf("%s: %s", text, got)
		}
	}
	p.set(trouble{only: forBeats, swallow: true})
	for c, want := range map[*client]string{beats: "silence", control: "answered", other: "answered"} {
		wait := ample
		if want == "silence" {
			wait = silence
		}
		if got := c.says("a", wait); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	p.set(trouble{})
	if got := beats.says("a", ample); got != "closed" {
		t.Errorf("a connection that had lost bytes: %s", got)
	}
	if got := control.says("a", ample); got != "answered" {
		t.Errorf("a connection that had lost none: %s", got)
	}
}

func TestBlackholeHidesTheEnd(t *testing.T) {
	target, hungUp := echo(t)
	p := newTestProxy(t, target)
	c := dial(t, p)
	if got := c.says("a", ample); got != "answered" {
		t.Fatal(got)
	}
	p.set(trouble{swallow: true})
	if got := dial(t, p).says("a", silence); got != "silence" {
		t.Errorf("a new connection: %s", got)
	}
	_ = c.conn.Close()
	select {
	case <-hungUp:
		t.Error("the server learned of the client's end")
	case <-time.After(silence):
	}
	p.set(trouble{})
	select {
	case <-hungUp:
	case <-time.After(ample):
		t.Error("the server did not learn of the client's end afterwards")
	}
}

func TestRefuseAndLatency(t *testing.T) {
	target, _ := echo(t)
	p := newTestProxy(t, target)
	c := dial(t, p)
	p.set(trouble{latency: time.Hour})
	if got := c.says("a", silence); got != "silence" {
		t.Errorf("late: %s", got)
	}
	p.set(trouble{}) // what is late comes now
	if err := c.conn.SetReadDeadline(time.Now().Add(ample)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.in.ReadString('\n'); err != nil {
		t.Errorf("what was late: %v", err)
	}
	p.set(trouble{refuse: true})
	if got := c.says("a", ample); got != "closed" {
		t.Errorf("refused: %s", got)
	}
}
