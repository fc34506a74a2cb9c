package backoff

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"
)

const day = 24 * time.Hour

func TestDelay(t *testing.T) {
	t.Parallel()
	exact := func(e Exponential) Policy { e.NoJitter = true; return e }
	tests := []struct {
		name   string
		policy Policy
		want   map[int]time.Duration // by attempt
	}{
		{"constant", Constant(3 * time.Second), map[int]time.Duration{-1: 3 * time.Second, 1: 3 * time.Second, math.MaxInt32: 3 * time.Second}},
		{"constant zero", Constant(0), map[int]time.Duration{1: 0}},
		{"constant negative", Constant(-1), map[int]time.Duration{1: 0}},
		{"constant far", Constant(math.MaxInt64), map[int]time.Duration{1: MaxDelay}},

		{"linear default", Linear{}, map[int]time.Duration{0: time.Second, 1: time.Second, 2: 2 * time.Second, 3600: time.Hour, 3601: time.Hour, math.MaxInt32: time.Hour}},
		{"linear", Linear{Step: time.Minute, Cap: 150 * time.Second}, map[int]time.Duration{math.MinInt: time.Minute, 2: 2 * time.Minute, 3: 150 * time.Second, math.MaxInt: 150 * time.Second}},
		{"linear above cap", Linear{Step: time.Hour, Cap: time.Minute}, map[int]time.Duration{1: time.Minute}},
		{"linear negative", Linear{Step: -1, Cap: -1}, map[int]time.Duration{1: time.Second, math.MaxInt: time.Hour}},
		{"linear far", Linear{Step: math.MaxInt64, Cap: math.MaxInt64}, map[int]time.Duration{1: MaxDelay, math.MaxInt: MaxDelay}},

		{"exponential default", exact(Exponential{}), map[int]time.Duration{
			math.MinInt: time.Second, 0: time.Second, 1: time.Second, 2: 2 * time.Second, 3: 4 * time.Second, 12: 2048 * time.Second,
			13: time.Hour, 64: time.Hour, 1025: time.Hour, math.MaxInt32: time.Hour, math.MaxInt: time.Hour,
		}},
		{"exponential", exact(Exponential{Base: 10 * time.Millisecond, Factor: 1.5, Cap: time.Second}), map[int]time.Duration{
			1: 10 * time.Millisecond, 2: 15 * time.Millisecond, 3: 22500 * time.Microsecond, 100: time.Second,
		}},
		{"exponential factor 1", exact(Exponential{Factor: 1}), map[int]time.Duration{1: time.Second, math.MaxInt32: time.Second}},
		{"exponential above cap", exact(Exponential{Base: day, Cap: time.Hour}), map[int]time.Duration{1: time.Hour}},
		{"exponential negative", exact(Exponential{Base: -1, Cap: -1, Factor: -2}), map[int]time.Duration{1: time.Second, 2: 2 * time.Second, math.MaxInt32: time.Hour}},
		{"exponential below 1", exact(Exponential{Factor: 0.5}), map[int]time.Duration{1: time.Second, 2: 2 * time.Second}},
		{"exponential NaN", exact(Exponential{Factor: math.NaN()}), map[int]time.Duration{1: time.Second, 2: 2 * time.Second}},
		{"exponential Inf", exact(Exponential{Factor: math.Inf(1)}), map[int]time.Duration{1: time.Second, 2: time.Hour}},
		{"exponential -Inf", exact(Exponential{Factor: math.Inf(-1)}), map[int]time.Duration{1: time.Second, 2: 2 * time.Second}},
		{"exponential far", exact(Exponential{Base: math.MaxInt64, Factor: math.MaxFloat64, Cap: math.MaxInt64}), map[int]time.Duration{1: MaxDelay, 2: MaxDelay, math.MaxInt32: MaxDelay}},

		{"func", Func(func(n int) time.Duration { return time.Duration(n) * time.Minute }), map[int]time.Duration{-5: time.Minute, 1: time.Minute, 7: 7 * time.Minute}},
		{"func in the past", Func(func(int) time.Duration { return math.MinInt64 }), map[int]time.Duration{1: 0}},
		{"func far away", Func(func(int) time.Duration { return math.MaxInt64 }), map[int]time.Duration{1: MaxDelay}},
	}
	for _, tt := range tests {
		for attempt, want := range tt.want {
			if got := tt.policy.Delay(attempt); got != want {
				t.Errorf("%s: delay after attempt %d is %v, want %v", tt.name, attempt, got, want)
			}
		}
	}
}

func TestNilFuncIsDefault(t *testing.T) {
	t.Parallel()
	if got := Func(nil).Delay(1); got < 0 || got > time.Second {
		t.Errorf("delay %v, want one of the default policy", got)
	}
}

func TestClamp(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]time.Duration{
		math.MinInt64: 0, -1: 0, 0: 0, 1: 1, MaxDelay: MaxDelay, MaxDelay + 1: MaxDelay, math.MaxInt64: MaxDelay,
	} {
		if got := Clamp(d); got != want {
			t.Errorf("Clamp(%d) = %v, want %v", d, got, want)
		}
	}
}

func TestValidate(t *testing.T) {
	t.Parallel()
	tests := []struct {
		policy interface{ Validate() error }
		want   string // the setting and its value, empty for a good policy
	}{
		{Constant(0), ""},
		{Constant(MaxDelay), ""},
		{Constant(-time.Second), "Constant is -1s"},
		{Constant(MaxDelay + 1), "Constant is 720h0m0.000000001s"},
		{Linear{}, ""},
		{Linear{Step: time.Hour}, ""},
		{Linear{Step: -1}, "Linear.Step is -1ns"},
		{Linear{Cap: -1}, "Linear.Cap is -1ns"},
		{Linear{Cap: MaxDelay + 1}, "Linear.Cap is 720h0m0.000000001s"},
		{Linear{Step: 2 * time.Hour}, "Linear.Step is 2h0m0s"},
		{Exponential{}, ""},
		{Exponential{Base: time.Millisecond, Factor: 1, Cap: MaxDelay, NoJitter: true}, ""},
		{Exponential{Base: -time.Minute}, "Exponential.Base is -1m0s"},
		{Exponential{Base: time.Minute, Cap: time.Second}, "Exponential.Base is 1m0s"},
		{Exponential{Cap: -time.Minute}, "Exponential.Cap is -1m0s"},
		{Exponential{Cap: 31 * day}, "Exponential.Cap is 744h0m0s"},
		{Exponential{Factor: 0.5}, "Exponential.Factor is 0.5"},
		{Exponential{Factor: -2}, "Exponential.Factor is -2"},
		{Exponential{Factor: math.NaN()}, "Exponential.Factor is NaN"},
		{Exponential{Factor: math.Inf(1)}, "Exponential.Factor is +Inf"},
		{Func(func(int) time.Duration { return 0 }), ""},
		{Func(nil), "Func is nil"},
	}
	for _, tt := range tests {
		err := tt.policy.Validate()
		if tt.want == "" {
			if err != nil {
				t.Errorf("%+v: %v", tt.policy, err)
			}
			continue
		}
		var wrong *FieldError
		if !errors.As(err, &wrong) || wrong.Fix == "" || !strings.HasPrefix(err.Error(), "backoff: "+tt.want+": ") {
			t.Errorf("%T: got %v, want %s and the way out", tt.policy, err, tt.want)
		}
	}
}
