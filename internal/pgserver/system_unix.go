//go:build unix

package pgserver

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// canSweep reports whether [tryLock] can tell a living owner from a dead one.
const canSweep = true

// immediateShutdown is the signal for PostgreSQL's immediate shutdown.
var immediateShutdown os.Signal = syscall.SIGQUIT

// account is the user that the server runs as. The zero value is the user of
// this process.
type account struct {
	name     string
	uid, gid uint32 // 0 for the user of this process
}

// serverAccount returns the user to run a server as: PostgreSQL refuses to
// run as root, so root lends it a user that exists on every system.
func serverAccount() (account, error) {
	if os.Geteuid() != 0 {
		return account{name: "of this process"}, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		if a, err := lookupAccount(name); err == nil {
			return a, nil
		}
	}
	return account{}, errors.New("PostgreSQL does not run as root, and there is neither a user postgres nor a user nobody to run it as")
}

// lookupAccount returns the account of a user other than root.
func lookupAccount(name string) (account, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return account{}, err
	}
	// Where nobody is -2, it comes as 4294967294.
	uid, uidErr := strconv.ParseUint(u.Uid, 10, 32)
	gid, gidErr := strconv.ParseUint(u.Gid, 10, 32)
	if err := errors.Join(uidErr, gidErr); err != nil {
		return account{}, err
	}
	if uid == 0 {
		return account{}, fmt.Errorf("the user %s is root", name)
	}
	return account{name: name, uid: uint32(uid), gid: uint32(gid)}, nil
}

// apply makes cmd run as the account, in a process group of its own.
func (a account) apply(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if a.uid != 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: a.uid, Gid: a.gid}
	}
}

// own gives a file or folder to the account.
func (a account) own(path string) error {
	if a.uid == 0 {
		return nil
	}
	return os.Chown(path, int(a.uid), int(a.gid))
}

// reaches reports whether the account can pass through dir and the folders
// above it, and this process can make a folder there.
func (a account) reaches(dir string) bool {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return false
	}
	if a.uid == 0 {
		return true
	}
	for {
		info, err := os.Stat(dir)
		if err != nil || !info.IsDir() || !a.passes(info) {
			return false
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return true
		}
		dir = parent
	}
}

// passes reports whether the account may enter a folder.
func (a account) passes(info os.FileInfo) bool {
	mode := info.Mode().Perm()
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		switch {
		case stat.Uid == a.uid:
			return mode&0o100 != 0
		case stat.Gid == a.gid:
			return mode&0o010 != 0
		}
	}
	return mode&0o001 != 0
}

// tryLock takes the lock of an open file, which ends with the process, and
// reports false when somebody else holds it.
func tryLock(f *os.File) (bool, error) {
	err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return false, nil
	}
	return err == nil, err
}

// worksIn reports whether the process is alive and is the server of dataDir:
// PostgreSQL works in its data folder and is started with the path of it.
func worksIn(pid int, dataDir string) bool {
	if cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); err == nil {
		resolved, err := filepath.EvalSymlinks(dataDir)
		return err == nil && cwd == resolved
	}
	out, err := exec.Command("ps", "-o", "args=", "-p", strconv.Itoa(pid)).Output()
	return err == nil && strings.Contains(string(out), dataDir)
}
