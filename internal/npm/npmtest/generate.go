package npmtest

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
)

// Generate makes a txtar archive of n packages for New, the same for the same
// n and seed: several versions each, one in four in a scope, with dependencies
// on packages of lower number that always resolve, prereleases, deprecations,
// optional and peer dependencies, programs, and tarballs from a hundred bytes to
// some hundred kilobytes. Requiring a package gives {name, version, deps},
// which has required its dependencies. The first package is GeneratedName(0).
func Generate(n int, seed uint64) string {
	rnd := rand.New(rand.NewPCG(seed, 0x6e706d))
	var b strings.Builder
	versions := make([][]string, n)
	for i := range n {
		name := GeneratedName(i)
		count := 1 + rnd.IntN(5)
		major, minor, patch := 1, 0, 0
		for v := range count {
			switch rnd.IntN(4) {
			case 0:
				major, minor, patch = major+1, 0, 0
			case 1:
				minor, patch = minor+1, 0
			default:
				patch++
			}
			version := fmt.Sprintf("%d.%d.%d", major, minor, patch)
			manifest := map[string]any{
				"description": fmt.Sprintf("Package %d of %d", i, n),
				"main":        "index.js",
				"license":     "MIT",
			}
			if v+1 < count && rnd.IntN(6) == 0 {
				version += fmt.Sprintf("-beta.%d", rnd.IntN(3))
			} else {
				versions[i] = append(versions[i], version)
			}
			if v+1 < count && rnd.IntN(8) == 0 {
				manifest["deprecated"] = "use a later version"
			}
			deps, optional := map[string]string{}, map[string]string{}
			for range rnd.IntN(4) {
				if i == 0 {
					break
				}
				on := rnd.IntN(i)
				has := versions[on][rnd.IntN(len(versions[on]))]
				rng := []string{"^" + has, "~" + has, has, ">=" + has, "*"}[rnd.IntN(5)]
				if rnd.IntN(8) == 0 {
					optional[GeneratedName(on)] = rng
				} else {
					deps[GeneratedName(on)] = rng
				}
			}
			for name := range optional {
				delete(deps, name)
			}
			if len(deps) > 0 {
				manifest["dependencies"] = deps
			}
			if len(optional) > 0 {
				manifest["optionalDependencies"] = optional
			}
			if i > 0 && rnd.IntN(10) == 0 {
				peer := GeneratedName(rnd.IntN(i))
				manifest["peerDependencies"] = map[string]string{peer: "*"}
				manifest["peerDependenciesMeta"] = map[string]any{peer: map[string]bool{"optional": true}}
			}
			if rnd.IntN(12) == 0 {
				manifest["bin"] = map[string]string{fmt.Sprintf("tool-%d", i): "cli.js"}
				fmt.Fprintf(&b, "-- %s@%s/cli.js --\n#!/usr/bin/env node\nconsole.log(%q)\n", name, version, name+" "+version)
			}
			raw, err := json.MarshalIndent(manifest, "", "  ")
			if err != nil {
				panic(err) // strings and maps of them
			}
			fmt.Fprintf(&b, "-- %s@%s/package.json --\n%s\n", name, version, raw)
			fmt.Fprintf(&b, "-- %s@%s/index.js --\n", name, version)
			b.WriteString("const { name, version, dependencies = {} } = require('./package.json')\n" +
				"module.exports = { name, version, deps: Object.keys(dependencies).map(d => require(d).name) }\n")
			// Noise that gzip cannot shrink to nothing: mostly small, at times large.
			lines := rnd.IntN(20)
			switch rnd.IntN(20) {
			case 0:
				lines = 5000
			case 1, 2:
				lines = 400
			}
			fmt.Fprintf(&b, "-- %s@%s/noise.txt --\n", name, version)
			for range lines {
				fmt.Fprintf(&b, "%016x%016x%016x\n", rnd.Uint64(), rnd.Uint64(), rnd.Uint64())
			}
		}
	}
	return b.String()
}

// GeneratedName is the name of Generate's package number i.
func GeneratedName(i int) string {
	if i%4 == 3 {
		return fmt.Sprintf("@scope-%d/pkg-%04d", i%3, i)
	}
	return fmt.Sprintf("pkg-%04d", i)
}
