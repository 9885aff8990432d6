//go:build linux

package main

import (
	"fmt"
	"math/bits"
	"math/rand/v2"

	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/unixfs"
)

// How names are spread: about half of them are scoped, and most of a scope's come
// by what it has already, so that few scopes are very large. In 5 million there are
// 338 thousand scopes, of which 26 have more than 3,000 names and one has 91
// thousand; npm's registry has as many names a scope, and is a little less uneven.
const (
	scopedShare = 0.53
	newScope    = 0.1275 // of the scoped names, those that begin a scope
	anyScope    = 0.12   // of the others, those in a scope whatever it has
	firstScopes = 3      // begun before any grows
)

// namer gives names like npm's, each once, and the same ones in every run: a
// longer list is a shorter one and more. In memory it has some 30 bytes for each,
// not the names.
type namer struct {
	tree, text *rand.Rand
	scopes     []string
	of         []uint32 // by scoped name, its scope
	seen       hashes   // of names and scopes
	buf        []byte
}

// newNamer is for at most that many names.
func newNamer(most int) *namer {
	return &namer{
		tree: rand.New(rand.NewPCG(1, 2)), text: rand.New(rand.NewPCG(3, 4)),
		seen: newHashes(most + most/8 + firstScopes), of: make([]uint32, 0, most*6/10),
	}
}

// next gives the next name, whose bytes are good until the one after.
func (g *namer) next() ([]byte, error) {
	prefix, parts := "", []int{12, 38, 35, 15}
	if g.tree.Float64() < scopedShare {
		prefix, parts = g.scopes[g.scope()]+"/", []int{32, 46, 18, 4}
	}
	name := g.fresh(prefix, parts)
	if _, err := npm.ParseName(string(name)); err != nil {
		return nil, fmt.Errorf("a name was made that is none: %w", err)
	}
	return name, nil
}

// scope chooses the scope of the next name.
func (g *namer) scope() (at uint32) {
	switch {
	case len(g.scopes) < firstScopes || g.tree.Float64() < newScope:
		at = uint32(len(g.scopes))
		g.scopes = append(g.scopes, string(g.fresh("@", []int{55, 40, 5})))
	case g.tree.Float64() < anyScope:
		at = uint32(g.tree.IntN(len(g.scopes)))
	default:
		at = g.of[g.tree.IntN(len(g.of))]
	}
	g.of = append(g.of, at)
	return at
}

// fresh makes a name that was not made before: prefix, and one part or more; parts
// are the odds, in percent, that it is one, two, and so on.
func (g *namer) fresh(prefix string, parts []int) []byte {
	g.buf = append(g.buf[:0], prefix...)
	n, odds := 1, g.text.IntN(100)
	for odds -= parts[0]; odds >= 0; odds -= parts[n-1] {
		n++
	}
	g.part()
	for n--; n > 0; n-- {
		g.buf = append(g.buf, '-')
		g.part()
	}
	for !g.seen.add(unixfs.Hash(string(g.buf))) {
		g.buf = append(g.buf, '-')
		g.part()
	}
	return g.buf
}

// part adds a word, known or not.
func (g *namer) part() {
	if g.text.IntN(100) < 55 {
		g.buf = append(g.buf, words[g.text.IntN(len(words))]...)
		return
	}
	const consonants, vowels = "bcdfghjklmnprstvwxz", "aeiouy"
	for range 2 + g.text.IntN(3) {
		g.buf = append(g.buf, consonants[g.text.IntN(len(consonants))], vowels[g.text.IntN(len(vowels))])
		if g.text.IntN(3) == 0 {
			g.buf = append(g.buf, consonants[g.text.IntN(len(consonants))])
		}
	}
}

var words = []string{
	"react", "node", "js", "vue", "api", "app", "cli", "core", "ui", "utils", "plugin", "webpack", "babel", "eslint", "config",
	"component", "components", "types", "ts", "json", "css", "html", "http", "server", "client", "data", "test", "web", "file",
	"express", "angular", "ng", "gulp", "grunt", "native", "redux", "router", "form", "input", "button", "table", "list", "icon",
	"theme", "style", "loader", "parser", "generator", "starter", "template", "create", "get", "is", "to", "simple", "tiny", "easy",
	"fast", "auto", "dynamic", "async", "promise", "stream", "event", "socket", "mongo", "sql", "db", "cache", "log", "logger",
	"auth", "token", "user", "admin", "cloud", "aws", "lambda", "docker", "build", "dev", "tools", "helper", "lib", "sdk", "kit",
	"module", "package", "service", "hooks", "state", "store", "graphql", "rest", "date", "time", "color", "image", "video", "map",
	"chart", "editor", "markdown", "text", "string", "array", "object", "number", "math", "random", "hash", "crypto", "chain",
	"web3", "bot", "discord", "telegram", "chat", "mail", "sms", "pay", "shop", "homebridge", "hubot", "cordova", "expo", "next",
	"nuxt", "svelte", "vite", "rollup", "preset", "v2", "x", "io", "go", "my", "demo", "sample", "example", "base", "common",
	"shared", "mobile", "ios", "android", "browser", "window", "dom", "scroll", "modal", "menu", "nav", "layout", "grid",
}

// hashes is a set of hashes, 8 bytes for each and for as many again or more.
type hashes struct {
	slots []uint64 // 0: free
	shift int
}

func newHashes(most int) hashes {
	size := bits.Len(uint(2 * most))
	return hashes{make([]uint64, 1<<size), 64 - size}
}

// add says whether h was not there.
func (s *hashes) add(h uint64) bool {
	h |= 1 // 63 bits of a hash do
	for i := int(h >> s.shift); ; i = (i + 1) & (len(s.slots) - 1) {
		switch s.slots[i] {
		case h:
			return false
		case 0:
			s.slots[i] = h
			return true
		}
	}
}
