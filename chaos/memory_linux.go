package main

import (
	"fmt"
	"os"
	"syscall"
)

// limitMemory lets the process have so many bytes of address space more than it
// has now. 0 sets no limit.
func limitMemory(spare int) error {
	if spare == 0 {
		return nil
	}
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return err
	}
	var pages uint64
	if _, err := fmt.Sscan(string(text), &pages); err != nil {
		return err
	}
	limit := pages*uint64(os.Getpagesize()) + uint64(spare)
	return syscall.Setrlimit(syscall.RLIMIT_AS, &syscall.Rlimit{Cur: limit, Max: limit})
}
