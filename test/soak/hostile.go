//go:build linux

package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/registry-mirror/registry-mirror/internal/ledger"
	"github.com/registry-mirror/registry-mirror/internal/npm"
	"github.com/registry-mirror/registry-mirror/internal/npm/npmtest"
)

// evil is one way to do harm, in a package of its own, and what must come of it.
type evil struct {
	about string
	name  string // of the package; its version 1.0.0 is looked at, unless another is named
	// edit changes the document, packument and tarball answer in its place or
	// the tarball's; nil leaves that to the registry.
	edit      func(doc string) string
	packument http.HandlerFunc
	tarball   http.HandlerFunc
	before    bool   // the package was stored before it turned evil
	version   string // "" is 1.0.0, "-" the package itself
	want      string // "stored …", "refused: REASON" or "waiting"
}

const (
	good     = 200
	doomed   = 30 // packages that go all at once
	removals = 20 // of which so many may
	largest  = 8 << 20
)

// hostile is the scenario of that name: a table of what a registry could do to its
// follower, beside good packages, which must not suffer.
func hostile(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("soak hostile", flag.ContinueOnError)
	if err := parse(flags, args); err != nil {
		return err
	}
	return inWork(ctx, func(dir string) error { return hostileIn(ctx, dir) })
}

func hostileIn(ctx context.Context, dir string) error {
	began := time.Now()
	key, err := newSigner()
	if err != nil {
		return err
	}
	cases := evils(key)
	var archive strings.Builder
	add := func(name string) { fmt.Fprintf(&archive, "-- %s@1.0.0/index.js --\n// %s\n", name, name) }
	for i := range good {
		add(fmt.Sprintf("good-%03d", i))
	}
	for i := range doomed {
		add(fmt.Sprintf("doomed-%02d", i))
	}
	for _, c := range cases {
		if c.before {
			add(c.name)
		}
	}
	reg, err := npmtest.Start("127.0.0.1:0", archive.String())
	if err != nil {
		return err
	}
	defer reg.Close()
	reg.Fault("/-/npm/v1/keys", key.serve)
	f, err := newFollower(ctx, dir, "state", reg.URL, reg.FeedURL, "--node", "embedded")
	if err != nil {
		return err
	}
	f.flags = []string{"--max-tarball", fmt.Sprint(largest), "--confirm-over", "1s", "--max-removals", fmt.Sprint(removals)}
	if err := f.once(ctx); err != nil {
		return err
	}
	say("%d good packages are stored; now %d that mean harm, and %d deletions", good, len(cases), doomed)
	for _, c := range cases {
		if err := c.arm(reg); err != nil {
			return err
		}
	}
	for i := range doomed {
		reg.Delete(fmt.Sprintf("doomed-%02d", i))
	}
	for i := range good / 2 {
		// They change at the same time, and what is evil must not hold them up.
		reg.Publish(fmt.Sprintf("-- good-%03d@1.1.0/index.js --\n", i))
	}
	p, err := f.start()
	if err != nil {
		return err
	}
	defer p.end(syscall.SIGKILL)
	if err := f.answers(ctx, p); err != nil {
		return err
	}
	// Some ends take a while; those who wait in vain are told below.
	settled := until(ctx, 30*time.Second, func() (bool, error) {
		if !p.alive() {
			return false, fmt.Errorf("the follower ended: %s", f.logTail())
		}
		ok := true
		err := f.asking(func(c *ledger.Client) error {
			for _, e := range cases {
				got, err := e.came(ctx, c)
				if err != nil {
					return err
				}
				ok = ok && e.is(got)
			}
			s, err := c.Status(ctx)
			ok = ok && s.Counts.Deleted == removals && s.Reasons[ledger.ReasonMassRemoval] == doomed-removals
			return err
		})
		return ok, err
	})
	if !p.alive() || ctx.Err() != nil {
		return settled
	}

	var errs []error
	mismatch := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "case\twant\tledger\trequests\tok")
	err = f.asking(func(c *ledger.Client) error {
		for _, e := range cases {
			got, err := e.came(ctx, c)
			if err != nil {
				return err
			}
			requests := reg.Requests("/"+npm.Name(e.name).Escape()) + reg.Requests("/"+e.name+"/-/"+e.name+"-1.0.0.tgz")
			fmt.Fprintf(table, "%s\t%s\t%s\t%d\t%s\n", e.about, e.want, got, requests, yesNo(e.is(got)))
			if !e.is(got) {
				mismatch("%s: %s, want %s", e.about, got, e.want)
			}
			if requests == 0 && (e.packument != nil || e.tarball != nil || e.edit != nil) {
				mismatch("%s: nobody asked for it", e.about)
			}
		}
		return table.Flush()
	})
	if err != nil {
		return err
	}
	lost, err := f.goodOnes(ctx)
	if err != nil {
		return err
	}
	peak, err := memory(p.Process.Pid, "VmHWM")
	if err != nil {
		return err
	}
	s, _, err := f.status(ctx)
	if err != nil {
		return err
	}
	figure("good packages, not stored", fmt.Sprintf("%d, %d", good, len(lost)))
	figure("deletions at once", fmt.Sprintf("%d, of which %d passed and %d were held back", doomed, s.Counts.Deleted, s.Reasons[ledger.ReasonMassRemoval]))
	if len(lost) > 0 {
		mismatch("good packages were not stored: %s", few(lost))
	}
	if s.Counts.Deleted != removals || s.Reasons[ledger.ReasonMassRemoval] != doomed-removals {
		mismatch("of %d deletions at once %d passed, and %d were held back", doomed, s.Counts.Deleted, s.Reasons[ledger.ReasonMassRemoval])
	}
	if _, err := f.command(ctx, "retry", "--reason", ledger.ReasonMassRemoval); err != nil {
		return err
	}
	err = until(ctx, 20*time.Second, func() (bool, error) {
		s, _, err = f.status(ctx)
		return s.Counts.Deleted == doomed, err
	})
	figure("once approved", fmt.Sprintf("%d are gone", s.Counts.Deleted))
	if err != nil {
		mismatch("approved removals: %d of %d: %w", s.Counts.Deleted, doomed, err)
	}
	errs = append(errs, f.agree(ctx, cases))
	if !p.end(syscall.SIGTERM) {
		mismatch("the follower did not end well: %v: %s", p.ProcessState, f.logTail())
	}
	figure("peak memory", mib(peak))
	figure("duration", time.Since(began).Round(time.Second))
	return errors.Join(errs...)
}

// goodOnes lists those of the good packages that are not stored as they are.
func (f *follower) goodOnes(ctx context.Context) (lost []string, err error) {
	err = f.asking(func(c *ledger.Client) error {
		for i := range good {
			name, want := npm.Name(fmt.Sprintf("good-%03d", i)), 1
			if i < good/2 {
				want = 2
			}
			p, err := c.Package(ctx, name)
			if err != nil && !errors.Is(err, ledger.ErrNotFound) {
				return err
			}
			if p.Held != want {
				lost = append(lost, fmt.Sprintf("%s: %d versions of %d", name, p.Held, want))
			}
		}
		return nil
	})
	return lost, err
}

// agree holds what the commands say against the ledger: `why` of one item of each
// outcome, and the list of the refused, where names may be that are none.
func (f *follower) agree(ctx context.Context, cases []evil) error {
	var list struct {
		Refused []ledger.Refusal `json:"refused"`
	}
	raw, err := f.command(ctx, "refused", "--json")
	if err == nil {
		err = json.Unmarshal(raw, &list)
	}
	if err != nil {
		return err
	}
	var errs []error
	seen := map[string]bool{}
	for _, e := range cases {
		reason, refused := strings.CutPrefix(e.want, "refused: ")
		if refused && !slices.ContainsFunc(list.Refused, func(r ledger.Refusal) bool {
			return string(r.Name) == e.name && r.Version == e.item() && r.Reason == reason
		}) {
			errs = append(errs, fmt.Errorf("%s: it is not in `follower refused`", e.about))
		}
		if _, err := npm.ParseName(e.name); err != nil || seen[e.want] {
			continue
		}
		seen[e.want] = true
		raw, err := f.command(ctx, "why", item(npm.Name(e.name), e.item()), "--json")
		var why struct{ State string }
		if err == nil {
			err = json.Unmarshal(raw, &why)
		}
		state, _, _ := strings.Cut(e.want, " ")
		if want := strings.TrimSuffix(state, ":"); err != nil || want != why.State && want != "waiting" {
			errs = append(errs, fmt.Errorf("%s: `follower why` says %q, %v", e.about, why.State, err))
		}
	}
	return errors.Join(errs...)
}

func (e evil) item() string {
	switch e.version {
	case "":
		return "1.0.0"
	case "-":
		return ""
	}
	return e.version
}

// is reports whether got is what e must come to.
func (e evil) is(got string) bool { return got == e.want }

// came is what the ledger says of a case.
func (e evil) came(ctx context.Context, c *ledger.Client) (string, error) {
	version := e.item()
	refusals, err := c.Refusals(ctx, npm.Name(e.name))
	if err != nil {
		return "", err
	}
	for _, r := range refusals {
		if r.Version == version {
			return "refused: " + r.Reason, nil
		}
	}
	p, err := c.Package(ctx, npm.Name(e.name))
	if err != nil && !errors.Is(err, ledger.ErrNotFound) {
		return "", err
	}
	for _, v := range p.Versions {
		if v.Version == version {
			return strings.TrimSpace(fmt.Sprintf("stored by %s, %s", v.Proof, v.Signature)), nil
		}
	}
	rows, err := c.Queue(ctx, npm.Name(e.name))
	if err != nil {
		return "", err
	}
	for _, r := range rows {
		if r.Version == version || r.Version == "" {
			return "waiting", nil
		}
	}
	return "nothing", nil
}

// arm lets the registry do its harm.
func (e evil) arm(reg *npmtest.Registry) error {
	only := func(path string, handle http.HandlerFunc) {
		reg.Fault(path, func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.EscapedPath() != path {
				return false
			}
			handle(w, r)
			return true
		})
	}
	if e.packument != nil {
		only("/"+e.name, e.packument)
	}
	if e.tarball != nil {
		only("/"+e.name+"/-/"+e.name+"-1.0.0.tgz", e.tarball)
	}
	if _, err := npm.ParseName(e.name); err != nil {
		reg.Announce(e.name)
		return nil
	}
	if !e.before {
		if err := reg.Add(fmt.Sprintf("-- %s@1.0.0/index.js --\n// %s\n", e.name, e.name)); err != nil {
			return err
		}
	}
	if e.edit != nil {
		reg.Edit(e.name, func(doc []byte) []byte { return []byte(e.edit(string(doc))) })
	}
	return nil
}

// evils is the table.
func evils(key *signer) []evil {
	swap := func(old, with string) func(string) string {
		return func(doc string) string {
			if !strings.Contains(doc, old) {
				panic(fmt.Sprintf("%q is not in %s", old, doc)) // the table is wrong
			}
			return strings.ReplaceAll(doc, old, with)
		}
	}
	// between replaces what is from after one text up to another.
	between := func(after, upTo, with string) func(string) string {
		return func(doc string) string {
			head, rest, ok1 := strings.Cut(doc, after)
			_, tail, ok2 := strings.Cut(rest, upTo)
			if !ok1 || !ok2 {
				panic(fmt.Sprintf("%q and %q are not in %s", after, upTo, doc))
			}
			return head + after + with + upTo + tail
		}
	}
	answer := func(status int, body string, header ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			for i := 0; i < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			w.WriteHeader(status)
			io.WriteString(w, body)
		}
	}
	const integrity = `"integrity":"`
	otherSum := "sha512-" + base64.StdEncoding.EncodeToString(make([]byte, 64))
	// extra lists the version again under another one's name.
	extra := func(version string) func(string) string {
		return func(doc string) string {
			_, rest, _ := strings.Cut(doc, `"versions":{"1.0.0":`)
			var manifest json.RawMessage
			if err := json.NewDecoder(strings.NewReader(rest)).Decode(&manifest); err != nil {
				panic(err) // the table is wrong
			}
			again := strings.Replace(string(manifest), `"version":"1.0.0"`, `"version":`+version, 1)
			return strings.Replace(doc, `"versions":{`, `"versions":{`+version+`:`+again+`,`, 1)
		}
	}
	stored := "stored by sha512, unsigned"
	return []evil{
		{about: "HTML with status 200", name: "html", packument: answer(200, "<html><body>Sign in</body></html>", "Content-Type", "text/html"), version: "-", want: "waiting"},
		{about: "JSON cut off", name: "cut", edit: func(doc string) string { return doc[:len(doc)/2] }, version: "-", want: "waiting"},
		{about: "JSON cut off at a brace", name: "cut-brace", edit: func(doc string) string { return doc[:strings.IndexByte(doc, '}')+1] }, version: "-", want: "refused: packument"},
		{about: "an array", name: "array", packument: answer(200, "[]"), version: "-", want: "waiting"},
		{about: "a hundred thousand brackets", name: "deep", edit: swap(`"readme":""`, `"readme":`+strings.Repeat("[", 100_000)+strings.Repeat("]", 100_000)), version: "-", want: "refused: packument"},
		{about: "a key twice", name: "twice", edit: swap(`"dist-tags":`, `"dist-tags":{},"dist-tags":`), version: "-", want: "refused: packument"},
		{about: "a version twice", name: "version-twice", edit: swap(`"versions":{`, `"versions":{"1.0.0":{},`), version: "-", want: "refused: packument"},
		{about: "a key in two spellings", name: "folded", edit: swap(`"versions":{`, `"Versions":{},"versions":{`), version: "-", want: "refused: packument"},
		{about: "a lone surrogate in a tag", name: "surrogate", edit: swap(`"dist-tags":{`, `"dist-tags":{"\ud800":"1.0.0",`), version: "-", want: "refused: packument"},
		{about: "a lone surrogate in a readme", name: "surrogate-readme", edit: swap(`"readme":""`, `"readme":"\ud800"`), want: stored},
		{about: "__proto__ as a version", name: "proto", edit: extra(`"__proto__"`), version: "__proto__", want: "refused: manifest"},
		{about: "beside __proto__", name: "beside-proto", edit: extra(`"__proto__"`), want: stored},
		{about: "a package named constructor", name: "constructor", want: stored},
		{about: "name ../x in the feed", name: "../x", version: "-", want: "refused: name"},
		{about: "control bytes in the feed", name: "a\x00b\x1b[2J", version: "-", want: "refused: name"},
		{about: "300 letters in the feed", name: strings.Repeat("n", 300), version: "-", want: "refused: name"},
		{about: "name .hidden in the feed", name: ".hidden", version: "-", want: "refused: name"},
		{about: "node_modules in the feed", name: "node_modules", version: "-", want: "refused: name"},
		{about: "another package's document", name: "other", edit: swap(`"name":"other"`, `"name":"good-001"`), version: "-", want: "refused: packument"},
		{about: "no such package", name: "gone", packument: answer(404, `{"error":"Not found"}`), version: "-", want: "refused: not-found"},
		{about: "forbidden", name: "forbidden", packument: answer(403, `{"error":"no"}`), version: "-", want: "refused: refused"},
		{about: "always 500", name: "broken", packument: answer(500, "oh"), version: "-", want: "waiting"},
		{about: "429, in five seconds", name: "busy", packument: answer(429, "", "Retry-After", "5"), version: "-", want: "waiting"},
		{about: "a gzip bomb", name: "bomb", packument: bomb, version: "-", want: "refused: too-large"},
		{about: "a byte a second", name: "drip", packument: drip, version: "-", want: "waiting"},
		{about: "redirect to a private address", name: "inward", packument: answer(302, "", "Location", "http://10.0.0.1/x"), version: "-", want: "refused: refused"},
		{about: "redirects for ever", name: "circle", packument: answer(302, "", "Location", "/circle"), version: "-", want: "refused: refused"},
		{about: "version 1.0", name: "short-version", edit: extra(`"1.0"`), version: "1.0", want: "refused: manifest"},
		{about: "version latest", name: "tag-version", edit: extra(`"latest"`), version: "latest", want: "refused: manifest"},
		{about: "version ../../x", name: "path-version", edit: extra(`"../../x"`), version: "../../x", want: "refused: manifest"},
		{about: "a version with a NUL", name: "nul-version", edit: extra(`"1.0.0\u0000"`), version: "1.0.0\x00", want: "refused: manifest"},
		{about: "beside a bad version", name: "beside-version", edit: extra(`"../../x"`), want: stored},
		{about: "tarball cut off", name: "half", tarball: half, want: "waiting"},
		{about: "another tarball", name: "swapped", tarball: answer(200, "not what was published"), want: "refused: integrity"},
		{about: "another sha512", name: "wrong-sum", edit: between(integrity, `"`, otherSum), want: "refused: integrity"},
		{about: "sha1 alone", name: "sha1", edit: func(doc string) string {
			return strings.Replace(between(integrity, `"`, "")(doc), `"integrity":"",`, "", 1)
		}, want: "stored by sha1, unsigned"},
		{about: "no algorithm that is known", name: "md9", edit: func(doc string) string {
			return between(`"shasum":"`, `"`, "")(between(integrity, `"`, "md9-AAAA")(doc))
		}, want: "refused: no-integrity"},
		{about: "tarball on another host", name: "foreign", edit: between(`"tarball":"`, `"`, "http://192.0.2.1/foreign/-/foreign-1.0.0.tgz"), want: "refused: refused"},
		{about: "tarball path that climbs", name: "climbs", edit: swap("/climbs/-/", "/a/%2e%2e/climbs/-/"), want: "refused: refused"},
		{about: "tarball redirects inward", name: "inward-tar", tarball: answer(302, "", "Location", "http://169.254.169.254/latest"), want: "refused: refused"},
		{about: "an endless tarball", name: "endless", tarball: endless, want: "refused: too-large"},
		{about: "a tarball of 1 GiB, it says", name: "long", tarball: answer(200, "x", "Content-Length", "1073741824"), want: "refused: too-large"},
		{about: "other bytes for a held version", name: "changed", before: true, edit: between(integrity, `"`, otherSum), want: "refused: integrity-changed"},
		{about: "a good signature", name: "signed", edit: key.sign("signed", key.id, true), want: "stored by sha512, verified"},
		{about: "a signature that does not verify", name: "forged", edit: key.sign("forged", key.id, false), want: "refused: signature"},
		{about: "a signature by a stranger", name: "stranger", edit: key.sign("stranger", "SHA256:stranger", true), want: "stored by sha512, unknown key"},
	}
}

// bomb is 256 MiB of blanks in some 256 KiB.
func bomb(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Encoding", "gzip")
	zw := gzip.NewWriter(w)
	defer zw.Close()
	zw.Write([]byte("{"))
	blanks := bytes.Repeat([]byte(" "), 1<<20)
	for i := 0; i < 256 && r.Context().Err() == nil; i++ {
		if _, err := zw.Write(blanks); err != nil {
			return
		}
	}
}

func drip(w http.ResponseWriter, r *http.Request) {
	for {
		if _, err := w.Write([]byte("{")); err != nil {
			return
		}
		http.NewResponseController(w).Flush()
		if rest(r.Context(), time.Second) != nil {
			return
		}
	}
}

func half(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Length", "4000")
	w.Write(make([]byte, 2000))
	http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}

func endless(w http.ResponseWriter, r *http.Request) {
	for block := make([]byte, 1<<20); r.Context().Err() == nil; {
		if _, err := w.Write(block); err != nil {
			return
		}
	}
}

// signer is a registry's signing key.
type signer struct {
	id      string
	private *ecdsa.PrivateKey
	listing []byte
}

func newSigner() (*signer, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKIXPublicKey(&private.PublicKey)
	if err != nil {
		return nil, err
	}
	k := &signer{id: "SHA256:of-the-test", private: private}
	k.listing, err = json.Marshal(map[string]any{"keys": []map[string]any{{
		"keyid": k.id, "keytype": "ecdsa-sha2-nistp256", "scheme": "ecdsa-sha2-nistp256", "expires": nil,
		"key": base64.StdEncoding.EncodeToString(der),
	}}})
	return k, err
}

func (k *signer) serve(w http.ResponseWriter, _ *http.Request) bool {
	w.Header().Set("Content-Type", "application/json")
	w.Write(k.listing)
	return true
}

// sign puts a signature into the document of a package, by the key with that id;
// one over other bytes where it shall not verify.
func (k *signer) sign(name, id string, verifies bool) func(string) string {
	return func(doc string) string {
		_, rest, _ := strings.Cut(doc, `"integrity":"`)
		integrity, _, _ := strings.Cut(rest, `"`)
		text := name + "@1.0.0:" + integrity
		if !verifies {
			text += "?"
		}
		sum := sha256.Sum256([]byte(text))
		sig, err := ecdsa.SignASN1(rand.Reader, k.private, sum[:])
		if err != nil {
			panic(err) // of a key of our own
		}
		return strings.Replace(doc, `"dist":{`, fmt.Sprintf(`"dist":{"signatures":[{"keyid":%q,"sig":%q}],`, id, base64.StdEncoding.EncodeToString(sig)), 1)
	}
}
