package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// operations are the rows of the table, in order.
var operations = []string{
	"install", "ci", "add", "view", "outdated", "dist-tag ls", "search", "audit", "audit signatures", "ping", "publish", "behind a proxy", "earlier release", "use and unuse", "portable lock",
}

var operate = map[string]func(*cell) error{
	"install": doInstall, "ci": doCI, "add": doAdd, "view": doView, "outdated": doOutdated, "dist-tag ls": doTags,
	"search": doSearch, "audit": doAudit, "audit signatures": doSignatures, "ping": doPing, "publish": doPublish,
	"behind a proxy": doProxied, "earlier release": doEarlier, "use and unuse": doUse, "portable lock": doPortable,
}

var (
	frozen = map[string][]string{
		"npm": {"ci"}, "pnpm10": {"install", "--frozen-lockfile"}, "pnpm": {"install", "--frozen-lockfile"},
		"yarn1": {"install", "--frozen-lockfile"}, "berry": {"install", "--immutable"}, "bun": {"install", "--frozen-lockfile"},
	}
	lockfile = map[string]string{
		"npm": "package-lock.json", "pnpm10": "pnpm-lock.yaml", "pnpm": "pnpm-lock.yaml",
		"yarn1": "yarn.lock", "berry": "yarn.lock", "bun": "bun.lock",
	}
)

// lacks is what a client says of a command that it does not have.
func lacks(x *cell, why string, words []string, args ...string) error {
	s, err := x.run(args...)
	if err != nil {
		return err
	}
	for _, word := range words {
		if s.code != 0 && strings.Contains(strings.ToLower(s.all), word) {
			return impossibility(why)
		}
	}
	return fmt.Errorf("%s was to have no such command; it ended with %d:\n%s", strings.Join(args, " "), s.code, tail(s.all))
}

var noCommand = []string{"not found", "couldn't find a script", "unknown syntax", "script not found", "no such"}

// has says that each part is in what was printed, in any order.
func has(s string, parts ...string) error {
	for _, part := range parts {
		if !strings.Contains(s, part) {
			return fmt.Errorf("%q is not in what was printed:\n%s", part, tail(s))
		}
	}
	return nil
}

// loads runs what was installed.
func (x *cell) loads(want string, expression string) error {
	s, err := x.exec(filepath.Join(x.house.node(), "node"), "-p", expression)
	if err == nil && strings.TrimSpace(s.out) != want {
		err = fmt.Errorf("%s gives %q, want %q\n%s", expression, strings.TrimSpace(s.out), want, tail(s.all))
	}
	return err
}

const (
	bothOf  = "require('@scope/twig') + ', ' + require('leaf')"
	allRuns = "twig of branch of leaf 1.1.0, leaf 1.1.0"
)

// installed is a project with the packages in it.
func (x *cell) installed() error {
	if err := x.manifest("leaf@^1.0.0", "@scope/twig@0.1.0"); err != nil {
		return err
	}
	if _, err := x.must("install"); err != nil {
		return err
	}
	return x.loads(allRuns, bothOf)
}

func doInstall(x *cell) error {
	if err := x.installed(); err != nil {
		return err
	}
	_, err := os.Stat(filepath.Join(x.project, lockfile[x.c.family]))
	return err
}

// doProxied installs through a proxy on another port, under a path of its own.
func doProxied(x *cell) error {
	x.host, x.base = x.reg.front.host, "/npm/"
	if err := x.fresh(); err != nil {
		return err
	}
	before := x.reg.front.asked.Load()
	if err := x.installed(); err != nil {
		return err
	}
	// Three packages, a document and a tarball each.
	if n := x.reg.front.asked.Load() - before; n < 6 {
		return fmt.Errorf("%d requests came by the proxy: the others went around it", n)
	}
	return nil
}

// doEarlier installs by the registry's URL as of an earlier release, and then by its own.
func doEarlier(x *cell) error {
	for _, at := range []struct{ base, want string }{{"/-/at/1/", "sapling 1.0.0"}, {"/", "sapling 1.1.0"}} {
		x.base = at.base
		if err := errors.Join(x.fresh(), x.manifest("sapling@^1.0.0", "@scope/twig@0.1.0")); err != nil {
			return err
		}
		if _, err := x.must("install"); err != nil {
			return err
		}
		if err := x.loads(at.want+", twig of branch of leaf 1.1.0", "require('sapling') + ', ' + require('@scope/twig')"); err != nil {
			return fmt.Errorf("by %s: %w", x.url(), err)
		}
	}
	return nil
}

// doCI installs from a lockfile alone, on what is another machine.
func doCI(x *cell) error {
	if err := x.installed(); err != nil {
		return err
	}
	file := lockfile[x.c.family]
	lock, err := x.read(file)
	if err != nil {
		return err
	}
	manifest, err := x.read("package.json")
	if err != nil {
		return err
	}
	if err := x.fresh(); err != nil {
		return err
	}
	if err := errors.Join(x.write("package.json", manifest), x.write(file, lock)); err != nil {
		return err
	}
	if _, err := x.must(frozen[x.c.family]...); err != nil {
		return err
	}
	after, err := x.read(file)
	if err == nil && after != lock {
		err = fmt.Errorf("it changed %s", file)
	}
	return errors.Join(err, x.loads(allRuns, bothOf))
}

// doAdd adds a package of a scope, and another by its tag.
func doAdd(x *cell) error {
	if err := x.manifest(); err != nil {
		return err
	}
	add := "add"
	if x.c.family == "npm" {
		add = "install"
	}
	if _, err := x.must(add, "@scope/twig", "leaf@old"); err != nil {
		return err
	}
	manifest, err := x.read("package.json")
	if err != nil {
		return err
	}
	if err := has(manifest, `"@scope/twig"`, `"leaf"`); err != nil {
		return err
	}
	return x.loads("leaf 1.0.0", "require('leaf')")
}

func doView(x *cell) error {
	if err := x.manifest(); err != nil {
		return err
	}
	view := map[string][]string{
		"npm": {"view", "leaf", "--json"}, "pnpm10": {"view", "leaf", "--json"}, "pnpm": {"view", "leaf", "--json"},
		"yarn1": {"info", "leaf", "--json"}, "berry": {"npm", "info", "leaf", "--json"}, "bun": {"info", "leaf", "--json"},
	}[x.c.family]
	s, err := x.must(view...)
	if err != nil {
		return err
	}
	if err := has(s.out, `"1.0.0"`, `"1.1.0"`, `"2.0.0"`, "A leaf of the matrix", "http://"+x.host+"/leaf/-/leaf-2.0.0.tgz"); err != nil {
		return err
	}
	i := len(view) - 2
	view[i] = "@scope/twig@0.1.0"
	if s, err = x.must(view...); err != nil {
		return err
	}
	return has(s.out, "@scope/twig", `"0.1.0"`, "branch")
}

// doOutdated asks with what is installed; most clients end with 1 where
// something is outdated.
func doOutdated(x *cell) error {
	if x.c.family == "berry" {
		if err := x.manifest(); err != nil {
			return err
		}
		if _, err := x.must("install"); err != nil {
			return err
		}
		return lacks(x, "yarn 4 has no such command; its own way is interactive (upgrade-interactive)", noCommand, "outdated")
	}
	if err := x.installed(); err != nil {
		return err
	}
	s, err := x.run("outdated")
	if err != nil {
		return err
	}
	if s.code != 1 && !(x.c.family == "bun" && s.code == 0) {
		return fmt.Errorf("outdated ended with %d:\n%s", s.code, tail(s.all))
	}
	return has(s.out, "leaf", "1.1.0", "2.0.0")
}

func doTags(x *cell) error {
	if err := x.manifest(); err != nil {
		return err
	}
	if x.c.family == "bun" {
		return lacks(x, "bun has no such command", noCommand, "dist-tag", "ls", "leaf")
	}
	s, err := x.must(map[string][]string{
		"npm": {"dist-tag", "ls", "leaf"}, "pnpm10": {"dist-tag", "ls", "leaf"}, "pnpm": {"dist-tag", "ls", "leaf"},
		"yarn1": {"tag", "list", "leaf"}, "berry": {"npm", "tag", "list", "leaf"},
	}[x.c.family]...)
	if err != nil {
		return err
	}
	return has(s.out, "latest", "2.0.0", "old", "1.0.0")
}

func doSearch(x *cell) error {
	if err := x.manifest(); err != nil {
		return err
	}
	switch x.c.family {
	case "yarn1":
		return lacks(x, "yarn 1 has no such command", noCommand, "search", "leaf")
	case "berry":
		return impossibility("yarn 4 searches a service of its own, and only interactively")
	case "bun":
		return lacks(x, "bun has no such command", noCommand, "search", "leaf")
	}
	s, err := x.must("search", "leaf", "--json")
	if err != nil {
		return err
	}
	if err := has(s.out, `"leaf"`, `"2.0.0"`, "A leaf of the matrix"); err != nil {
		return err
	}
	if s, err = x.must("search", "leaf"); err != nil {
		return err
	}
	return has(s.out, "leaf", "2.0.0", "A leaf of the matrix")
}

func doAudit(x *cell) error {
	if err := x.installed(); err != nil {
		return err
	}
	switch x.c.family {
	case "yarn1":
		x.reg.beyond.take()
		if _, err := x.run("audit"); err != nil {
			return err
		}
		if hosts := x.reg.beyond.take(); len(hosts) == 0 {
			return errors.New("yarn 1 was to ask yarn's own registry and asked no other host")
		}
		return impossibility("yarn 1 asks yarn's own registry, whatever registry is configured")
	case "berry":
		s, err := x.must("npm", "audit", "--all", "--recursive")
		if err != nil {
			return err
		}
		return has(s.all, "No audit suggestions")
	}
	s, err := x.must("audit")
	if err != nil {
		return err
	}
	if x.c.family == "npm" {
		if !strings.Contains(s.all, "holds no advisories") {
			return fmt.Errorf("npm was to be told that nothing was audited:\n%s", tail(s.all))
		}
	}
	return has(strings.ToLower(s.all), map[string]string{
		"npm": "found 0 vulnerabilities", "pnpm10": "no known vulnerabilities", "pnpm": "no known vulnerabilities", "bun": "no vulnerabilities",
	}[x.c.family])
}

// withoutTUF makes npm's look-up of keys at sigstore's TUF repository, which is
// on another host, find none, as it does for every registry but npm's. npm then
// asks the registry.
const withoutTUF = `const Module = require('node:module')
const load = Module._load
Module._load = function (request, ...rest) {
  if (request !== '@sigstore/tuf') return load.call(this, request, ...rest)
  const getTarget = async () => { throw Object.assign(new Error('no such target'), { code: 'TUF_FIND_TARGET_ERROR' }) }
  return { ...load.call(this, request, ...rest), initTUF: async () => ({ getTarget }) }
}
`

func doSignatures(x *cell) error {
	switch x.c.family {
	case "yarn1", "berry", "bun":
		return impossibility(x.c.bin + " " + x.c.version + " has no such command")
	}
	if err := x.installed(); err != nil {
		return err
	}
	switch x.c.family {
	case "pnpm10":
		s, err := x.run("audit", "signatures", "--help")
		if err != nil {
			return err
		}
		if strings.Contains(s.all, "signature") {
			return errors.New("pnpm 10 was to know no signatures")
		}
		return impossibility("pnpm 10 has no such command")
	case "npm":
		file := filepath.Join(x.dir, "without-tuf.cjs")
		if err := os.WriteFile(file, []byte(withoutTUF), 0o644); err != nil {
			return err
		}
		x.more = append(x.more, "NODE_OPTIONS=--require="+file)
		x.note = "sigstore's TUF repository, which npm asks first, was answered for; the keys and signatures are the mirror's"
	}
	s, err := x.must("audit", "signatures")
	if err != nil {
		return err
	}
	return has(s.all, "3 packages have verified registry signatures")
}

func doPing(x *cell) error {
	if err := x.manifest(); err != nil {
		return err
	}
	switch x.c.family {
	case "berry": // which looks at the project first
		if _, err := x.must("install"); err != nil {
			return err
		}
		fallthrough
	case "yarn1", "bun":
		return lacks(x, x.c.bin+" "+x.c.version+" has no such command", noCommand, "ping")
	}
	s, err := x.must("ping")
	if err != nil {
		return err
	}
	return has(s.all, x.host, "PONG")
}

// doPublish must be refused at once and in words.
func doPublish(x *cell) error {
	if err := errors.Join(x.write("package.json", `{"name":"mine","version":"1.0.0"}`), x.write("index.js", "")); err != nil {
		return err
	}
	if x.c.family == "berry" {
		if _, err := x.must("install"); err != nil {
			return err
		}
	}
	s, err := x.run(map[string][]string{
		"npm": {"publish"}, "pnpm10": {"publish", "--no-git-checks"}, "pnpm": {"publish", "--no-git-checks"},
		"yarn1": {"publish", "--non-interactive", "--new-version", "1.0.0"}, "berry": {"npm", "publish"}, "bun": {"publish"},
	}[x.c.family]...)
	if err != nil {
		return err
	}
	if s.code == 0 {
		return fmt.Errorf("it was published:\n%s", tail(s.all))
	}
	return has(s.all, "read-only mirror")
}
