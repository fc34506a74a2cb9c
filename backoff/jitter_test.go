package backoff

import (
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

// TestFullJitter draws from a fixed source and wants a uniform distribution
// over the whole span, by its mean, its ends and a chi-squared test.
func TestFullJitter(t *testing.T) {
	t.Parallel()
	const (
		draws   = 100_000
		buckets = 20
	)
	e := Exponential{Base: time.Second, rng: rand.New(rand.NewPCG(1, 2))}
	const attempt, limit = 4, 8 * time.Second
	var counts [buckets]int
	var sum time.Duration
	lowest, highest := limit, time.Duration(0)
	for range draws {
		d := e.Delay(attempt)
		if d < 0 || d > limit {
			t.Fatalf("delay %v is outside 0 to %v", d, limit)
		}
		counts[min(int(d*buckets/limit), buckets-1)]++
		sum += d
		lowest, highest = min(lowest, d), max(highest, d)
	}

	// The mean of n uniform draws has a standard error of span/sqrt(12n).
	mean, tolerance := float64(sum)/draws, 5*float64(limit)/math.Sqrt(12*draws)
	if math.Abs(mean-float64(limit)/2) > tolerance {
		t.Errorf("mean delay %v, want %v", time.Duration(mean), limit/2)
	}
	if lowest > limit/1000 || highest < limit-limit/1000 {
		t.Errorf("delays from %v to %v, want them to reach 0 and %v", lowest, highest, limit)
	}
	var chi2 float64
	const expected = float64(draws) / buckets
	for _, n := range counts {
		chi2 += (float64(n) - expected) * (float64(n) - expected) / expected
	}
	if chi2 > 43.8 { // 19 degrees of freedom, p = 0.001
		t.Errorf("chi-squared %.1f: the delays are not uniform: %v", chi2, counts)
	}
}

// TestJitterReachesBothEnds uses a span of three values.
func TestJitterReachesBothEnds(t *testing.T) {
	t.Parallel()
	e := Exponential{Base: 2, Factor: 1, rng: rand.New(rand.NewPCG(3, 4))}
	seen := make(map[time.Duration]bool)
	for range 1000 {
		seen[e.Delay(1)] = true
	}
	if len(seen) != 3 || !seen[0] || !seen[1] || !seen[2] {
		t.Errorf("drawn %v, want 0, 1 and 2 ns", seen)
	}
}

// TestDefaultFromManyGoroutines is for the race detector.
func TestDefaultFromManyGoroutines(t *testing.T) {
	t.Parallel()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for attempt := range 1000 {
				if d := Default.Delay(attempt); d < 0 || d > DefaultCap {
					t.Errorf("delay %v after attempt %d", d, attempt)
				}
			}
		})
	}
	wg.Wait()
}
