//go:build !unix

package pgserver

import (
	"os"
	"os/exec"
)

// canSweep is false: without file locks a living owner cannot be told from a
// dead one.
const canSweep = false

// immediateShutdown ends the server; systems without signals know no other.
var immediateShutdown = os.Kill

// account is the user that the server runs as: always that of this process.
type account struct{ name string }

func serverAccount() (account, error)   { return account{name: "of this process"}, nil }
func (account) apply(*exec.Cmd)         {}
func (account) own(string) error        { return nil }
func (account) reaches(dir string) bool { _, err := os.Stat(dir); return err == nil }
func tryLock(*os.File) (bool, error)    { return true, nil }
func worksIn(int, string) bool          { return false }
