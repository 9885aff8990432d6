//go:build !unix

package state

import "os"

// holder cannot tell: there is no fcntl(2).
func holder(*os.File) (Process, bool) { return Process{}, false }
