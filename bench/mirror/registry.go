//go:build linux

package main

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"

	"github.com/registry-mirror/registry-mirror/internal/npm/npmtest"
)

// made is a package of the registry that all three serve from. It has the shape
// of npm's package of its name: as many versions, about as many bytes, and of
// what gzip cannot shrink (digests, signatures, commits) as much in each version.
// The documents are made, so that every run measures the same bytes.
type made struct {
	name     string
	versions int
	manifest int // bytes of one version's, as the document has it
	tarball  int // bytes of the newest version's
}

var (
	isOdd   = made{name: "is-odd", versions: 9, manifest: 1_370, tarball: 3_000}
	express = made{name: "express", versions: 287, manifest: 2_456, tarball: 55_000}
	react   = made{name: "react", versions: 2_600, manifest: 2_020, tarball: 80_000}
	large   = made{name: "large", versions: 1, manifest: 1_000, tarball: 4_260_000}
)

// startRegistry serves packages on loopback.
func startRegistry(packages []made) (*npmtest.Registry, error) {
	var b strings.Builder
	for _, p := range packages {
		p.write(&b)
	}
	return npmtest.Start("127.0.0.1:0", b.String())
}

// newest is the version that the tarball is of.
func (p made) newest() string { return p.version(p.versions - 1) }

func (p made) version(i int) string { return fmt.Sprintf("%d.%d.%d", 1+i/100, i/10%10, i%10) }

func (p made) document() string { return "/" + p.name }

func (p made) tarballPath() string {
	return "/" + p.name + "/-/" + p.name + "-" + p.newest() + ".tgz"
}

// write writes the package as npmtest's archives have them.
func (p made) write(b *strings.Builder) {
	var seed [32]byte
	copy(seed[:], p.name)
	random := rand.NewChaCha8(seed)
	noise := func(n int) []byte {
		data := make([]byte, n)
		random.Read(data)
		return data
	}
	for i := range p.versions {
		version := p.version(i)
		manifest := map[string]any{
			"description": "A made package with the shape of " + p.name,
			"keywords":    []string{"framework", "web", "http", "rest", "restful", "router", "app", "api"},
			"author":      map[string]string{"name": "A Maintainer", "email": "maintainer@bench.example"},
			"maintainers": []map[string]string{{"name": "one", "email": "one@bench.example"}, {"name": "two", "email": "two@bench.example"}},
			"license":     "MIT",
			"homepage":    "https://bench.example/" + p.name,
			"repository":  map[string]string{"type": "git", "url": "git+https://git.example/bench/" + p.name + ".git"},
			"engines":     map[string]string{"node": ">= 0.10.0"},
			"files":       []string{"LICENSE", "index.js", "lib/"},
			"gitHead":     hex.EncodeToString(noise(20)),
			"signature":   base64.StdEncoding.EncodeToString(noise(70)),
			"_npmUser":    map[string]string{"name": "one", "email": "one@bench.example"},
		}
		// Dependencies, whose ranges move now and then, make up the size.
		dependencies := map[string]string{}
		manifest["devDependencies"] = dependencies
		size := func() int {
			raw, err := json.Marshal(manifest)
			if err != nil {
				panic(err) // strings, and maps and slices of them
			}
			return len(raw)
		}
		const dist = 390 // and name, version, _id: what the registry adds
		for k := 0; size()+dist < p.manifest; k++ {
			dependencies[fmt.Sprintf("dependency-%d", k)] = fmt.Sprintf("%d.%d.%d", 1+k%5, (i+k)/(20+k)%20, (i+7*k)/(10+3*k)%10)
		}
		raw, err := json.Marshal(manifest)
		if err != nil {
			panic(err)
		}
		fmt.Fprintf(b, "-- %s@%s/package.json --\n%s\n", p.name, version, raw)
		fmt.Fprintf(b, "-- %s@%s/index.js --\nmodule.exports = %q\n", p.name, version, version)
		if i == p.versions-1 {
			const packed = 900 // bytes of the files above in a tarball
			fmt.Fprintf(b, "-- %s@%s/noise.txt --\n%s\n", p.name, version, base64.StdEncoding.EncodeToString(noise(p.tarball-packed)))
		}
	}
}
