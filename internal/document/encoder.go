package document

import (
	"crypto/sha256"
	"sync"
)

// Encoder is Encode with a memory: a section that it compressed lately is not
// compressed again. A section is known by its SHA-256 and what is remembered is
// what this encoder made of it, so that a document's bytes never depend on what
// came before it. Methods may run concurrently.
type Encoder struct {
	half int // bytes of what young holds at the most

	// Sections are remembered in young, which becomes old when it is full; what
	// is found in old is young again. So those asked for least lately go first.
	mu         sync.Mutex // over the rest
	young, old map[[sha256.Size]byte][]byte
	size       int // of young
}

// NewEncoder makes an encoder that remembers at most so many bytes of compressed
// sections. A document of one section is not remembered.
func NewEncoder(memory int) *Encoder { return &Encoder{half: memory / 2} }

// Encode gives what the function Encode does. The segments may share memory with
// those of other documents, and must not be changed.
func (e *Encoder) Encode(raw []byte) Document { return encode(raw, e.compressed) }

// compressed is s compressed, and remembered.
func (e *Encoder) compressed(s []byte) []byte {
	key := sha256.Sum256(s)
	e.mu.Lock()
	z, ok := e.young[key]
	if !ok {
		if z, ok = e.old[key]; ok {
			e.keep(key, z)
		}
	}
	e.mu.Unlock()
	if ok {
		return z
	}
	z = compressed(s)
	e.mu.Lock()
	defer e.mu.Unlock()
	if known, ok := e.young[key]; ok {
		return known // another came before
	}
	e.keep(key, z)
	return z
}

// keep takes z into young, which does not have it. e.mu is held.
func (e *Encoder) keep(key [sha256.Size]byte, z []byte) {
	const row = 2 * sha256.Size // a key, a slice and their room in the map
	if e.young == nil || e.size+len(z)+row > e.half {
		e.old, e.young, e.size = e.young, map[[sha256.Size]byte][]byte{}, 0
	}
	if len(z)+row <= e.half {
		e.young[key] = z
		e.size += len(z) + row
	}
}
