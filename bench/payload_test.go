package main

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"testing"
)

func TestPayloadSize(t *testing.T) {
	t.Parallel()
	for _, size := range []int{smallPayload, 4 << 10, 64 << 10} {
		for _, n := range []int{0, 7, 123456} {
			p := newPayload(n, size)
			text, err := json.Marshal(p)
			if err != nil {
				t.Fatal(err)
			}
			if len(text) != size {
				t.Errorf("payload %d of %d bytes has %d", n, size, len(text))
			}
			if !p.intact(size) {
				t.Errorf("payload %d of %d bytes is not intact", n, size)
			}
			p.Text = p.Text[1:]
			if p.intact(size) {
				t.Errorf("payload %d of %d bytes is intact without its first byte", n, size)
			}
		}
	}
}

// TestLargePayloadIsIncompressible: base64 of noise is six bits a byte, which
// gzip, stronger than the server's methods, gets down to three quarters.
func TestLargePayloadIsIncompressible(t *testing.T) {
	t.Parallel()
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	text := newPayload(1, 64<<10).Text
	if _, err := w.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if packed.Len() < len(text)*7/10 {
		t.Errorf("%d bytes compress to %d", len(text), packed.Len())
	}
	if text == newPayload(2, 64<<10).Text {
		t.Error("two jobs have the same payload")
	}
}
