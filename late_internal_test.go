package simplequeue

import (
	"slices"
	"testing"
	"time"
)

// settled is how many outcomes have been written.
func (f *fakeSettler) settled() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.written)
}

// waits is a statement that waits until its time is over, while others go on.
func (f *fakeSettler) waits() error {
	f.mu.Unlock()
	time.Sleep(settleLimit)
	f.mu.Lock()
	return refused("57014")
}

// An outcome whose row somebody has locked holds up the others for one timeout
// only, those that come later not at all, and is written when the lock is gone.
func TestLockedRowHoldsUpNoOtherOutcome(t *testing.T) {
	f := &fakeSettler{locked: map[int64]bool{3: true, 60: true}}
	f.refuse = func(s tried) error {
		if slices.ContainsFunc(s.ids, func(id int64) bool { return f.locked[id] }) {
			return f.waits()
		}
		return nil
	}
	completing(t, 100, f, func(t *testing.T, c *completer) {
		time.Sleep(settleLimit + time.Second)
		if n := f.settled(); n != 98 {
			t.Errorf("%d outcomes are written beside two locked ones, want 98", n)
		}
		time.Sleep(time.Hour)
		if n := f.count(); n > 5 {
			t.Errorf("%d transactions in an hour, want none for what is locked", n)
		}
		f.mu.Lock()
		f.locked = nil
		f.mu.Unlock()
		time.Sleep(time.Second)
		f.check(t, c, 100)
	})
}

// An outcome that cannot be written although nobody has locked its row is found
// by halving the batch and tried again alone, now and then. So is one at which the
// server fails.
func TestUnwritableOutcomeIsTriedAgainAlone(t *testing.T) {
	for name, fails := range map[string]func(f *fakeSettler) error{
		"waits":    (*fakeSettler).waits,
		"internal": func(*fakeSettler) error { return refused("XX001") },
	} {
		t.Run(name, func(t *testing.T) {
			bad := true
			f := &fakeSettler{}
			f.refuse = func(s tried) error {
				if bad && slices.Contains(s.ids, 17) {
					return fails(f)
				}
				return nil
			}
			completing(t, 100, f, func(t *testing.T, c *completer) {
				time.Sleep(8 * (settleLimit + time.Second))
				if n := f.settled(); n != 99 {
					t.Errorf("%d outcomes are written beside the bad one, want 99", n)
				}
				before := f.count()
				time.Sleep(time.Hour)
				if n := f.count() - before; n < 60 || n > 200 {
					t.Errorf("%d tries in an hour, want about two a minute", n)
				}
				f.mu.Lock()
				bad = false
				f.mu.Unlock()
				time.Sleep(time.Minute)
				f.check(t, c, 100)
			})
		})
	}
}

// When no more outcomes come, the late ones are still written.
func TestStopWaitsForLateOutcomes(t *testing.T) {
	f := &fakeSettler{locked: map[int64]bool{2: true}}
	f.refuse = func(s tried) error {
		if slices.ContainsFunc(s.ids, func(id int64) bool { return f.locked[id] }) {
			return f.waits()
		}
		return nil
	}
	completing(t, 3, f, func(t *testing.T, c *completer) {
		close(c.finish)
		time.Sleep(time.Minute)
		f.mu.Lock()
		f.locked = nil
		f.mu.Unlock()
		time.Sleep(time.Second)
		f.check(t, c, 3)
	})
}
