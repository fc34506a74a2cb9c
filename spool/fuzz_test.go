package spool

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
)

// FuzzRecord: a record is read as it was written, and any other bytes are
// refused.
func FuzzRecord(f *testing.F) {
	for _, b := range [][]byte{nil, []byte("x"), bytes.Repeat([]byte{0}, 8), encode([]byte(`{"jobs":[]}`), 1)} {
		f.Add(b, 1)
	}
	f.Fuzz(func(t *testing.T, b []byte, jobs int) {
		if body, n, problem := decode(b); problem == "" && !bytes.Equal(encode(body, n), b) {
			t.Errorf("%x is read as %x", b, body)
		}
		jobs &= 1<<31 - 1
		value := encode(b, jobs)
		if body, n, problem := decode(value); problem != "" || n != jobs || !bytes.Equal(body, b) {
			t.Errorf("%x and %d came back as %x and %d, %s", b, jobs, body, n, problem)
		}
		if value[len(value)-1] ^= 1; len(b) > 0 {
			if _, _, problem := decode(value); problem == "" {
				t.Errorf("a bit of %x was turned, unseen", b)
			}
		}
	})
}

// FuzzFile: a spool file that was changed anywhere, or cut off, is opened or
// refused, and repaired: no process ends, and what it gives back is what was put
// in.
func FuzzFile(f *testing.F) {
	sound := filepath.Join(f.TempDir(), "sound")
	opts, err := Options{Logger: slog.New(slog.DiscardHandler)}.withDefaults()
	if err != nil {
		f.Fatal(err)
	}
	s, err := openFile(sound, opts)
	if err != nil {
		f.Fatal(err)
	}
	body := func(n int) []byte { return fmt.Appendf(nil, "%03d %s", n, bytes.Repeat([]byte{'x'}, 700)) }
	for n := range 60 {
		if err := s.add(body(n), 1); err != nil {
			f.Fatal(err)
		}
	}
	if err := errors.Join(s.remove([]uint64{1, 2, 3}), s.setAside(4, "test"), s.close()); err != nil {
		f.Fatal(err)
	}
	text, err := os.ReadFile(sound)
	if err != nil {
		f.Fatal(err)
	}
	for at := range uint32(40) {
		f.Add(at*1500, []byte{0xFF, 0, byte(at)}, false)
		f.Add(at*4097, []byte{1, 0, 0, 0, 0, 0, 0, 0x7F}, at%5 == 0)
	}
	f.Fuzz(func(t *testing.T, at uint32, change []byte, cut bool) {
		damaged := bytes.Clone(text)
		at %= uint32(len(damaged))
		if copy(damaged[at:], change); cut {
			damaged = damaged[:at]
		}
		path := filepath.Join(t.TempDir(), "x")
		if err := os.WriteFile(path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		opened, err := openFile(path, opts)
		if corrupt := (*CorruptError)(nil); errors.As(err, &corrupt) {
			if _, err := Repair(path); err != nil {
				t.Fatalf("Repair: %v, after %v", err, corrupt)
			}
			opened, err = openFile(path, opts)
		}
		if err != nil {
			t.Skip("refused: ", err) // a format of another version, say
		}
		records, err := opened.after(0, 1000, 1<<30)
		if corrupt := (*CorruptError)(nil); errors.As(err, &corrupt) {
			// Open reads all records, but not by way of every page.
			_ = opened.close()
			if _, err := Repair(path); err != nil {
				t.Errorf("Repair: %v, after %v", err, corrupt)
			}
			return
		}
		if err != nil {
			t.Errorf("what Open has accepted cannot be read: %v", err)
		}
		for _, r := range records {
			got, _, problem := decode(r.value)
			if problem != "" || r.number == 0 || r.number > 60 || !bytes.Equal(got, body(int(r.number)-1)) {
				t.Errorf("record %d: %s %.20q", r.number, problem, got)
			}
		}
		if err := opened.close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
}
