package unixfs

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	blocks "github.com/ipfs/go-block-format"
)

// BenchmarkAddFile cuts and hashes one file, from a reader as the follower
// does, and from its bytes.
func BenchmarkAddFile(b *testing.B) {
	for _, size := range []int{10e3, 150e3, 5e6} {
		data := make([]byte, size)
		rand.NewChaCha8([32]byte{}).Read(data)
		sink := func(blocks.Block) error { return nil }
		b.Run(fmt.Sprintf("reader/%d", size), func(b *testing.B) {
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := AddFile(bytes.NewReader(data), sink); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("bytes/%d", size), func(b *testing.B) {
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := AddBytes(data, sink); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
