package backoff

import (
	"cmp"
	"math"
	"math/rand/v2"
	"time"
)

// Exponential waits Base after the first attempt, and Factor times as long
// after each further one, at most Cap.
//
// Unless NoJitter is set that is only the upper end: the delay is drawn at
// random, uniformly from 0 to there, both included. This is the "full jitter"
// of https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/.
// It spreads jobs that failed together over the whole span, so that they do not
// meet again, and halves the mean delay.
//
// The zero value is ready to use and is the [Default].
type Exponential struct {
	// Base is the delay after the first attempt. Default (0): 1 s.
	Base time.Duration
	// Factor is what each further attempt multiplies it by, 1 or more.
	// Default (0): 2.
	Factor float64
	// Cap is the longest delay. Default (0): 1 h. At most [MaxDelay].
	Cap time.Duration
	// NoJitter makes the delay exact. Jobs that fail together then come back
	// together.
	NoJitter bool

	// rng is set by tests, which use it from one goroutine. Otherwise it is nil
	// and the generator of the runtime is used, which needs no lock.
	rng *rand.Rand
}

// Delay returns the delay after attempt. Fields that [Exponential.Validate]
// refuses do no harm: a negative duration and a Factor below 1 or NaN count as
// 0, which stands for the default.
func (e Exponential) Delay(attempt int) time.Duration {
	limit := e.limit(attempt)
	if e.NoJitter {
		return limit
	}
	// limit is at most MaxDelay, so there is room for the 1.
	if e.rng != nil {
		return time.Duration(e.rng.Int64N(int64(limit) + 1))
	}
	return time.Duration(rand.Int64N(int64(limit) + 1))
}

// limit is the delay without jitter.
func (e Exponential) limit(attempt int) time.Duration {
	base := orDefault(e.Base, DefaultBase)
	limit := Clamp(orDefault(e.Cap, DefaultCap))
	factor := e.Factor
	if !(factor >= 1) { // also true of NaN
		factor = DefaultFactor
	}
	d := float64(base) * math.Pow(factor, float64(max(attempt, 1)-1))
	if d >= float64(limit) { // also true of +Inf, which has no place in an int64
		return limit
	}
	return time.Duration(d)
}

// Validate refuses, with a [*FieldError], negative durations, a Factor that is
// below 1 or not a finite number, a Cap above [MaxDelay] and a Base above Cap.
func (e Exponential) Validate() error {
	if f := cmp.Or(e.Factor, DefaultFactor); !(f >= 1) || math.IsInf(f, 0) {
		return &FieldError{"Exponential", "Factor", f, "set it to a number of 1 or more, or to 0 for the default 2"}
	}
	return checkSpan("Exponential", "Base", cmp.Or(e.Base, DefaultBase), cmp.Or(e.Cap, DefaultCap))
}
