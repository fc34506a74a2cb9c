//go:build unix && !solaris && !illumos && !aix

package spool

import (
	"os"
	"syscall"
)

// unlock gives up the lock of a file that is about to be closed: where bbolt has
// panicked its mapping stays, and would keep the lock.
func unlock(f *os.File) { _ = syscall.Flock(int(f.Fd()), syscall.LOCK_UN) }
