//go:build linux

package main

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/npm"
)

const packumentName npm.Name = "@bench/large"

// upstreamPackument is a document of npm's shape with the first n versions of a
// package that was published every few hours for years: nightly versions between
// releases, manifests of some 3 KB that grow and change by and by, digests and
// signatures of their own, times, and a readme. The same n gives the same bytes.
func upstreamPackument(n int) []byte {
	var b bytes.Buffer
	latest := ""
	for i := range n {
		if v := packumentVersion(i); !strings.Contains(v, "-") {
			latest = v
		}
	}
	fmt.Fprintf(&b, `{"_id":%q,"_rev":"%d-%s","name":%q,"dist-tags":{"latest":%q,"beta":%q,"next":%q},"versions":{`,
		packumentName, 2*n+1, hex.EncodeToString(fakeBytes(n, "rev", 16)), packumentName, latest, packumentVersion(0), packumentVersion(n-1))
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%q:", packumentVersion(i))
		writeManifest(&b, i)
	}
	fmt.Fprintf(&b, `},"time":{"created":%q,"modified":%q`, publishedAt(0), publishedAt(n))
	for i := range n {
		fmt.Fprintf(&b, `,%q:%q`, packumentVersion(i), publishedAt(i))
	}
	fmt.Fprintf(&b, `},"maintainers":%s,"description":"A large package, published often","homepage":"https://large.example/","license":"Apache-2.0",`+
		`"repository":{"url":"git+https://git.example/bench/large.git","type":"git"},"readmeFilename":"README.md","readme":%q}`,
		fakeMaintainers, strings.Repeat("# Large\n\nIt does much, and is published often.\n\n", 100))
	return b.Bytes()
}

// packumentVersion is the version that was published as the ith: nightly ones, and
// now and then a release.
func packumentVersion(i int) string {
	major, minor := 1+i/600, i/30%20
	if at := i % 30; at < 27 {
		return fmt.Sprintf("%d.%d.0-dev.%s", major, minor, publishedTime(i).Format("20060102150405"))
	} else {
		return fmt.Sprintf("%d.%d.%d", major, minor, at-27)
	}
}

func publishedTime(i int) time.Time {
	at := time.Date(2014, 10, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(i) * 26 * time.Hour)
	return at.Add(time.Duration(fakeRand(i, "time").Int64N(int64(8 * time.Hour)))).Truncate(time.Millisecond)
}

func publishedAt(i int) string { return publishedTime(i).Format("2006-01-02T15:04:05.000Z") }

const fakeMaintainers = `[{"name":"one","email":"one@large.example"},{"name":"two","email":"two@large.example"},` +
	`{"name":"three","email":"three@large.example"},{"name":"robot","email":"robot@large.example"}]`

// writeManifest writes the ith manifest. Half of a dozen dependencies come with the
// years, and every few versions a range moves.
func writeManifest(b *bytes.Buffer, i int) {
	version := packumentVersion(i)
	fmt.Fprintf(b, `{"name":%q,"version":%q,"keywords":["large","language","compiler","javascript"],"author":{"name":"Large Corp."},"license":"Apache-2.0",`+
		`"_id":"%s@%s","maintainers":%s,"homepage":"https://large.example/","bugs":{"url":"https://git.example/bench/large/issues"},"bin":{"large":"bin/large","larged":"bin/larged"},`,
		packumentName, version, packumentName, version, fakeMaintainers)
	fmt.Fprintf(b, `"dist":{"shasum":"%s","tarball":"https://registry.example/%s/-/large-%s.tgz","fileCount":%d,"integrity":"sha512-%s",`+
		`"signatures":[{"sig":"MEUC%s","keyid":"SHA256:jl3bwswu80PjjokCgh0o2w5c2U4LhQAE57gj9cz1kzA"}],"unpackedSize":%d},`,
		hex.EncodeToString(fakeBytes(i, "sha1", 20)), packumentName, version, 100+i/40, fakeDigest(i, "sha512", 64), fakeDigest(i, "sig", 69), 20_000_000+fakeRand(i, "size").IntN(10_000_000))
	fmt.Fprintf(b, `"main":"./lib/large.js","types":"./lib/large.d.ts","engines":{"node":">=%d.%d"},"gitHead":"%s","overrides":{"large@*":"$large"},`+
		`"packageManager":"npm@8.%d.%d","scripts":{"test":"gulp runtests-parallel --light=false","build":"npm run build:compiler && npm run build:tests","lint":"gulp lint","clean":"gulp clean",`+
		`"gulp":"gulp","setup-hooks":"node scripts/link-hooks.mjs","start":"node lib/larged.js","build:compiler":"gulp local","build:tests":"gulp tests"},"browser":{"fs":false,"os":false,"path":false,`+
		`"crypto":false,"buffer":false,"inspector":false,"perf_hooks":false},"volta":{"npm":"8.%d.%d","node":"20.%d.0"},"_npmUser":{"name":"robot","email":"robot@large.example"},`,
		4+i/600, i/300%10, hex.EncodeToString(fakeBytes(i, "git", 20)), i/200%20, i/50%8, i/200%20, i/50%8, i/150%12)
	for _, kind := range []struct {
		field string
		names []string
	}{{"dependencies", words[20 : 26+i/500]}, {"devDependencies", words[60 : 90+i/100]}} {
		fmt.Fprintf(b, `%q:{`, kind.field)
		for k, name := range kind.names {
			if k > 0 {
				b.WriteByte(',')
			}
			moved := (i + 37*k) / (40 + 7*k)
			fmt.Fprintf(b, `"@types/%s":"^%d.%d.%d"`, name, 1+k%9+moved/40, moved%20, moved*7%13)
		}
		b.WriteString(`},`)
	}
	fmt.Fprintf(b, `"_npmVersion":"8.%d.%d","description":"A large package, published often","directories":{},"_nodeVersion":"20.%d.0","_hasShrinkwrap":false,`+
		`"_npmOperationalInternal":{"tmp":"tmp/large_%s_%d_0.%d","host":"s3://npm-registry-packages"}}`,
		i/200%20, i/50%8, i/150%12, version, publishedTime(i).UnixMilli(), fakeRand(i, "tmp").Int64N(1e16))
}

func fakeRand(i int, what string) *rand.Rand {
	h := fnv.New64a()
	h.Write([]byte(what))
	return rand.New(rand.NewPCG(uint64(i), h.Sum64()))
}

func fakeBytes(i int, what string, n int) []byte {
	r, b := fakeRand(i, what), make([]byte, n)
	for k := range b {
		b[k] = byte(r.Uint32())
	}
	return b
}

func fakeDigest(i int, what string, n int) string {
	return base64.StdEncoding.EncodeToString(fakeBytes(i, what, n))
}
