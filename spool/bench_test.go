package spool_test

import (
	"context"
	"errors"
	"testing"

	"github.com/simplequeue/simplequeue"
	"github.com/simplequeue/simplequeue/spool"
)

// BenchmarkSpooledInsert is an insert into the file, synced: by one goroutine,
// and by 64.
func BenchmarkSpooledInsert(b *testing.B) {
	for name, goroutines := range map[string]int{"one": 0, "64": 64} {
		b.Run(name, func(b *testing.B) {
			r := newRig(b, spool.Options{MaxJobs: 1 << 30, MaxBytes: 1 << 40}, simplequeue.Options{})
			r.proxy.Cut()
			r.put(job("a", 0), true)
			b.ResetTimer()
			insert := func() {
				if _, err := r.queue.Insert(context.Background(), job("a", 1)); err != nil {
					b.Error(err)
				}
			}
			if goroutines == 0 {
				for range b.N {
					insert()
				}
			} else {
				b.SetParallelism(goroutines / 2)
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						insert()
					}
				})
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "jobs/s")
		})
	}
}

// BenchmarkReplay is the way from the file into the database.
func BenchmarkReplay(b *testing.B) {
	r := newRig(b, spool.Options{MaxJobs: 1 << 30, MaxBytes: 1 << 40}, simplequeue.Options{})
	r.proxy.Cut()
	r.put(job("a", 0), true)
	b.SetParallelism(64)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := r.queue.Insert(context.Background(), job("a", 1)); err != nil {
				b.Error(err)
			}
		}
	})
	r.proxy.Heal()
	b.ResetTimer()
	r.run()
	r.drained()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "jobs/s")
	b.StopTimer()
	if n := len(r.numbers("a")); n != b.N+1 {
		b.Error(errors.New("jobs were lost"), n, b.N)
	}
}
