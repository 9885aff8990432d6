//go:build linux

package main

import (
	"bytes"
	"fmt"
	"os"
	"runtime/debug"
	"time"
)

// peak samples this process's memory until stop, which returns the most, in
// bytes. The corpus, which is a file in memory, does not count.
func peak() (stop func() int64) {
	debug.FreeOSMemory() // what the path before has left
	end, most := make(chan struct{}), make(chan int64)
	go func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		high := anonymous()
		for {
			select {
			case <-tick.C:
				high = max(high, anonymous())
			case <-end:
				most <- high
				return
			}
		}
	}()
	return func() int64 {
		close(end)
		return <-most
	}
}

// anonymous is the resident memory of this process that is no file's, in bytes;
// 0 where the system does not tell.
func anonymous() int64 {
	raw, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	_, rest, _ := bytes.Cut(raw, []byte("RssAnon:"))
	var kb int64
	if _, err := fmt.Sscan(string(rest), &kb); err != nil {
		return 0
	}
	return kb << 10
}
