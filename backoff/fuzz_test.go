package backoff

import (
	"math"
	"testing"
	"time"
)

// checkDelay wants what holds for every policy, whatever its fields.
func checkDelay(t *testing.T, p Policy, attempt int) time.Duration {
	t.Helper()
	d := p.Delay(attempt)
	if d != Clamp(d) {
		t.Fatalf("%+v: delay %d after attempt %d", p, d, attempt)
	}
	// A time of the database's must be able to hold the sum.
	if at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).Add(d); at.Year() != 2026 {
		t.Fatalf("%+v: runs in %d after attempt %d", p, at.Year(), attempt)
	}
	return d
}

func FuzzExponential(f *testing.F) {
	for _, attempt := range []int{math.MinInt, -1, 0, 1, 2, 33, 64, 1024, 1 << 20, math.MaxInt32} {
		for _, factor := range []float64{0, 1, 1.5, 2, math.MaxFloat64, math.SmallestNonzeroFloat64, -1, math.NaN(), math.Inf(1), math.Inf(-1)} {
			f.Add(int64(time.Second), factor, int64(time.Hour), attempt)
		}
		f.Add(int64(math.MaxInt64), 2.0, int64(math.MaxInt64), attempt)
		f.Add(int64(math.MinInt64), 2.0, int64(math.MinInt64), attempt)
	}
	f.Fuzz(func(t *testing.T, base int64, factor float64, limit int64, attempt int) {
		e := Exponential{Base: time.Duration(base), Factor: factor, Cap: time.Duration(limit)}
		checkDelay(t, e, attempt)
		e.NoJitter = true
		d := checkDelay(t, e, attempt)
		if d == 0 {
			t.Fatalf("%+v: no delay at all after attempt %d", e, attempt)
		}
		if limit > 0 && d > e.Cap {
			t.Fatalf("%+v: delay %v after attempt %d is above the cap", e, d, attempt)
		}
		if attempt < math.MaxInt && e.Delay(attempt+1) < d {
			t.Fatalf("%+v: the delay shrinks after attempt %d", e, attempt)
		}
	})
}

func FuzzLinear(f *testing.F) {
	for _, attempt := range []int{math.MinInt, -1, 0, 1, 2, 1 << 20, math.MaxInt32} {
		f.Add(int64(time.Second), int64(time.Hour), attempt)
		f.Add(int64(math.MaxInt64), int64(math.MaxInt64), attempt)
		f.Add(int64(math.MinInt64), int64(math.MinInt64), attempt)
	}
	f.Fuzz(func(t *testing.T, step, limit int64, attempt int) {
		l := Linear{Step: time.Duration(step), Cap: time.Duration(limit)}
		d := checkDelay(t, l, attempt)
		if d == 0 {
			t.Fatalf("%+v: no delay at all after attempt %d", l, attempt)
		}
		if limit > 0 && d > l.Cap {
			t.Fatalf("%+v: delay %v after attempt %d is above the cap", l, d, attempt)
		}
		if attempt < math.MaxInt && l.Delay(attempt+1) < d {
			t.Fatalf("%+v: the delay shrinks after attempt %d", l, attempt)
		}
	})
}

func FuzzFuncAndConstant(f *testing.F) {
	for _, d := range []int64{math.MinInt64, -1, 0, 1, int64(MaxDelay), math.MaxInt64} {
		f.Add(d, 1)
		f.Add(d, math.MaxInt32)
	}
	f.Fuzz(func(t *testing.T, d int64, attempt int) {
		checkDelay(t, Constant(d), attempt)
		checkDelay(t, Func(func(n int) time.Duration {
			if n < 1 {
				t.Fatalf("called with attempt %d", n)
			}
			return time.Duration(d)
		}), attempt)
	})
}
