package publish

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/boxo/ipns"

	"github.com/registry-mirror/registry-mirror/index"
	"github.com/registry-mirror/registry-mirror/internal/document"
	"github.com/registry-mirror/registry-mirror/ipnskeys"
)

// DefaultGatewayOrigin is where a Kubo daemon's gateway listens unless it was
// told otherwise.
const DefaultGatewayOrigin = "http://127.0.0.1:8080"

// NoGateway for a gateway's origin leaves index.html out.
const NoGateway = "none"

// ErrOrigin is returned for a gateway's origin that is none: scheme and host of
// an http or https URL, and no path.
var ErrOrigin = errors.New("not the origin of a gateway")

// IndexOptions are what the index of the registry name must be made with to be
// published from here: for bare gateways, tarball URLs that begin with the
// gateway's origin and the registry's own path on it, for npm 12 refuses others.
// An origin of "" is DefaultGatewayOrigin.
func IndexOptions(gatewayOrigin string, name ipns.Name) index.Options {
	o := index.Options{Documents: document.Format}
	switch gatewayOrigin {
	case "":
		gatewayOrigin = DefaultGatewayOrigin
	case NoGateway:
		return o
	}
	o.Gateway = strings.TrimRight(gatewayOrigin, "/") + name.AsPath().String()
	return o
}

// OpenIndex opens the index of the registry name, or makes it as IndexOptions
// says. An index keeps the gateway origin that it was made with, or that it was
// made without one: "" takes that, another origin is index.ErrParameters, and so
// is another name where there is an origin, but for the registry's former ones: the
// next Build brings what bare gateways are shown to the one that it has. An origin that
// cannot be one is ErrOrigin, and nothing is opened.
func OpenIndex(dir, gatewayOrigin string, name ipns.Name, log *slog.Logger, former ...ipns.Name) (*index.Index, error) {
	if err := CheckOrigin(gatewayOrigin); err != nil {
		return nil, fmt.Errorf("open index of %s: %w", name, err)
	}
	for _, was := range former {
		if gatewayOrigin == "" || gatewayOrigin == NoGateway {
			break // what follows takes them all
		}
		o := IndexOptions(gatewayOrigin, was)
		o.Log = log
		ix, err := index.Open(dir, o)
		if !errors.Is(err, index.ErrParameters) && !errors.Is(err, index.ErrNoIndex) {
			return ix, err
		}
	}
	if gatewayOrigin == "" {
		ix, err := index.Open(dir, index.Options{Log: log})
		if err == nil {
			own := func(n ipns.Name) bool { return strings.HasSuffix(ix.Parameters().Gateway, n.AsPath().String()) }
			if made := ix.Parameters().Gateway; made != "" && !own(name) && !slices.ContainsFunc(former, own) {
				return nil, errors.Join(fmt.Errorf("open index of %s: %w: gateway %q", name, index.ErrParameters, made), ix.Close())
			}
		}
		if !errors.Is(err, index.ErrNoIndex) {
			return ix, err
		}
	}
	o := IndexOptions(gatewayOrigin, name)
	o.Log = log
	return index.OpenOrCreate(dir, o)
}

// CheckOrigin refuses what can be no gateway's origin, with ErrOrigin.
func CheckOrigin(origin string) error {
	if origin == "" || origin == NoGateway {
		return nil
	}
	u, err := url.Parse(origin)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrOrigin, err)
	}
	if (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || strings.Trim(u.Path, "/") != "" ||
		u.User != nil || strings.ContainsAny(origin, "?#") {
		return fmt.Errorf("%w: %q", ErrOrigin, origin)
	}
	return nil
}

// Mint makes the journal and the key of a registry, the journal first: a key
// without a journal always means a lost journal. Errors: ipnskeys.ErrKeyExists,
// ErrJournalUsed and those of ipnskeys.Mint.
func Mint(keys, name, journal string) (ipnskeys.Key, error) {
	absent := func() error {
		if _, err := ipnskeys.Find(keys, name); err == nil {
			return fmt.Errorf("mint key %q: %w", name, ipnskeys.ErrKeyExists)
		} else if !errors.Is(err, ipnskeys.ErrNoKey) {
			return err
		}
		return nil
	}
	if err := absent(); err != nil { // before there is a directory of that name
		return ipnskeys.Key{}, err
	}
	var key ipnskeys.Key
	err := locked(vfs.Default, journal, func() (err error) {
		if err := absent(); err != nil { // one that was imported meanwhile has no journal, and gets none
			return err
		}
		if err := createLocked(vfs.Default, journal); err != nil {
			return err
		}
		key, err = ipnskeys.Mint(keys, name, nil)
		return err
	})
	return key, err
}

// ErrKeyTaken is returned by Import and Add for a key that another registry of the
// state has.
var ErrKeyTaken = errors.New("another registry of this state has this key")

// Import gives a registry a key that was made elsewhere, its journal made ready
// first (ImportJournal); atLeast is nil where nobody knows what it has signed.
// Where the registry has that key already, atLeast can still be said. Errors:
// ipnskeys.ErrKeyExists, ErrKeyTaken, and those of ImportJournal and ipnskeys.Import.
func Import(keys, name, journal string, private *ipnskeys.Private, atLeast *uint64) (ipnskeys.Key, error) {
	return take(keys, name, journal, private.IPNSName(), atLeast, func() (ipnskeys.Key, error) {
		return ipnskeys.Import(keys, name, private, ipnskeys.Seal{})
	})
}

// Add is Import for a key that stays elsewhere. Further errors: those of
// ipnskeys.Add.
func Add(keys, name, journal string, public ed25519.PublicKey, has ipnskeys.Elsewhere, atLeast *uint64) (ipnskeys.Key, error) {
	id, err := ipnskeys.NameOf(public)
	if err != nil {
		return ipnskeys.Key{}, err
	}
	return take(keys, name, journal, id, atLeast, func() (ipnskeys.Key, error) {
		return ipnskeys.Add(keys, name, public, has)
	})
}

// ErrUnpublished is returned by Rotate for a key that followed another and has
// signed nothing yet: no reader can know it.
var ErrUnpublished = errors.New("the key that was put in place last has signed nothing yet")

// Rotate puts the promised successor in the place of the key of a registry, whose
// first key has this journal. The successor's journal begins with it. Nobody
// publishes meanwhile.
//
// Law: the successor is opened and held to the promise, then its journal is
// durable, then the key is rotated (ipnskeys.Rotate), which one rename does. A crash
// leaves the key as it was, with at most an empty journal beside its own, or the
// successor with its journal.
//
// Errors: ErrLocked, ErrUnpublished, ErrJournalUsed where the successor has signed
// already, and those of ipnskeys.Rotate.
func Rotate(ctx context.Context, keys, name, journal string, r ipnskeys.Rotation) (ipnskeys.Key, error) {
	return rotate(ctx, keys, name, journal, r, func(string) error { return nil })
}

func rotate(ctx context.Context, keys, name, journal string, r ipnskeys.Rotation, fault func(step string) error) (key ipnskeys.Key, err error) {
	before, err := ipnskeys.Find(keys, name)
	if err != nil {
		return ipnskeys.Key{}, err
	}
	own := JournalOf(journal, before.Number)
	err = locked(vfs.Default, own, func() error {
		// Not another's, that came while the lock was waited for.
		now, err := ipnskeys.Find(keys, name)
		if err != nil || !now.IPNSName.Equal(before.IPNSName) {
			return errors.Join(err, fmt.Errorf("rotate key %q: %w", name, ErrLocked))
		}
		h, _, err := readJournal(vfs.Default, own)
		if err != nil && !errors.Is(err, ErrNoJournal) {
			return err
		}
		if before.Number > 1 && !h.used {
			return fmt.Errorf("rotate key %q: %s: %w", name, before.IPNSName, ErrUnpublished)
		}
		key, err = ipnskeys.Rotate(ctx, keys, name, r, func(ipns.Name) error {
			if err := CreateJournal(vfs.Default, JournalOf(journal, before.Number+1)); err != nil {
				return err
			}
			return fault("journal created")
		})
		return err
	})
	if err != nil {
		return ipnskeys.Key{}, err
	}
	return key, nil
}

// take holds the journal's lock throughout, as Mint does: neither finds its
// journal changed by the other before its key is there.
func take(keys, name, journal string, id ipns.Name, atLeast *uint64, place func() (ipnskeys.Key, error)) (ipnskeys.Key, error) {
	key, err := ipnskeys.Find(keys, name)
	have := err == nil
	switch {
	case have && (atLeast == nil || !key.IPNSName.Equal(id)):
		return ipnskeys.Key{}, fmt.Errorf("key %q signs for %s: %w", name, key.IPNSName, ipnskeys.ErrKeyExists)
	case !have && !errors.Is(err, ipnskeys.ErrNoKey):
		return ipnskeys.Key{}, err
	case !have:
		// Under two names it would sign by two journals, and end both with ErrNewer.
		others, err := ipnskeys.List(keys)
		if err != nil {
			return ipnskeys.Key{}, err
		}
		for _, other := range others {
			if other.IPNSName.Equal(id) {
				return ipnskeys.Key{}, fmt.Errorf("key %q signs for %s: %w", other.Name, id, ErrKeyTaken)
			}
		}
	case have:
		journal = JournalOf(journal, key.Number)
	}
	err = locked(vfs.Default, journal, func() (err error) {
		if !have { // one that was minted while the lock was waited for needs its journal
			if now, err := ipnskeys.Find(keys, name); err == nil {
				return fmt.Errorf("key %q signs for %s: %w", name, now.IPNSName, ipnskeys.ErrKeyExists)
			} else if !errors.Is(err, ipnskeys.ErrNoKey) {
				return err
			}
		}
		if err := importLocked(vfs.Default, journal, id, atLeast); err != nil {
			return err
		}
		if !have {
			key, err = place()
		}
		return err
	})
	if err != nil {
		return ipnskeys.Key{}, err
	}
	return key, nil
}
