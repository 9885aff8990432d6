package ipfs

import (
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	blocks "github.com/ipfs/go-block-format"
)

// benchBlocks are n blocks of one size, none of them alike.
func benchBlocks(b *testing.B, n, size int) []blocks.Block {
	b.Helper()
	data := make([]byte, n*size)
	rand.NewChaCha8([32]byte{byte(n), byte(size), byte(size >> 8)}).Read(data)
	blks := make([]blocks.Block, n)
	for i := range blks {
		blks[i] = leaf(data[i*size : (i+1)*size])
	}
	return blks
}

// diskStore is a store on the disk.
func diskStore(b *testing.B) *store {
	b.Helper()
	dir := b.TempDir()
	lock, err := pebble.LockDirectory(dir, vfs.Default)
	if err != nil {
		b.Fatal(err)
	}
	s, err := openStore(vfs.Default, dir, lock, 0, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close(); lock.Close() })
	return s
}

// BenchmarkPutMany stores a batch of 256 blocks, which the store does not hold
// yet, with a Sync.
func BenchmarkPutMany(b *testing.B) {
	for _, size := range []int{1 << 10, 10 << 10, 100 << 10} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			blks := benchBlocks(b, 256, size)
			s := diskStore(b)
			b.SetBytes(int64(256 * size))
			b.ReportAllocs()
			for b.Loop() {
				if err := s.PutMany(b.Context(), blks); err != nil {
					b.Fatal(err)
				}
				if err := s.Sync(); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				for _, blk := range blks {
					for _, space := range []byte{blockSpace, placeSpace} {
						if err := s.db.Delete(key(space, blk.Cid()), pebble.NoSync); err != nil {
							b.Fatal(err)
						}
					}
				}
				b.StartTimer()
			}
		})
	}
}

// BenchmarkHas asks for blocks that are not there, as every Put does.
func BenchmarkHas(b *testing.B) {
	s := diskStore(b)
	if err := s.PutMany(b.Context(), benchBlocks(b, 4096, 1<<10)); err != nil {
		b.Fatal(err)
	}
	absent := benchBlocks(b, 1024, 100)
	i := 0
	for b.Loop() {
		if held, err := s.Has(b.Context(), absent[i%len(absent)].Cid()); held || err != nil {
			b.Fatal(held, err)
		}
		i++
	}
}

// BenchmarkCAR writes a CAR of 1,000 blocks and reads it back, hashing.
func BenchmarkCAR(b *testing.B) {
	blks := benchBlocks(b, 1000, 50<<10)
	b.Run("write", func(b *testing.B) {
		b.SetBytes(1000 * 50 << 10)
		for b.Loop() {
			if _, err := io.Copy(io.Discard, newCAR(carHeader, blks)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("read", func(b *testing.B) {
		b.SetBytes(1000 * 50 << 10)
		for b.Loop() {
			n := 0
			err := readCAR(newCAR(carHeader, blks), func(blocks.Block) error {
				n++
				return nil
			})
			if err != nil || n != len(blks) {
				b.Fatal(n, err)
			}
		}
	})
}
