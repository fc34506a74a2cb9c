package backoff

import (
	"cmp"
	"time"
)

// Linear waits Step after the first attempt, twice Step after the second and
// so on, at most Cap.
type Linear struct {
	// Step is what each attempt adds. Default (0): 1 s.
	Step time.Duration
	// Cap is the longest delay. Default (0): 1 h. At most [MaxDelay].
	Cap time.Duration
}

// Delay returns Step times attempt, at most Cap. Negative fields count as 0,
// which stands for the default.
func (l Linear) Delay(attempt int) time.Duration {
	step := orDefault(l.Step, DefaultBase)
	limit := Clamp(orDefault(l.Cap, DefaultCap))
	n := time.Duration(max(attempt, 1))
	if n > limit/step { // n*step could overflow
		return limit
	}
	return n * step
}

// Validate refuses, with a [*FieldError], negative fields, a Cap above
// [MaxDelay] and a Step above Cap.
func (l Linear) Validate() error {
	return checkSpan("Linear", "Step", cmp.Or(l.Step, DefaultBase), cmp.Or(l.Cap, DefaultCap))
}
