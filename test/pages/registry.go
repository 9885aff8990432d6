package main

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/mirror"
	"github.com/registry-mirror/registry-mirror/internal/npm"
)

// registry is what the pages show: a company's beside a public one.
type registry struct{}

const (
	root    = "bafybeig7qqn7avwo2iklaz2h4w72dogh2aejp7c6iodewko76j45akwuva"
	tarball = "bafkreidciugzty3nyojssxy53wj4xeur4zmmc2ptw4alaeimdlupu6mzga"
	public  = "k51qzi5uqu5dkysk3z8kaxwb7opfhc4nf7yr1pd3719pz9t43bn9g7v37b8zfv"
	private = "k51qzi5uqu5dhz34tt6lpzkh0fkjn7boo9acyw176bv6fkc3m7mcau60sq6pvf"
)

func (registry) Meant(r *http.Request) (string, bool) { return "http://" + r.Host, true }

func (registry) Status(context.Context) mirror.TableStatus {
	now := time.Now()
	release := mirror.Release{Number: 42, Root: root, List: root, Created: now.Add(-3 * time.Hour), Packages: 5013492, Versions: 48120077}
	record := mirror.Record{Sequence: 57, Value: root, EOL: now.Add(6 * 24 * time.Hour)}
	return mirror.TableStatus{
		Registries: []mirror.RegistryStatus{
			{Registry: "acme", Scopes: []string{"@acme"}, Claims: []npm.Name{"acme-cli"}, Status: mirror.Status{
				Name: private, Synced: now.Add(-9 * 24 * time.Hour), Release: mirror.Release{Number: 7, Root: root, List: root, Created: now.Add(-9 * 24 * time.Hour), Packages: 31, Versions: 412},
				Record: mirror.Record{Sequence: 9, Value: root, EOL: now.Add(-2 * 24 * time.Hour)}, Stale: true, Checked: now.Add(-3 * 24 * time.Hour),
				Error: "no valid IPNS record found: node: no record of " + private, Requests: 214, Started: now.Add(-5 * 24 * time.Hour),
				Node: &ipfs.Info{Agent: "registry-mirror/1.0", Network: ipfs.LAN},
			}},
			{Registry: "npm", Status: mirror.Status{
				Name: public, Synced: now.Add(-2 * time.Hour), Release: release, Record: record, Checked: now.Add(-4 * time.Second),
				Requests: 184213, Started: now.Add(-5 * 24 * time.Hour), IntegrityFailures: 1, Gateways: 2,
				Node: &ipfs.Info{Agent: "registry-mirror/1.0", Peers: 23, Network: ipfs.Public},
				BytesBySource: mirror.BytesBySource{
					Tarballs:    mirror.Bytes{Cache: 9 << 30, Bitswap: 1 << 30, CAR: 600 << 20, Upstream: 300 << 20},
					Documents:   mirror.Bytes{Cache: 700 << 20, Bitswap: 90 << 20, CAR: 12 << 20},
					Directories: mirror.Bytes{Cache: 80 << 20, Bitswap: 9 << 20, CAR: 1 << 20},
				},
			}},
		},
		Overlaps: []mirror.Overlap{{Name: "@acme/thing", Claim: "acme", Open: "npm"}},
		Cache:    &mirror.CacheStatus{Bytes: 11 << 30, Bound: 20 << 30, Pins: 3},
	}
}

func (registry) Search(_ context.Context, text string, _, _ int) (hits mirror.Hits, err error) {
	for _, f := range []mirror.Hit{
		{Name: "left-pad", Version: "1.3.0", Description: "String left pad", Date: "2018-04-09T00:47:29Z"},
		{Name: "pad-left", Version: "2.1.0", Description: "<script>document.title='pwned'</script> pads <b id=pwned>left</b>", Date: "2016-11-02T10:00:00Z"},
		{Name: "@acme/a-name-that-is-as-long-as-names-of-packages-come-and-then-somewhat-longer-left", Version: "0.0.1-alpha.20261126.1", Date: "none"},
	} {
		if strings.Contains(string(f.Name), text) {
			hits.Hits = append(hits.Hits, f)
		}
	}
	hits.Total = len(hits.Hits)
	return hits, nil
}

func (registry) Account(_ context.Context, name npm.Name, version string, _ bool) (mirror.Account, error) {
	now := time.Now()
	a := mirror.Account{
		Name: name, Version: version, State: mirror.Served, Why: "release 42 lists it",
		Owner:   mirror.Owner{Registry: "npm", Address: public, Because: "nobody claims the name, and of the open registries this is the first that lists it"},
		Release: &mirror.Release{Number: 42, Root: root, Created: now.Add(-3 * time.Hour)},
		Checks: []mirror.Check{
			{What: "record", Result: mirror.Passed, Detail: "sequence 57, signed by the key of " + public},
			{What: "list", Result: mirror.Passed, Detail: "rebuilt here from 5013492 packages, it has the CID that is asked for"},
		},
	}
	if name != "left-pad" && name != "hostile" {
		a.State, a.Why = mirror.Unlisted, "release 42 does not list it"
		return a, nil
	}
	a.Since = &mirror.Since{Number: 3, Created: now.Add(-400 * 24 * time.Hour)}
	a.Tags = map[string]string{"latest": "1.3.0", "next": "2.0.0-rc.1"}
	for _, v := range []string{"2.0.0-rc.1", "1.3.0", "1.1.3", "1.1.2", "1.0.0"} {
		a.Versions = append(a.Versions, mirror.Listed{Version: v, Published: "2018-04-09T00:47:29Z", CID: tarball})
	}
	a.Versions[4].Deprecated = "use String.prototype.padStart()"
	a.NotListed = []mirror.Held{
		{Version: "1.2.0", Reason: "integrity", Detail: "tarball does not match its integrity: want sha512-XI5MPzVNApjAyhQzphX8BkmKsKUxD4LdyK24iZeQGinB, have sha512-AAAA"},
		{Version: "0.0.9", Detail: "upstream dates it"}, {Version: "0.0.3", Detail: "upstream dates it"},
	}
	a.Manifest = &mirror.About{
		Description: "String left pad", License: "WTFPL", Homepage: "https://left-pad.example.org/", Repository: "git+https://git.example.org/left-pad.git",
		Keywords: []string{"leftpad", "left", "pad", "padding"}, Maintainers: []string{"azer"}, Published: "2018-04-09T00:47:29Z", Unpacked: 9756, Scripts: true,
		Deprecated: "use String.prototype.padStart()",
		Dependencies: []mirror.Requirement{
			{Name: "repeat-string", Range: "^1.6.1"}, {Name: "is-odd", Range: ">=3 <4"}, {Name: "react", Range: "*", Kind: "peer"}, {Name: "fsevents", Range: "~2.3.2", Kind: "optional"},
		},
	}
	if version == "1.2.0" {
		a.State, a.Why = mirror.Withheld, "integrity: tarball does not match its integrity"
		return a, nil
	}
	a.Version, a.Readme = "1.3.0", readme
	a.Directory, a.Document = root, tarball
	a.Checks = append(a.Checks,
		mirror.Check{What: "blocks", Result: mirror.Passed, Detail: "each is checked against its CID when it comes"},
		mirror.Check{What: "integrity", Result: mirror.Passed, Detail: "the bytes matched sha512-XI5MPzVNApjAyhQzphX8BkmKsKUxD4LdyK24iZeQGinB0+iYBMjAZ8n1XGdSMEe0sQYZ9CwsnsyrCaMt8wZfAA== here"},
		mirror.Check{What: "signature", Result: mirror.Passed, Detail: "by npm's key SHA256:jl3bwswu80PjjokCgh0o2w5c2U4LhQAE57gj9cz1kzA"})
	a.Tarball = &mirror.Tarball{
		File: "left-pad-1.3.0.tgz", CID: tarball, Size: 3619, Here: true, Shasum: "5b8a3a7765dfe001261dde915589e782f8c94d1e",
		Integrity: "sha512-XI5MPzVNApjAyhQzphX8BkmKsKUxD4LdyK24iZeQGinB0+iYBMjAZ8n1XGdSMEe0sQYZ9CwsnsyrCaMt8wZfAA==",
		Arrivals:  []mirror.Arrival{{Source: "bitswap", At: now.Add(-50 * time.Hour)}, {Source: "car", From: "https://gateway.example.org", At: now.Add(-50 * time.Hour)}},
	}
	a.Signature = &mirror.Signature{Verdict: npm.Verified, Keys: []string{"SHA256:jl3bwswu80PjjokCgh0o2w5c2U4LhQAE57gj9cz1kzA"}, Ring: "npm", Attestations: true}
	if name == "hostile" {
		a.Readme = hostile
		a.Manifest.Description = `"><script src=/marker></script><b id=pwned>`
		a.Manifest.Homepage = "javascript:fetch('/marker')"
		a.Manifest.Keywords = []string{"</title><script>pwned=1</script>", strings.Repeat("long", 60)}
		a.Tags["<img src=/marker>"] = "1.3.0"
	}
	return a, nil
}

const readme = `<p align="center"><a href="https://left-pad.example.org"><img src="https://left-pad.example.org/logo.svg" alt="left-pad" width="300"></a></p>

# left-pad

String left pad. [![Build](https://ci.example.org/badge.svg)](https://ci.example.org/left-pad) ![coverage](https://ci.example.org/cover.svg)

## Install

` + "```sh\n$ npm install left-pad\n```" + `

## Usage

` + "```js\nconst leftPad = require('left-pad')\n\nleftPad('foo', 5)        // => \"  foo\"\nleftPad('foobar', 6)     // => \"foobar\"\nleftPad(1, 2, '0')       // => \"01\", and a line that is so long that it has to be scrolled on every screen there is\n```" + `

| Argument | Type | Meaning |
|---|---|---|
| ` + "`str`" + ` | string | what is padded |
| ` + "`len`" + ` | number | how long it shall be, *at least* |

- one, with **emphasis**
- two, with a [link](https://example.org/docs) and a relative [one](docs/usage.md)
  1. nested
  2. further

> **NOTE:** ~~deprecated~~ see <https://developer.example.org>.
`

// hostile tries all that a readme could: with what runs, loads, moves or covers.
var hostile = `<script>fetch("/marker");document.title="pwned";pwned=1</script>
<script src="/marker"></script>
<img src="/marker" onerror="fetch('/marker')">
<svg onload="fetch('/marker')"><script>fetch("/marker")</script><image href="/marker"/></svg>
<style>@import url(/marker); body { display: none } a::before { content: url(/marker) }</style>
<link rel="stylesheet" href="/marker">
<iframe src="/marker" srcdoc="<script>parent.pwned=1</script>"></iframe>
<object data="/marker"></object><embed src="/marker"><video src="/marker" autoplay></video>
<meta http-equiv="refresh" content="3;url=/marker">
<base href="/marker/"><form action="/marker"><input autofocus onfocus="fetch('/marker')" name=q></form>
<b id="pwned" style="position:fixed;inset:0">covers all</b>

# What was meant to be <b id="pwned">read</b> <img src=/marker onerror=fetch('/marker')>

[script](javascript:fetch('/marker')) [data](data:text/html,<script>fetch('/marker')</script>) [mixed](JaVaScRiPt:fetch("/marker"))
[vb](vbscript:x) [file](file:///etc/passwd) [relative](/marker) ![shown](/marker) ![there](http://127.0.0.1:9/marker.png)
<javascript:fetch('/marker')> <a href="javascript:fetch('/marker')" onclick="fetch('/marker')">link</a>
[ref]

[ref]: javascript:fetch('/marker') "onmouseover=fetch('/marker')"

<details open ontoggle="fetch('/marker')"><summary>Open</summary>text that is read</details>

` + "```\"onmouseover=\"fetch('/marker')\n</code></pre><script>fetch('/marker')</script>\n```" + `

| <img src=/marker> | b |
|---|---|
| <svg/onload=fetch('/marker')> | [x](javascript:fetch('/marker')) |

&lt;script&gt;fetch("/marker")&lt;/script&gt; <!-- --!><img src=/marker> -->

` + strings.Repeat("> ", 15) + "deep\n"
