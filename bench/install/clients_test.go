package main

import (
	"slices"
	"testing"
)

func TestClientsNamed(t *testing.T) {
	for _, c := range []struct {
		list string
		want []string
	}{
		{"npm", []string{"npm"}},
		{"bun,pnpm", []string{"bun", "pnpm"}},
		{"npm,yarn", nil},
		{"", nil},
	} {
		got, err := clientsNamed(c.list)
		var names []string
		for _, g := range got {
			names = append(names, g.name)
		}
		if (err != nil) != (c.want == nil) || !slices.Equal(names, c.want) {
			t.Errorf("%q: %v, %v; want %v", c.list, names, err, c.want)
		}
	}
}

// TestProgram holds that what a client keeps lies below its directory, which is
// new for each install.
func TestProgram(t *testing.T) {
	b := &bench{dir: "/run"}
	for _, c := range clients {
		cmd := b.program(t.Context(), c, "/run/project", c.install)
		if cmd.Dir != "/run/project" {
			t.Errorf("%s runs in %s", c.name, cmd.Dir)
		}
		all := slices.Concat(cmd.Args[1:], cmd.Env)
		if !slices.ContainsFunc(all, func(s string) bool {
			return s == "/run/project/.cache" || s == "--config.cache-dir=/run/project/.cache" || s == "BUN_INSTALL_CACHE_DIR=/run/project/.cache"
		}) {
			t.Errorf("%s has no cache of its own: %q", c.name, cmd.Args)
		}
	}
}
