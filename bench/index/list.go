//go:build linux

package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// A list is a file of what is to be listed, in the order of the names, from
// which what is measured reads it.
type list struct {
	names int
	path  string
	spare []npm.Name // of the same making, not listed
}

// makeList writes the first n of the names to a file in dir.
func makeList(dir string, n, spare int) (l list, err error) {
	defer debug.FreeOSMemory()
	defer debug.SetGCPercent(debug.SetGCPercent(20)) // most of what there is stays
	l = list{names: n, path: filepath.Join(dir, fmt.Sprint("list-", n))}
	g := newNamer(n + spare)
	text := make([]byte, 0, 24*(n+spare)) // the names, one after the other
	ends := make([]uint32, 0, n)
	for range n {
		name, err := g.next()
		if err != nil {
			return l, err
		}
		text = append(text, name...)
		ends = append(ends, uint32(len(text)))
	}
	for range spare {
		name, err := g.next()
		if err != nil {
			return l, err
		}
		l.spare = append(l.spare, npm.Name(name))
	}
	g = nil // its memory is wanted
	name := func(i uint32) []byte {
		if i == 0 {
			return text[:ends[0]]
		}
		return text[ends[i-1]:ends[i]]
	}
	order := make([]uint32, n)
	for i := range order {
		order[i] = uint32(i)
	}
	slices.SortFunc(order, func(a, b uint32) int { return bytes.Compare(name(a), name(b)) })
	return l, writeChanges(l.path, func(yield func(index.Change) bool) {
		for _, i := range order {
			if !yield(put(npm.Name(name(i)), uint64(i), 0)) {
				return
			}
		}
	})
}

// put lists a name with the directory that has that number, at that revision.
func put(name npm.Name, number, revision uint64) index.Change {
	digest := sha256.Sum256(binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, number), revision))
	return index.Change{Entry: entryOf(name, digest[:])}
}

// entryOf is the entry with the directory of that digest. Its Tsize, from 1 KiB to
// 64 MiB, follows from the digest.
func entryOf(name npm.Name, digest []byte) index.Entry {
	hash, err := multihash.Encode(digest, multihash.SHA2_256)
	if err != nil {
		panic(err) // only for a hash that it does not know
	}
	tsize := uint64(1<<10|int(digest[0])<<2) << (digest[1] % 16)
	return index.Entry{Name: name, CID: cid.NewCidV1(cid.DagProtobuf, hash), Tsize: tsize, Versions: 1}
}

// writeChanges writes a file for readChanges: of each change
//
//	uvarint len(name)<<1 | put, name; put: digest (32 bytes) of the CID
func writeChanges(path string, changes iter.Seq[index.Change]) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriterSize(f, 1<<20)
	var buf []byte
	for c := range changes {
		size := uint64(len(c.Name)) << 1
		if !c.Delete {
			size |= 1
		}
		buf = append(binary.AppendUvarint(buf[:0], size), c.Name...)
		if !c.Delete {
			digest := c.CID.Hash()
			buf = append(buf, digest[len(digest)-32:]...)
		}
		w.Write(buf) // its error is Flush's too
	}
	return w.Flush()
}

// readChanges yields what writeChanges wrote.
func readChanges(path string) iter.Seq2[index.Change, error] {
	return func(yield func(index.Change, error) bool) {
		f, err := os.Open(path)
		if err != nil {
			yield(index.Change{}, err)
			return
		}
		defer f.Close()
		r := bufio.NewReaderSize(f, 1<<20)
		var buf [256 + 32]byte
		for {
			size, err := binary.ReadUvarint(r)
			if err == io.EOF {
				return
			}
			n := int(size >> 1)
			whole := n
			if size&1 == 1 {
				whole += 32
			}
			if err == nil && n > 256 {
				err = errors.New("a name too long")
			}
			if err == nil {
				_, err = io.ReadFull(r, buf[:whole])
			}
			if err != nil {
				yield(index.Change{}, fmt.Errorf("read %s: %w", path, err))
				return
			}
			c := index.Change{Entry: index.Entry{Name: npm.Name(buf[:n])}, Delete: true}
			if size&1 == 1 {
				c = index.Change{Entry: entryOf(c.Name, buf[n:whole])}
			}
			if !yield(c, nil) {
				return
			}
		}
	}
}

// listEntries are a list's entries.
func listEntries(path string) iter.Seq2[index.Entry, error] {
	return func(yield func(index.Entry, error) bool) {
		for c, err := range readChanges(path) {
			if !yield(c.Entry, err) {
				return
			}
		}
	}
}
