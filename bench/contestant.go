package main

import (
	"context"
	"encoding/json"
	"runtime/debug"
)

// Contestant is a queue under test. One value serves one run.
type Contestant interface {
	Version() string
	Settings() string // those that differ from its defaults
	// Prepare makes the tables in an empty database.
	Prepare(ctx context.Context, url string) error
	// Insert stores jobs, in one call.
	Insert(ctx context.Context, jobs []Payload) error
	// Run works until ctx ends, and returns once it has stopped. The handler
	// decodes the payload and calls handled with it.
	Run(ctx context.Context, handled func(Payload)) error
	// Settled reports whether every job is in its last state.
	Settled(ctx context.Context) (bool, error)
	Close()
}

// contestants by name; each file adds its own.
var contestants = map[string]func() Contestant{}

// Payload is what each job carries: 100 bytes of JSON.
type Payload struct {
	N    int    `json:"n"`
	Text string `json:"text"`
}

const (
	payloadBytes = 100
	filler       = "The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs. "
)

func newPayload(n int) Payload {
	p := Payload{N: n}
	text, _ := json.Marshal(p) // an int and an empty string always encode
	p.Text = filler[:payloadBytes-len(text)]
	return p
}

// moduleVersion is the version of a module that this program is built with.
func moduleVersion(path string) string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, m := range info.Deps {
		if m.Path != path {
			continue
		}
		if m.Replace != nil {
			return "this checkout"
		}
		return m.Version
	}
	return "unknown"
}
