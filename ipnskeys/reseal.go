package ipnskeys

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"filippo.io/age"

	"github.com/registry-mirror/registry-mirror/internal/ipnsrecord"
)

const resealPrefix = ".reseal-" // folders of a Reseal that did not end

// Resealed says what Reseal sealed anew.
type Resealed struct {
	Key
	Successor bool // the successor's file too
	// Tried says that the new seal was opened again, by what it was sealed with or
	// by one of the identities given.
	Tried bool
	// Left says that there is a successor's file, or a former key's, which nothing
	// given opens, and that stayed as it was.
	Left bool
}

// Reseal seals a key, and its successor and the keys before it where those are
// here and open, to another seal. identities, and the identity beside the keys, open what is
// there; one that opens the new seal too shows that it can be opened. Copies and backups made before stay sealed as they were. Errors:
// Load's; after one, what was sealed anew stays so, and a further Reseal ends it.
//
// Law: all new seals are durable, and were opened again where that can be done,
// before the first takes its place; each takes it by one rename, the
// successor's first, then the former keys', then public.json, then the key's. A crash leaves of each
// file the old one or the new one, never none; and Load tries the identity
// beside the keys whatever public.json says.
func Reseal(ctx context.Context, dir, name string, to Seal, identities ...age.Identity) (Resealed, error) {
	if err := ctx.Err(); err != nil {
		return Resealed{}, err
	}
	r, err := reseal(dir, name, to, identities, func(string) error { return nil })
	if err != nil {
		return Resealed{}, fmt.Errorf("reseal key %q: %w", name, err)
	}
	return r, nil
}

func reseal(dir, name string, to Seal, identities []age.Identity, fault func(step string) error) (Resealed, error) {
	key, p, err := find(dir, name)
	if err != nil {
		return Resealed{}, err
	}
	home := filepath.Dir(key.SuccessorFile)
	own := len(to.Recipients) == 0
	var r Resealed
	sealed := map[string]ed25519.PrivateKey{} // by the file's name
	if key.Signer == SignerFile {
		if sealed[filepath.Base(key.File)], err = key.open(identities); err != nil {
			return Resealed{}, err
		}
	}
	maybe := func(path string, private ed25519.PrivateKey, err error) error {
		switch {
		case err == nil:
			sealed[filepath.Base(path)] = private
		case errors.Is(err, ErrSealed):
			r.Left = true
		case !errors.Is(err, os.ErrNotExist):
			return err
		}
		return nil
	}
	successor, err := key.openSuccessor(identities)
	r.Successor = err == nil
	if err := maybe(key.SuccessorFile, successor, err); err != nil {
		return Resealed{}, err
	}
	for _, f := range key.Former {
		if f.Signer != SignerFile {
			continue
		}
		private, err := key.as(f).open(identities)
		if err := maybe(f.File, private, err); err != nil {
			return Resealed{}, err
		}
	}
	if len(sealed) == 0 {
		return Resealed{}, ErrNotHere
	}
	if to, err = to.resolve(dir); err != nil {
		return Resealed{}, err
	}

	tmp, err := os.MkdirTemp(home, resealPrefix) // 0700
	if err != nil {
		return Resealed{}, err
	}
	defer os.RemoveAll(tmp)
	r.Tried = true
	for file, private := range sealed {
		if err := writeSealed(filepath.Join(tmp, file), private, to); err != nil {
			return Resealed{}, err
		}
		if len(to.Opens) > 0 {
			continue // done
		}
		back, err := unseal(filepath.Join(tmp, file), identities)
		switch {
		case errors.Is(err, ErrSealed):
			r.Tried = false
		case err != nil:
			return Resealed{}, err
		case !back.Equal(private):
			return Resealed{}, fmt.Errorf("read back %s: %w", file, ErrCorrupt)
		}
	}
	p.Identity = own
	if err := p.write(filepath.Join(tmp, publicFile)); err != nil {
		return Resealed{}, err
	}
	if err := syncDir(tmp); err != nil {
		return Resealed{}, err
	}
	if err := fault("sealed"); err != nil {
		return Resealed{}, err
	}
	order := []string{filepath.Base(key.SuccessorFile)}
	for _, f := range key.Former {
		order = append(order, numbered(keyFile, f.Number))
	}
	for _, file := range append(order, publicFile, numbered(keyFile, key.Number)) {
		if sealed[file] == nil && file != publicFile {
			continue
		}
		if err := os.Rename(filepath.Join(tmp, file), filepath.Join(home, file)); err != nil {
			return Resealed{}, err
		}
		if err := syncDir(home); err != nil {
			return Resealed{}, err
		}
		if err := fault(file + " in place"); err != nil {
			return Resealed{}, err
		}
	}
	r.Key, err = Find(dir, name)
	return r, err
}

// openSuccessor opens the successor, which must be the one that Next promises.
func (k Key) openSuccessor(identities []age.Identity) (ed25519.PrivateKey, error) {
	if _, err := os.Lstat(k.SuccessorFile); err != nil {
		return nil, err
	}
	identities, err := k.withOwn(identities)
	if err != nil {
		return nil, err
	}
	private, err := unseal(k.SuccessorFile, identities)
	if err != nil {
		return nil, err
	}
	name, err := NameOf(private.Public().(ed25519.PublicKey))
	if err != nil {
		return nil, err
	}
	if next, err := ipnsrecord.Commitment(name); err != nil || next != k.Next {
		return nil, fmt.Errorf("%s is not the successor that was promised: %w", k.SuccessorFile, ErrCorrupt)
	}
	return private, nil
}
