package pgserver

import "syscall"

// roomFor reports whether a folder is in memory and has that many bytes free.
func roomFor(dir string, bytes uint64) bool {
	const tmpfs = 0x01021994
	var s syscall.Statfs_t
	return syscall.Statfs(dir, &s) == nil && uint64(s.Type) == tmpfs && s.Bavail*uint64(s.Bsize) >= bytes
}
