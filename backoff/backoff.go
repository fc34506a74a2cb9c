// Package backoff decides how long a failed job waits before it is tried again.
//
// A [Policy] is a pure function of the number of the attempt that failed. It
// keeps no state, so one value serves all jobs and all goroutines, and an
// attempt that another process made counts like one of this process. [Constant],
// [Linear], [Exponential] and [Func] are the policies; [Default] is what a queue
// without a policy uses.
//
// Whatever a policy returns is brought into the range from 0 to [MaxDelay] by
// [Clamp]: no policy, however it is set, makes a delay that is negative, that
// overflows or that never ends.
//
// The types of github.com/cenkalti/backoff do not fit here and are not used:
// its ExponentialBackOff counts calls of its own and measures time since its
// own start, which is right for a loop in one process, and wrong for a job whose
// attempts are made hours apart by different processes.
package backoff

import (
	"fmt"
	"time"
)

// MaxDelay is the longest delay, 30 days. Longer ones are cut to it.
const MaxDelay = 30 * 24 * time.Hour

// Defaults of the fields of [Exponential] and [Linear].
const (
	DefaultBase   = time.Second // also the default of Linear.Step
	DefaultFactor = 2.0
	DefaultCap    = time.Hour
)

// A Policy tells how long to wait after a failed attempt.
type Policy interface {
	// Delay returns the time to wait after attempt number attempt has failed.
	// The first attempt is number 1, and so counts any smaller number. Delay is
	// called from many goroutines at once.
	Delay(attempt int) time.Duration
}

// Default is the policy of a queue that sets none: [Exponential] as it is,
// which is full jitter below 1 s, 2 s, 4 s and so on up to an hour.
var Default Policy = Exponential{}

// Clamp brings a delay into the range from 0 to [MaxDelay]. The engine applies
// it to everything a policy returns.
func Clamp(d time.Duration) time.Duration {
	return min(max(d, 0), MaxDelay)
}

// Func makes a policy of a function. It is given attempt numbers from 1, and
// what it returns is clamped. A nil Func is [Default].
type Func func(attempt int) time.Duration

// Delay returns f(attempt), clamped.
func (f Func) Delay(attempt int) time.Duration {
	if f == nil {
		return Default.Delay(attempt)
	}
	return Clamp(f(max(attempt, 1)))
}

// Validate refuses a nil function with a [*FieldError].
func (f Func) Validate() error {
	if f == nil {
		return &FieldError{Policy: "Func", Value: "nil", Fix: "pass a function, or leave the policy unset for the default"}
	}
	return nil
}

// Constant waits the same time after every attempt. Constant(0) tries again at
// once.
type Constant time.Duration

// Delay returns c, clamped.
func (c Constant) Delay(int) time.Duration {
	return Clamp(time.Duration(c))
}

// Validate refuses, with a [*FieldError], a delay below 0 or above [MaxDelay].
func (c Constant) Validate() error {
	if d := time.Duration(c); d != Clamp(d) {
		return &FieldError{Policy: "Constant", Value: d, Fix: fmt.Sprintf("set it between 0 and %v", MaxDelay)}
	}
	return nil
}

// A FieldError says that a setting of a policy makes no sense.
type FieldError struct {
	Policy string // the policy's type
	Field  string // the field, empty where the policy has none
	Value  any    // what it is set to
	Fix    string // the way out
}

// Error names the setting, its value and the way out.
func (e *FieldError) Error() string {
	name := e.Policy
	if e.Field != "" {
		name += "." + e.Field
	}
	return fmt.Sprintf("backoff: %s is %v: %s", name, e.Value, e.Fix)
}

// checkSpan validates a first delay and a cap, with their defaults filled in.
func checkSpan(policy, firstField string, first, limit time.Duration) error {
	switch {
	case first < 0:
		return &FieldError{policy, firstField, first, fmt.Sprintf("set it above 0, or to 0 for the default %v", DefaultBase)}
	case limit < 0 || limit > MaxDelay:
		return &FieldError{policy, "Cap", limit, fmt.Sprintf("set it between 0 and %v; 0 means the default %v", MaxDelay, DefaultCap)}
	case first > limit:
		return &FieldError{policy, firstField, first, fmt.Sprintf("it is above Cap (%v): lower it, or raise Cap", limit)}
	}
	return nil
}

// orDefault returns d, or the default where d is 0 or makes no sense.
func orDefault(d, otherwise time.Duration) time.Duration {
	if d <= 0 {
		return otherwise
	}
	return d
}
