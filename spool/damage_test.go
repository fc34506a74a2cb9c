package spool_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/spool"
)

// damage changes the file of a rig that is closed.
func (b *rig) damage(change func(text []byte) []byte) {
	b.t.Helper()
	text, err := os.ReadFile(b.path)
	if err == nil {
		err = os.WriteFile(b.path, change(text), 0o600)
	}
	if err != nil {
		b.t.Fatal(err)
	}
}

// filled is a rig whose spool, closed, holds jobs a:1 to a:200, each so large
// that a page of the file holds few.
func filled(t *testing.T) *rig {
	t.Helper()
	b := newRig(t, spool.Options{}, simplequeue.Options{})
	b.proxy.Cut()
	for n := 1; n <= 200; n++ {
		j := job("a", n)
		j.Raw = bytes.Repeat([]byte{byte(n)}, 300)
		j.Fingerprint = strings.Repeat("f", 200) + "-" + string(rune('A'+n%26))
		b.put(j, true)
	}
	b.close()
	b.proxy.Heal()
	return b
}

// A record that is damaged is named and set aside, and the others are replayed.
func TestADamagedRecordIsSetAside(t *testing.T) {
	t.Parallel()
	b := filled(t)
	b.damage(func(text []byte) []byte {
		at := bytes.LastIndex(text, []byte(`"Payload":77`)) // older pages may hold it, too
		for i := bytes.Index(text, []byte(`"Payload":77`)); i >= 0 && i <= at; i = next(text, i) {
			text[i+len(`"Payload":`)] = '8'
		}
		return text
	})
	b.open(spool.Options{}, simplequeue.Options{})
	aside, err := b.spool.Aside(10)
	if err != nil || len(aside) != 1 {
		t.Fatalf("set aside: %+v, %v, want one entry", aside, err)
	}
	if e := aside[0]; e.Number != 77 || !strings.Contains(e.Reason, "record 77") || !strings.Contains(e.Reason, b.path) || !strings.Contains(e.Reason, "checksum") || len(e.Data) < 300 {
		t.Errorf("set aside: %d %q, %d bytes", e.Number, e.Reason, len(e.Data))
	}
	if err := b.spool.Retry(77); err == nil || !strings.Contains(err.Error(), "entry 77") {
		t.Errorf("retry of a damaged record: %v", err)
	}
	b.run()
	b.drained()
	var want []int
	for n := 1; n <= 200; n++ {
		if n != 77 {
			want = append(want, n)
		}
	}
	b.want("a", want...)
	b.close()
	b.open(spool.Options{}, simplequeue.Options{})
	if s := b.spool.Stats(); s.Aside != 1 || s.Jobs != 0 {
		t.Errorf("opened again: %+v, want the entry", s)
	}
	if err := b.spool.Discard(77); err != nil {
		t.Error(err)
	}
}

func next(text []byte, i int) int {
	at := bytes.Index(text[i+1:], []byte(`"Payload":77`))
	if at < 0 {
		return -1
	}
	return i + 1 + at
}

// A record of a newer version is set aside, not stripped of what it says.
func TestARecordOfANewerVersionIsSetAside(t *testing.T) {
	t.Parallel()
	b := newRig(t, spool.Options{}, simplequeue.Options{})
	b.proxy.Cut()
	target := b.target()
	call, err := target.Take(t.Context(), jobs("a", 1, 1), nil)
	if err != nil {
		t.Fatal(err)
	}
	body, err := call.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	spool.AddRecord(b.spool, bytes.Replace(body, []byte(`"Queue"`), []byte(`"NewField":1,"Queue"`), 1), 1)
	b.put(job("a", 2), true)
	b.proxy.Heal()
	b.run()
	b.drained()
	b.want("a", 2)
	aside, err := b.spool.Aside(10)
	if err != nil || len(aside) != 1 || !strings.Contains(aside[0].Reason, "NewField") {
		t.Errorf("set aside: %+v, %v", aside, err)
	}
}

// A file that is damaged as a whole is refused and left as it is. Repair keeps
// what can be read, and the damaged file.
func TestADamagedFileIsRefusedAndRepaired(t *testing.T) {
	t.Parallel()
	const page = 4096
	for name, c := range map[string]struct {
		change func(text []byte) []byte
		least  int // calls that can be saved
	}{
		"a page in the middle": {func(text []byte) []byte {
			for i := bytes.Index(text, []byte(`"Payload":100,`)); i >= 0; {
				at := i / page * page
				copy(text[at:at+page], bytes.Repeat([]byte{0xA5}, page))
				i = bytes.Index(text, []byte(`"Payload":100,`))
			}
			return text
		}, 150},
		"both first pages": {func(text []byte) []byte {
			copy(text, bytes.Repeat([]byte{0}, 2*page))
			return text
		}, 0},
		"one page":       {func(text []byte) []byte { return text[:page] }, 0},
		"cut in half":    {func(text []byte) []byte { return text[:len(text)/2] }, 0},
		"something else": {func([]byte) []byte { return bytes.Repeat([]byte("this is no spool\n"), 1000) }, 0},
		"a few bytes":    {func([]byte) []byte { return []byte("short") }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := filled(t)
			b.damage(c.change)
			before, err := os.ReadFile(b.path)
			if err != nil {
				t.Fatal(err)
			}
			var corrupt *spool.CorruptError
			if _, err := spool.Open(b.path, spool.Options{Logger: quiet}); !errors.As(err, &corrupt) || corrupt.Problem == "" || !strings.Contains(err.Error(), b.path) {
				t.Fatalf("Open: %v, want a CorruptError", err)
			}
			after, err := os.ReadFile(b.path)
			if err != nil || !bytes.Equal(before, after) {
				t.Errorf("Open has changed the file (%v)", err)
			}
			r, err := spool.Repair(b.path)
			if err != nil {
				t.Fatalf("Repair: %v", err)
			}
			kept, err := os.ReadFile(r.Damaged)
			if err != nil || !bytes.Equal(before, kept) {
				t.Errorf("the damaged file is not what it was (%v)", err)
			}
			b.open(spool.Options{}, simplequeue.Options{})
			b.run()
			b.drained()
			got := b.numbers("a")
			if len(got) < c.least || len(got)+b.spool.Stats().Aside != r.Kept || !slices.IsSorted(got) {
				t.Errorf("%d jobs after the repair, which kept %d, want at least %d, in order", len(got), r.Kept, c.least)
			}
			b.put(job("a", 1000), false)
			if _, err := spool.Repair(b.path); !errors.Is(err, spool.ErrInUse) {
				t.Errorf("Repair of a file in use: %v", err)
			}
		})
	}
	path := filepath.Join(t.TempDir(), "sound.spool")
	s, err := spool.Open(path, spool.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := spool.Repair(path); err == nil || !strings.Contains(err.Error(), "not damaged") {
		t.Errorf("Repair of a sound file: %v", err)
	}
}

// A file that its first Open did not finish, for it was killed or the disk was
// full, is a new one. One that is something else is not.
func TestAFileThatWasNotFinishedIsNew(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "jobs.spool")
	begun, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := begun.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		s, err := spool.Open(path, spool.Options{Logger: quiet})
		if err != nil {
			t.Fatalf("Open: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	other, err := bbolt.Open(path+".other", 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Update(func(tx *bbolt.Tx) error { _, err := tx.CreateBucket([]byte("other")); return err }); err != nil {
		t.Fatal(err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	var corrupt *spool.CorruptError
	if _, err := spool.Open(path+".other", spool.Options{Logger: quiet}); !errors.As(err, &corrupt) {
		t.Errorf("a file of another program: %v, want a CorruptError", err)
	}
}

// A file that is cut off while it is open ends Run with an error, and no process.
func TestAFileCutOffUnderRun(t *testing.T) {
	t.Parallel()
	b := filled(t)
	b.open(spool.Options{}, simplequeue.Options{})
	if err := os.Truncate(b.path, 2*4096); err != nil {
		t.Fatal(err)
	}
	var corrupt *spool.CorruptError
	if err := b.spool.Run(t.Context()); !errors.As(err, &corrupt) {
		t.Errorf("Run: %v, want a CorruptError", err)
	}
	if _, err := b.spool.Waiting(10); !errors.As(err, &corrupt) {
		t.Errorf("Waiting: %v, want a CorruptError", err)
	}
}

// target is the queue of the rig as its spool sees it.
func (b *rig) target() *simplequeue.SpoolTarget { return spool.Target(b.spool) }
