package main

import (
	"encoding/base64"
	"math/rand/v2"
	"strconv"
	"sync"
)

// Payload is what each job carries.
type Payload struct {
	N    int    `json:"n"`
	Key  string `json:"key,omitempty" river:"unique"`
	Text string `json:"text"`
}

// smallPayload is the size of a payload unless a scenario says otherwise.
const smallPayload = 100

const filler = "The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs. "

// noise is text that no compression makes much smaller.
var noise = sync.OnceValue(func() string {
	random := rand.NewChaCha8([32]byte{1})
	raw := make([]byte, 1<<20)
	_, _ = random.Read(raw) // never fails
	return base64.StdEncoding.EncodeToString(raw)
})

// newPayload makes a payload of a number of bytes, encoded. A large one is
// incompressible, and no two are the same.
func newPayload(n, bytes int) Payload {
	size := textBytes(n, bytes)
	if size <= len(filler) {
		return Payload{N: n, Text: filler[:size]}
	}
	text := noise()
	from := int(uint64(n) * 0x9e3779b97f4a7c15 % uint64(len(text)-size))
	return Payload{N: n, Text: text[from : from+size]}
}

// textBytes is the length of Text that makes a payload as long as it should be.
func textBytes(n, bytes int) int {
	return max(0, bytes-len(`{"n":,"text":""}`)-len(strconv.Itoa(n)))
}

// intact reports whether a handler got what was inserted.
func (p Payload) intact(bytes int) bool {
	return p.N >= 0 && p.Text == newPayload(p.N, bytes).Text
}
