package backoff_test

import (
	"fmt"
	"time"

	"github.com/simplequeue/simplequeue/backoff"
)

func ExampleConstant() {
	p := backoff.Constant(30 * time.Second)
	fmt.Println(p.Delay(1), p.Delay(2), p.Delay(100))
	// Output: 30s 30s 30s
}

func ExampleLinear() {
	p := backoff.Linear{Step: 10 * time.Second, Cap: time.Minute}
	fmt.Println(p.Delay(1), p.Delay(2), p.Delay(100))
	// Output: 10s 20s 1m0s
}

// Without NoJitter each delay would be drawn at random from 0 to these.
func ExampleExponential() {
	p := backoff.Exponential{Base: time.Second, Cap: 5 * time.Minute, NoJitter: true}
	for attempt := 1; attempt <= 10; attempt++ {
		fmt.Print(p.Delay(attempt), " ")
	}
	// Output: 1s 2s 4s 8s 16s 32s 1m4s 2m8s 4m16s 5m0s
}

// A table of delays, of which the last one repeats.
func ExampleFunc() {
	delays := []time.Duration{time.Second, time.Minute, time.Hour}
	p := backoff.Func(func(attempt int) time.Duration {
		return delays[min(attempt, len(delays))-1]
	})
	fmt.Println(p.Delay(1), p.Delay(2), p.Delay(3), p.Delay(4))
	// Output: 1s 1m0s 1h0m0s 1h0m0s
}

func ExampleExponential_Validate() {
	fmt.Println(backoff.Exponential{Factor: 0.5}.Validate())
	fmt.Println(backoff.Exponential{Base: time.Hour, Cap: time.Minute}.Validate())
	// Output:
	// backoff: Exponential.Factor is 0.5: set it to a number of 1 or more, or to 0 for the default 2
	// backoff: Exponential.Base is 1h0m0s: it is above Cap (1m0s): lower it, or raise Cap
}

func ExampleClamp() {
	fmt.Println(backoff.Clamp(-time.Hour), backoff.Clamp(time.Hour), backoff.Clamp(365*24*time.Hour))
	// Output: 0s 1h0m0s 720h0m0s
}
