package index

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"

	"github.com/ipfs/go-cid"
	"golang.org/x/sync/errgroup"

	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// scopesAtOnce is how many scopes Names lists at the same time.
const scopesAtOnce = 32

// ReadRelease reads the release whose directory is root, and checks that its
// release.json describes the list and overflow that lie beside it. So whoever
// trusts root may trust List. It returns ErrRelease where that is not so,
// ErrFormat for a newer format, and g's error where a block is missing.
func ReadRelease(ctx context.Context, g unixfs.Getter, root cid.Cid) (Release, error) {
	r, err := readRelease(ctx, g, root)
	if err == nil {
		return r, nil
	}
	if errors.Is(err, unixfs.ErrMalformed) || errors.Is(err, unixfs.ErrNotFound) || errors.Is(err, unixfs.ErrTooLarge) {
		err = fmt.Errorf("%w: %w", ErrRelease, err)
	}
	return Release{}, fmt.Errorf("read release %s: %w", root, err)
}

func readRelease(ctx context.Context, g unixfs.Getter, root cid.Cid) (Release, error) {
	dir, err := unixfs.Lookup(ctx, g, root, registryName)
	if err != nil {
		return Release{}, err
	}
	file, err := unixfs.Lookup(ctx, g, dir.CID, releaseName)
	if err != nil {
		return Release{}, err
	}
	raw, err := unixfs.ReadFile(ctx, g, file.CID, maxRelease)
	if err != nil {
		return Release{}, err
	}
	r, err := decodeRelease(raw)
	if err != nil {
		return Release{}, err
	}
	overflow, err := unixfs.Lookup(ctx, g, dir.CID, overflowName)
	if err != nil {
		return Release{}, err
	}
	list, err := unixfs.Lookup(ctx, g, dir.CID, listName)
	if err != nil {
		return Release{}, err
	}
	if overflow.CID != r.List.Overflow || list.CID != r.List.Root {
		return Release{}, fmt.Errorf("%w: its directory holds the list {%s, %s}, release.json says {%s, %s}",
			ErrRelease, list.CID, overflow.CID, r.List.Root, r.List.Overflow)
	}
	r.Root = root
	return r, nil
}

// Lookup finds a package in a list, also where a hash collision put it into the
// overflow. It returns ErrNotFound for a package that the list does not have.
func Lookup(ctx context.Context, g unixfs.Getter, list List, name npm.Name) (Entry, error) {
	l, err := lookup(ctx, g, list, name)
	if errors.Is(err, unixfs.ErrNotFound) {
		return Entry{}, fmt.Errorf("look up %s in %s: %w", name, list.Root, ErrNotFound)
	}
	if err != nil {
		return Entry{}, fmt.Errorf("look up %s in %s: %w", name, list.Root, err)
	}
	return Entry{Name: name, CID: l.CID, Tsize: l.Tsize}, nil
}

func lookup(ctx context.Context, g unixfs.Getter, list List, name npm.Name) (unixfs.Link, error) {
	if _, err := npm.ParseName(string(name)); err != nil {
		return unixfs.Link{}, unixfs.ErrNotFound
	}
	scope := name.Scope()
	if scope == "" {
		return list.orOverflow(ctx, g, list.Root, string(name), string(name))
	}
	dir, err := list.orOverflow(ctx, g, list.Root, scope, scope)
	if err != nil {
		return unixfs.Link{}, err
	}
	return list.orOverflow(ctx, g, dir.CID, name.Base(), name.Escape())
}

// orOverflow looks for name in dir, then for escaped in the overflow.
func (list List) orOverflow(ctx context.Context, g unixfs.Getter, dir cid.Cid, name, escaped string) (unixfs.Link, error) {
	l, err := unixfs.Lookup(ctx, g, dir, name)
	if !errors.Is(err, unixfs.ErrNotFound) {
		return l, err
	}
	return unixfs.Lookup(ctx, g, list.Overflow, escaped)
}

// Names yields every package of a list, in no promised order, each once. It
// fetches all its directories, many blocks at a time, and ends at the first
// error: ErrRelease for a name that is none of npm's.
func Names(ctx context.Context, g unixfs.Getter, list List) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		fail := func(err error) { yield(Entry{}, fmt.Errorf("list %s: %w", list.Root, err)) }
		var scopes []unixfs.Link
		// emit yields a package, or keeps a scope for later.
		emit := func(name string, l unixfs.Link) bool {
			if strings.HasPrefix(name, "@") && !strings.Contains(name, "/") {
				scopes = append(scopes, l)
				return true
			}
			e, err := named(name, l)
			if err != nil {
				fail(err)
				return false
			}
			return yield(e, nil)
		}
		for l, err := range unixfs.List(ctx, g, list.Root) {
			if err != nil {
				fail(err)
				return
			}
			if !emit(l.Name, l) {
				return
			}
		}
		for l, err := range unixfs.List(ctx, g, list.Overflow) {
			if err != nil {
				fail(err)
				return
			}
			if !emit(strings.Replace(l.Name, "%2f", "/", 1), l) {
				return
			}
		}
		for len(scopes) > 0 {
			n := min(len(scopes), scopesAtOnce)
			entries, err := listScopes(ctx, g, scopes[:n])
			if err != nil {
				fail(err)
				return
			}
			for _, e := range entries {
				if !yield(e, nil) {
					return
				}
			}
			scopes = scopes[n:]
		}
	}
}

// listScopes lists several scopes at once, in their order.
func listScopes(ctx context.Context, g unixfs.Getter, scopes []unixfs.Link) ([]Entry, error) {
	lists := make([][]Entry, len(scopes))
	group, ctx := errgroup.WithContext(ctx)
	for i, scope := range scopes {
		group.Go(func() error {
			for l, err := range unixfs.List(ctx, g, scope.CID) {
				if err != nil {
					return err
				}
				e, err := named(scope.Name+"/"+l.Name, l)
				if err != nil {
					return err
				}
				lists[i] = append(lists[i], e)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	var out []Entry
	for _, l := range lists {
		out = append(out, l...)
	}
	return out, nil
}

func named(name string, l unixfs.Link) (Entry, error) {
	n, err := npm.ParseName(name)
	if err != nil {
		return Entry{}, fmt.Errorf("%w: %w", ErrRelease, err)
	}
	return Entry{Name: n, CID: l.CID, Tsize: l.Tsize}, nil
}
