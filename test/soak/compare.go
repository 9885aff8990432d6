//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// world is what a registry has: of every package that its listing names, the
// revision and the versions of its document.
type world map[npm.Name]upstreamPackage

type upstreamPackage struct {
	rev      string
	versions []string
}

// observe reads all of a registry, as a client would.
func observe(ctx context.Context, registry, feed string) (world, error) {
	revs, err := listing(ctx, feed)
	if err != nil {
		return nil, err
	}
	w := world{}
	for id, rev := range revs {
		raw, err := get(ctx, registry+"/"+npm.Name(id).Escape())
		if err != nil {
			return nil, err
		}
		doc, err := npm.ParsePackument(raw)
		if err != nil {
			return nil, fmt.Errorf("packument of %s: %w", id, err)
		}
		w[npm.Name(id)] = upstreamPackage{rev, slices.Sorted(maps.Keys(doc.Versions))}
	}
	return w, nil
}

// listing is a feed's `_all_docs`: revisions by name.
func listing(ctx context.Context, feed string) (map[string]string, error) {
	const limit = 10_000
	revs := map[string]string{}
	for start := ""; ; {
		raw, err := get(ctx, fmt.Sprintf("%s/_all_docs?limit=%d&startkey=%s", feed, limit, url.QueryEscape(quote(start))))
		if err != nil {
			return nil, err
		}
		var page struct {
			Rows []struct {
				ID    string
				Value struct{ Rev string }
			}
		}
		if err := json.Unmarshal(raw, &page); err != nil {
			return nil, err
		}
		for _, row := range page.Rows {
			revs[row.ID], start = row.Value.Rev, row.ID
		}
		if len(page.Rows) < limit {
			return revs, nil
		}
	}
}

func quote(s string) string {
	raw, _ := json.Marshal(s) // of a string
	return string(raw)
}

func get(ctx context.Context, address string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", address, resp.Status)
	}
	return raw, err
}

// holdings is what a ledger holds, in a form in which two compare.
type holdings struct {
	// items are CIDs by "name@version", and by "name" that of the document
	// with its revision.
	items map[string]string
	tombs []string
	// excused are items that are refused or in the queue, with the reason.
	excused map[string]string
}

// hold reads all of a ledger.
func hold(ctx context.Context, l *ledger.Store) (h holdings, err error) {
	h = holdings{items: map[string]string{}, excused: map[string]string{}}
	for row, err := range l.Packages(ctx) {
		if err != nil {
			return h, err
		}
		if row.Deleted {
			h.tombs = append(h.tombs, string(row.Name))
			continue
		}
		p, err := l.Package(ctx, row.Name)
		if err != nil {
			return h, err
		}
		if p.Document.CID.Defined() {
			h.items[string(p.Name)] = p.Rev + " " + p.Document.CID.String()
		}
		for _, v := range p.Versions {
			h.items[item(p.Name, v.Version)] = v.CID.String()
		}
	}
	slices.Sort(h.tombs)
	refused, err := l.Refused(ctx)
	if err != nil {
		return h, err
	}
	for _, r := range refused {
		h.excused[item(r.Name, r.Version)] = "refused: " + r.Reason
	}
	retries, err := l.Retries(ctx)
	for _, r := range retries {
		h.excused[item(r.Name, r.Version)] = "queued: " + r.Detail
	}
	return h, err
}

// account says what became of all that a registry has: every package and every
// version of it is stored, or refused, or in the queue, or lost.
type account struct {
	acknowledged, stored, refused, queued int
	lost                                  []string
	extra                                 []string // held, and not in the registry
}

func (h holdings) account(w world) account {
	var a account
	expected := map[string]bool{}
	for name, p := range w {
		for _, version := range append([]string{""}, p.versions...) {
			it := item(name, version)
			expected[it] = true
			a.acknowledged++
			held, ok := h.items[it]
			why := h.excused[it]
			if why == "" {
				why = h.excused[string(name)]
			}
			switch {
			case ok && (version != "" || strings.HasPrefix(held, p.rev+" ")):
				a.stored++
			case strings.HasPrefix(why, "refused"):
				a.refused++
			case why != "":
				a.queued++
			case ok:
				a.lost = append(a.lost, fmt.Sprintf("%s is held as %s, it is %s", it, held, p.rev))
			default:
				a.lost = append(a.lost, it)
			}
		}
	}
	for it := range h.items {
		if !expected[it] {
			a.extra = append(a.extra, it)
		}
	}
	slices.Sort(a.lost)
	slices.Sort(a.extra)
	return a
}

// print prints a, and returns an error where something is lost or too much.
func (a account) print() error {
	figure("acknowledged", fmt.Sprintf("%d packages and versions", a.acknowledged))
	figure("stored+refused+queued", fmt.Sprintf("%d + %d + %d", a.stored, a.refused, a.queued))
	figure("lost", len(a.lost))
	figure("held beyond the registry's", len(a.extra))
	var err error
	if len(a.lost) > 0 {
		err = fmt.Errorf("lost: %s", few(a.lost))
	}
	if len(a.extra) > 0 {
		err = errors.Join(err, fmt.Errorf("held, and not in the registry: %s", few(a.extra)))
	}
	return err
}

// differences lists what two ledgers do not have alike.
func (h holdings) differences(o holdings) (all []string) {
	for it, is := range h.items {
		if was, ok := o.items[it]; !ok || was != is {
			all = append(all, fmt.Sprintf("%s: %q, %q", it, is, was))
		}
	}
	for it, was := range o.items {
		if _, ok := h.items[it]; !ok {
			all = append(all, fmt.Sprintf("%s: \"\", %q", it, was))
		}
	}
	slices.Sort(all)
	return all
}

// few joins the first of many.
func few(all []string) string {
	const most = 10
	if len(all) > most {
		return strings.Join(all[:most], "; ") + fmt.Sprintf("; and %d more", len(all)-most)
	}
	return strings.Join(all, "; ")
}
