package kubod

import (
	"os/exec"
	"syscall"
)

// endWithParent lets the kernel kill the daemon when this process is gone,
// however it ended.
func endWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
