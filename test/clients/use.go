package main

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
)

// useName is what `registry-mirror use` calls a family.
var useName = map[string]string{"npm": "npm", "pnpm10": "pnpm", "pnpm": "pnpm", "yarn1": "yarn1", "berry": "yarn", "bun": "bun"}

// elsewhere stands for the URL of a registry that has no package.
const elsewhere = "http://elsewhere/"

// own is the configuration that a client has before use, with what has to come back:
// comments, ends of lines, a last line without one.
var own = map[string]map[string]string{
	"npm":    {".npmrc": "; mine\r\nregistry=" + elsewhere + "\r\n//127.0.0.1:9/:_authToken=token-of-the-matrix\r\nfund=false"},
	"pnpm10": {".npmrc": "# mine\nregistry = \"" + elsewhere + "\"\n\n"},
	"pnpm":   {".npmrc": "registry=" + elsewhere + "\n# mine"},
	"yarn1":  {".yarnrc": "# mine\nregistry \"" + elsewhere + "\"\nlastUpdateCheck 4102444800000"},
	"berry": {".yarnrc.yml": "# mine\nnodeLinker: node-modules\nnpmRegistryServer: " + strings.TrimSuffix(elsewhere, "/") + " # here\n\nunsafeHttpWhitelist:\n    - a.example.test\n" +
		"enableTelemetry: false\nenableColors: false"},
	"bun": {"bunfig.toml": "# mine\n[install]\nexact = false\nregistry = { url = \"" + elsewhere + "\", token = \"token-of-the-matrix\" }\n[run]\nsilent = true"},
}

// configured is fresh, with the client's own configuration and no other.
func (x *cell) configured() error {
	if err := x.fresh(); err != nil {
		return err
	}
	for _, name := range []string{".npmrc", ".yarnrc", ".yarnrc.yml"} {
		if err := os.Remove(filepath.Join(x.project, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for name, text := range own[x.c.family] {
		text = strings.ReplaceAll(text, strings.TrimSuffix(elsewhere, "/"), "http://"+x.reg.front.host+"/elsewhere")
		if err := x.write(name, text); err != nil {
			return err
		}
	}
	return nil
}

// mirror runs registry-mirror in the project.
func (x *cell) mirror(args ...string) error {
	s, err := x.exec(x.reg.program, append(args, "--state", filepath.Join(x.home, "state"))...)
	if err == nil && s.code != 0 {
		err = fmt.Errorf("registry-mirror %s ended with %d:\n%s", strings.Join(args, " "), s.code, tail(s.all))
	}
	return err
}

// configuration is what lies in project and home before a client did anything.
func (x *cell) configuration() (map[string]string, error) {
	all := map[string]string{}
	for _, dir := range []string{x.project, x.home} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if !strings.Contains(e.Name(), "rc") && e.Name() != "bunfig.toml" {
				continue
			}
			raw, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil {
				return nil, err
			}
			all[filepath.Join(filepath.Base(dir), e.Name())] = string(raw)
		}
	}
	return all, nil
}

// doUse installs between use and unuse, of the project and of the user, which leave no
// byte behind.
func doUse(x *cell) error {
	name := useName[x.c.family]
	x.host, x.base = x.reg.other.host, "/" // where requests are counted
	for _, user := range []bool{false, true} {
		if err := x.configured(); err != nil {
			return err
		}
		use, unuse := []string{"use", name, "--registry", x.url()}, []string{"unuse"}
		if user {
			use, unuse = append(use, "--user"), append(unuse, "--user")
			for file := range own[x.c.family] {
				if err := os.Remove(filepath.Join(x.project, file)); err != nil {
					return err
				}
			}
			if x.c.family == "berry" { // where its packages go is the project's
				if err := x.write(".yarnrc.yml", "nodeLinker: node-modules\nenableTelemetry: false\nenableColors: false\n"); err != nil {
					return err
				}
			}
			// bun reads its own file of a user where XDG_CONFIG_HOME says.
			x.more = []string{"XDG_CONFIG_HOME=" + x.home}
		}
		if err := x.manifest("leaf@^1.0.0", "@scope/twig@0.1.0"); err != nil {
			return err
		}
		before, err := x.configuration()
		if err != nil {
			return err
		}
		if !user {
			// Without it there is nothing to be had: the client asks where its own file says.
			if s, err := x.run("install"); err != nil || s.code == 0 {
				return fmt.Errorf("it installed without use: %v\n%s", err, tail(s.all))
			}
		}
		if err := x.mirror(use...); err != nil {
			return err
		}
		asked := x.reg.other.asked.Load()
		if err := x.installed(); err != nil {
			return err
		}
		if n := x.reg.other.asked.Load() - asked; n < 6 {
			return fmt.Errorf("%d requests came to the mirror: the others went around it", n)
		}
		if err := x.mirror(unuse...); err != nil {
			return err
		}
		after, err := x.configuration()
		if err != nil {
			return err
		}
		if !maps.Equal(before, after) {
			return fmt.Errorf("the configuration was %q, and is %q", before, after)
		}
	}
	return nil
}

// doPortable makes a lockfile by the mirror and installs by it, on what is another
// machine, by a mirror at another address.
func doPortable(x *cell) error {
	first := x.host
	if err := x.configured(); err != nil {
		return err
	}
	if err := x.manifest(); err != nil {
		return err
	}
	if err := x.mirrored(); err != nil {
		return err
	}
	if err := x.installed(); err != nil {
		return err
	}
	file := lockfile[x.c.family]
	lock, err := x.read(file)
	if err != nil {
		return err
	}
	named := strings.Contains(lock, first)
	switch x.c.family {
	case "yarn1", "bun":
		if !named {
			return fmt.Errorf("%s was to name the mirror", file)
		}
		return impossibility(x.c.bin + " " + x.c.version + " writes the address that a tarball came from into " + file)
	}
	if named {
		return fmt.Errorf("%s names the mirror:\n%s", file, lock)
	}
	manifest, err := x.read("package.json")
	if err != nil {
		return err
	}
	x.host, x.base = x.reg.other.host, "/"
	if err := x.configured(); err != nil {
		return err
	}
	if err := errors.Join(x.write("package.json", manifest), x.write(file, lock)); err != nil {
		return err
	}
	if err := x.mirrored(); err != nil {
		return err
	}
	asked := x.reg.other.asked.Load()
	if _, err := x.must(frozen[x.c.family]...); err != nil {
		return err
	}
	if n := x.reg.other.asked.Load() - asked; n < 3 {
		return fmt.Errorf("%d requests came to the other mirror", n)
	}
	after, err := x.read(file)
	if err == nil && after != lock {
		err = fmt.Errorf("it changed %s", file)
	}
	return errors.Join(err, x.loads(allRuns, bothOf))
}

// mirrored has the client use the registry at url.
func (x *cell) mirrored() error {
	return x.mirror("use", useName[x.c.family], "--registry", x.url())
}
