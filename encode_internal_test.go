package simplequeue

import (
	"strings"
	"testing"
)

// BenchmarkEncodePayload: what an insert pays for the payload of one job.
func BenchmarkEncodePayload(b *testing.B) {
	type mail struct {
		To, Subject string
		Account     int
		Rate        float64
		Tags        []string
	}
	numbers := make([]float64, 1000)
	for i := range numbers {
		numbers[i] = float64(i) * 1.5
	}
	exponents := make([]float64, 1000)
	for i := range exponents {
		exponents[i] = float64(i+1) * 1e25
	}
	for _, c := range []struct {
		name    string
		payload any
	}{
		{"small", mail{To: "ada@example.org", Subject: "Welcome", Account: 7_000_123, Rate: 0.25, Tags: []string{"a", "b"}}},
		{"text", strings.Repeat("the quick brown fox ", 500)},
		{"numbers", numbers},
		{"exponents", exponents},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			r := ready{job: &NewJob{Payload: c.payload}}
			for b.Loop() {
				r.size = 0
				if err := r.encodePayload(1<<20, 0); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
