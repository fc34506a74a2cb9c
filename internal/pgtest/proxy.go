package pgtest

import (
	"net"
	"net/url"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Proxy is a TCP proxy in front of a PostgreSQL server that breaks
// connections in the ways a network does.
type Proxy struct {
	url     string
	backend string // host:port of the server
	ln      net.Listener
	wg      sync.WaitGroup

	mu      sync.Mutex
	mode    proxyMode
	changed chan struct{} // closed and replaced when mode changes
	links   map[*link]struct{}
}

// proxyMode is what a proxy does to the bytes that pass.
type proxyMode int

const (
	forward     proxyMode = iota
	blackhole             // swallow everything, close nothing
	dropReplies           // swallow what the server says
	cut                   // no connections
	closed                // the test is over
)

// NewProxy returns a proxy to the server at url, which forwards everything
// until it is told otherwise and ends with the test.
func NewProxy(t testing.TB, server string) *Proxy {
	t.Helper()
	config, err := pgx.ParseConfig(server)
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	u, err := url.Parse(server)
	if err != nil {
		t.Fatalf("pgtest: the proxy needs a postgres:// URL: %v", err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	network, address := pgconn.NetworkAddress(config.Host, config.Port)
	if network != "tcp" {
		t.Fatalf("pgtest: the proxy needs a server on TCP, not %s", address)
	}
	u.Host = ln.Addr().String()
	p := &Proxy{
		url:     u.String(),
		backend: address,
		ln:      ln,
		changed: make(chan struct{}),
		links:   make(map[*link]struct{}),
	}
	p.wg.Go(p.accept)
	t.Cleanup(func() {
		p.enter(closed)
		if err := ln.Close(); err != nil {
			t.Errorf("pgtest: %v", err)
		}
		p.wg.Wait()
	})
	return p
}

// URL returns the server's URL with the proxy's address in it.
func (p *Proxy) URL() string { return p.url }

// Blackhole makes the proxy accept connections and swallow the bytes of all,
// both ways, without closing any: neither side learns of the other's end.
func (p *Proxy) Blackhole() { p.enter(blackhole) }

// DropReplies makes the proxy hand on what clients send and swallow what the
// server answers: statements run, and nobody hears of it.
func (p *Proxy) DropReplies() { p.enter(dropReplies) }

// Cut closes all connections, and new ones as soon as they come.
func (p *Proxy) Cut() { p.enter(cut) }

// Heal makes the proxy forward again. Connections that lost bytes are
// closed, since nothing sensible can follow on them; the others go on.
func (p *Proxy) Heal() { p.enter(forward) }

// enter changes the mode. Connections that lost bytes end with the mode that
// lost them, except when it gets darker still.
func (p *Proxy) enter(mode proxyMode) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if mode == p.mode {
		return
	}
	p.mode = mode
	close(p.changed)
	p.changed = make(chan struct{})
	for l := range p.links {
		if mode == cut || mode == closed || mode != blackhole && l.lost {
			l.close()
		}
	}
}

// accept hands every new connection to a goroutine of its own.
func (p *Proxy) accept() {
	for {
		client, err := p.ln.Accept()
		if err != nil {
			return
		}
		p.wg.Go(func() { p.serve(client) })
	}
}

// serve carries one connection to its end.
func (p *Proxy) serve(client net.Conn) {
	l := &link{client: client}
	p.mu.Lock()
	mode := p.mode
	if mode == cut || mode == closed {
		p.mu.Unlock()
		l.close()
		return
	}
	p.links[l] = struct{}{}
	// A connection made in the dark never reaches the server.
	l.lost = mode == blackhole
	p.mu.Unlock()

	defer func() {
		p.mu.Lock()
		delete(p.links, l)
		l.close()
		p.mu.Unlock()
	}()
	if mode == blackhole {
		p.carry(l, client, nil)
		return
	}
	server, err := net.Dial("tcp", p.backend)
	if err != nil {
		return
	}
	if !p.attach(l, server) {
		return
	}
	p.wg.Go(func() { p.carry(l, server, client) })
	p.carry(l, client, server)
}

// attach adds the server's side to a link, unless the link was closed while
// the server was dialled.
func (p *Proxy) attach(l *link, server net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if l.closed {
		_ = server.Close()
		return false
	}
	l.server = server
	return true
}

// carry copies bytes from src to dst, as far as the mode lets them, until one
// of them ends, and then closes both.
func (p *Proxy) carry(l *link, src, dst net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		if n > 0 && p.passes(l, src) {
			if _, werr := dst.Write(buf[:n]); werr != nil {
				err = werr
			}
		}
		if err != nil {
			p.hangUp(l)
			return
		}
	}
}

// passes reports whether bytes that have just come from src may go on, and
// notes the loss if they may not.
func (p *Proxy) passes(l *link, src net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mode == blackhole || p.mode == dropReplies && src == l.server {
		l.lost = true
		return false
	}
	return !l.closed
}

// hangUp closes a link of which one side has ended. In a blackhole the other
// side must not learn of that before the mode changes.
func (p *Proxy) hangUp(l *link) {
	for {
		p.mu.Lock()
		if p.mode != blackhole || l.closed {
			l.close()
			p.mu.Unlock()
			return
		}
		changed := p.changed
		p.mu.Unlock()
		<-changed
	}
}

// link is a connection through the proxy. The proxy's mutex guards it.
type link struct {
	client net.Conn
	server net.Conn // nil in a blackhole and until the server is dialled
	lost   bool     // bytes were swallowed
	closed bool
}

func (l *link) close() {
	if l.closed {
		return
	}
	l.closed = true
	for _, c := range []net.Conn{l.client, l.server} {
		if c == nil {
			continue
		}
		// Reset instead of a polite end, as a broken network would.
		if tcp, ok := c.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		_ = c.Close()
	}
}
