package main

import (
	"bytes"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// proxy stands between a process and its database and breaks the network. It is
// our own because two things are wanted that ready-made ones do not do: a
// blackhole tells neither side when the other hangs up, and what a connection is
// for decides about what becomes of it.
type proxy struct {
	listener net.Listener
	target   string
	wg       sync.WaitGroup

	mu      sync.Mutex
	trouble trouble
	changed chan struct{} // closed and replaced with trouble
	links   map[*link]struct{}
	closed  bool
}

// purpose is what a connection is used for, as far as its statements tell.
type purpose int

const (
	anyPurpose purpose = iota
	forControl         // claims, outcomes, sweeps
	forListen          // LISTEN
	forBeats           // the heartbeats
)

// A statement tells what the connection that it is sent over is for; where
// several do, the greatest purpose counts.
var purposes = []struct {
	text []byte
	is   purpose
}{
	{[]byte(".job_running"), forControl},
	{[]byte(".job_sweep"), forControl},
	{[]byte("LISTEN "), forListen},
	{[]byte(".job_lease AS l (claim_id"), forBeats},
}

// trouble is what befalls connections.
type trouble struct {
	only    purpose       // anyPurpose: all of them
	swallow bool          // nothing gets through, and nobody learns of it
	refuse  bool          // they are closed, and so are new ones
	latency time.Duration // each chunk of bytes is late by up to so much
}

func newProxy(target string) (*proxy, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &proxy{listener: listener, target: target, changed: make(chan struct{}), links: map[*link]struct{}{}}
	p.wg.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			p.wg.Go(func() { p.serve(client) })
		}
	})
	return p, nil
}

func (p *proxy) addr() string { return p.listener.Addr().String() }

// close ends the proxy and all of its connections.
func (p *proxy) close() {
	p.set(trouble{refuse: true})
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	_ = p.listener.Close()
	p.wg.Wait()
}

// set changes what befalls connections; the zero value heals. Connections that
// have lost bytes are closed then, for nothing sensible can follow on them.
func (p *proxy) set(t trouble) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.trouble = t
	close(p.changed)
	p.changed = make(chan struct{})
	for l := range p.links {
		if l.lost && !t.swallow || t.refuse && t.hits(l) {
			l.close()
		}
	}
}

func (t *trouble) hits(l *link) bool { return t.only == anyPurpose || t.only == l.purpose }

// link is one connection through the proxy, guarded by the proxy's mutex.
type link struct {
	client, server net.Conn // server is nil where the blackhole took the connection at birth
	purpose        purpose
	lost           bool // bytes were swallowed
	closed         bool
}

// close resets the connection, as a broken network would.
func (l *link) close() {
	if l.closed {
		return
	}
	l.closed = true
	for _, c := range []net.Conn{l.client, l.server} {
		if tcp, ok := c.(*net.TCPConn); ok && tcp != nil {
			_ = tcp.SetLinger(0)
			_ = tcp.Close()
		}
	}
}

func (p *proxy) serve(client net.Conn) {
	l := &link{client: client}
	p.mu.Lock()
	t := p.trouble
	if p.closed || t.refuse && t.only == anyPurpose {
		l.close()
		p.mu.Unlock()
		return
	}
	p.links[l] = struct{}{}
	l.lost = t.swallow && t.only == anyPurpose
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.links, l)
		l.close()
		p.mu.Unlock()
	}()
	if l.lost {
		p.carry(l, client, nil)
		return
	}
	server, err := net.DialTimeout("tcp", p.target, 5*time.Second)
	if err != nil {
		return
	}
	p.mu.Lock()
	if l.server = server; l.closed {
		_ = server.Close()
	}
	p.mu.Unlock()
	p.wg.Go(func() { p.carry(l, server, client) })
	p.carry(l, client, server)
}

// carry copies bytes as far as they may go, until one side ends.
func (p *proxy) carry(l *link, from, to net.Conn) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		if n > 0 && p.passes(l, from, buffer[:n]) {
			if _, e := to.Write(buffer[:n]); e != nil {
				err = e
			}
		}
		if err != nil {
			p.hangUp(l)
			return
		}
	}
}

// passes waits for as long as bytes are late, and reports whether they arrive.
func (p *proxy) passes(l *link, from net.Conn, chunk []byte) bool {
	p.mu.Lock()
	if from == l.client {
		for _, s := range purposes {
			if s.is > l.purpose && bytes.Contains(chunk, s.text) {
				l.purpose = s.is
			}
		}
	}
	t, changed := p.trouble, p.changed
	hit := t.hits(l)
	if hit && t.swallow {
		l.lost = true
	}
	if hit && t.refuse {
		l.close()
	}
	ok := !l.closed && !l.lost
	p.mu.Unlock()
	if ok && hit && t.latency > 0 {
		late := time.NewTimer(rand.N(t.latency))
		defer late.Stop()
		select {
		case <-late.C:
		case <-changed:
		}
	}
	return ok
}

// hangUp closes a link of which one side has ended; in a blackhole the other
// side does not learn of it before the trouble changes.
func (p *proxy) hangUp(l *link) {
	for {
		p.mu.Lock()
		t, changed := p.trouble, p.changed
		if !t.swallow || !t.hits(l) || l.closed {
			l.close()
			p.mu.Unlock()
			return
		}
		p.mu.Unlock()
		<-changed
	}
}
