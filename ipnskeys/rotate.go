package ipnskeys

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"filippo.io/age"
	"github.com/ipfs/boxo/ipns"

	"github.com/registry-mirror/registry-mirror/internal/ipnsrecord"
)

const rotatePrefix = ".rotate-" // folders of a Rotate that did not end

// Rotation says how a key is followed by its successor.
type Rotation struct {
	// File holds the successor's private key, as ReadPrivate takes it; "" for the
	// one that lies beside the key.
	File string
	// Public and Signer are of a successor whose private key stays elsewhere, as in
	// Add; nil for one that is in a file.
	Public ed25519.PublicKey
	Signer *Elsewhere
	// Next is the public key of who will follow the successor; nil mints one.
	Next ed25519.PublicKey
	// Until is when the records of the key that is followed are renewed for the last
	// time; later where a key before it is kept up for longer, for that one's readers
	// go from name to name.
	Until time.Time
	// Seal is of the successor, and of who follows it; the zero Seal is the
	// identity beside the keys.
	Seal Seal
	// Identities open the successor, beside the identity beside the keys.
	Identities []age.Identity
}

// Rotate puts the successor that was promised in the place of a key, which stays
// as it is among Key.Former. begin is told the successor's name once that is
// known to be right, and before anything is written: it makes its journal.
//
// Law: the successor was opened and is the one that was promised, then begin has
// returned, then the new files are durable, and were opened again where that can
// be done, under names that nothing reads; then public.json, which names them,
// takes its place by one rename. From there the successor is the key. Last, the
// file that it lay sealed in as the successor goes. A crash leaves the old key or the new
// one, each whole; before the rename the same Rotate does it anew.
//
// Errors: ErrNoKey, ErrNoSuccessor, ErrSuccessor, ErrNext, ErrSealed, ErrCorrupt,
// those of ReadPrivate, of Add where the successor is elsewhere, and begin's.
func Rotate(ctx context.Context, dir, name string, r Rotation, begin func(ipns.Name) error) (Key, error) {
	if err := ctx.Err(); err != nil {
		return Key{}, err
	}
	key, err := rotate(dir, name, r, begin, func(string) error { return nil })
	if err != nil {
		return Key{}, fmt.Errorf("rotate key %q: %w", name, err)
	}
	return key, nil
}

func rotate(dir, name string, r Rotation, begin func(ipns.Name) error, fault func(step string) error) (Key, error) {
	key, p, err := find(dir, name)
	if err != nil {
		return Key{}, err
	}
	successor, private, err := r.successor(key)
	if err != nil {
		return Key{}, err
	}
	if promised, err := ipnsrecord.Commitment(successor); err != nil {
		return Key{}, err
	} else if promised != key.Next {
		return Key{}, fmt.Errorf("%s: %w", successor, ErrSuccessor)
	}
	next, sealedNext, err := r.next(append(key.Names(), successor))
	if err != nil {
		return Key{}, err
	}
	own := len(r.Seal.Recipients) == 0
	seal, err := r.Seal.resolve(dir)
	if err != nil {
		return Key{}, err
	}
	if err := begin(successor); err != nil {
		return Key{}, err
	}
	if err := fault("begun"); err != nil {
		return Key{}, err
	}

	until := r.Until
	for _, f := range p.Former { // whose readers come by this name
		if f.Until.After(until) {
			until = f.Until
		}
	}
	p.Former = append(p.Former, formerDescription{key.IPNSName, key.Created, until.UTC().Truncate(time.Second), p.Signer})
	p.Format, p.IPNSName, p.Next, p.Signer, p.Identity = rotatedFormat, successor, next, r.Signer, own
	p.Created = time.Now().UTC().Truncate(time.Second)
	home := filepath.Dir(key.SuccessorFile)
	tmp, err := os.MkdirTemp(home, rotatePrefix) // 0700
	if err != nil {
		return Key{}, err
	}
	defer os.RemoveAll(tmp)
	var files []string // in the order in which they take their places
	for _, one := range []struct {
		file    string
		private ed25519.PrivateKey
	}{{numbered(keyFile, p.number()), private}, {numbered(successorFile, p.number()), sealedNext}} {
		if one.private == nil {
			continue
		}
		if err := writeSealed(filepath.Join(tmp, one.file), one.private, seal); err != nil {
			return Key{}, err
		}
		files = append(files, one.file)
	}
	if err := p.write(filepath.Join(tmp, publicFile)); err != nil {
		return Key{}, err
	}
	if err := syncDir(tmp); err != nil {
		return Key{}, err
	}
	if err := fault("sealed"); err != nil {
		return Key{}, err
	}
	for _, file := range append(files, publicFile) {
		if err := os.Rename(filepath.Join(tmp, file), filepath.Join(home, file)); err != nil {
			return Key{}, err
		}
		if err := syncDir(home); err != nil {
			return Key{}, err
		}
		if err := fault(file + " in place"); err != nil {
			return Key{}, err
		}
	}
	// It is done, whatever becomes of this: what is left is a second seal of the key.
	if os.Remove(key.SuccessorFile) == nil {
		syncDir(home)
	}
	return Find(dir, name)
}

// successor gives the successor's name, and its private key where that comes here.
func (r Rotation) successor(key Key) (ipns.Name, ed25519.PrivateKey, error) {
	switch {
	case r.Signer != nil:
		if err := r.Signer.try(r.Public); err != nil {
			return ipns.Name{}, nil, err
		}
		name, err := NameOf(r.Public)
		return name, nil, err
	case r.File == "":
		private, err := key.openSuccessor(r.Identities)
		if errors.Is(err, os.ErrNotExist) {
			return ipns.Name{}, nil, fmt.Errorf("%s: %w", key.SuccessorFile, ErrNoSuccessor)
		}
		if err != nil {
			return ipns.Name{}, nil, err
		}
		name, err := NameOf(private.Public().(ed25519.PublicKey))
		return name, private, err
	}
	own, err := ReadIdentities(filepath.Join(key.Dir, identityFile))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return ipns.Name{}, nil, err
	}
	private, err := ReadPrivate(r.File, append(own, r.Identities...)...)
	if err != nil {
		return ipns.Name{}, nil, err
	}
	return private.name, private.key, nil
}

// next commits to who follows the successor, and gives its private key where it was
// minted. known are the names that cannot follow.
func (r Rotation) next(known []ipns.Name) (string, ed25519.PrivateKey, error) {
	public, private := r.Next, ed25519.PrivateKey(nil)
	if public == nil {
		var err error
		if public, private, err = ed25519.GenerateKey(rand.Reader); err != nil {
			return "", nil, err
		}
	}
	name, err := NameOf(public)
	if err != nil {
		return "", nil, err
	}
	for _, k := range known {
		if k.Equal(name) {
			return "", nil, fmt.Errorf("%s: %w", name, ErrNext)
		}
	}
	next, err := ipnsrecord.Commitment(name)
	return next, private, err
}
