package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// patience is for one run of a client. A machine that is busy with others takes
// its time; one that hangs is cut off.
const patience = 3 * time.Minute

// cell is one operation of one client: a home and projects of its own.
type cell struct {
	ctx     context.Context
	house   house
	reg     *registry
	c       client
	dir     string // of all that belongs to it
	home    string
	project string
	host    string   // the registry's host:port
	base    string   // and its path
	more    []string // of the environment
	log     bytes.Buffer
	note    string
}

// impossibility says that a client cannot do an operation whatever a registry does.
type impossibility string

func (i impossibility) Error() string { return string(i) }

func runCell(ctx context.Context, h house, reg *registry, c client, op, work, logs string) result {
	x := &cell{ctx: ctx, house: h, reg: reg, c: c, host: reg.host, base: "/", dir: filepath.Join(work, c.name(), strings.ReplaceAll(op, " ", "-"))}
	begin := time.Now()
	reg.beyond.take()
	err := x.fresh()
	if err == nil {
		err = operate[op](x)
	}
	r := result{took: time.Since(begin), note: x.note}
	if hosts := reg.beyond.take(); len(hosts) > 0 {
		beside := "also asked, and was refused: " + strings.Join(hosts, " ")
		fmt.Fprintln(&x.log, beside)
		if err == nil {
			r.note = strings.TrimPrefix(r.note+"; "+beside, "; ")
		}
	}
	var cannot impossibility
	switch {
	case errors.As(err, &cannot):
		r.verdict, r.why = impossible, string(cannot)
	case err != nil:
		r.verdict, r.why = failed, err.Error()
	}
	fmt.Fprintf(os.Stderr, "%s %s: %s (%.1f s)\n", c.name(), op, verdicts[r.verdict], r.took.Seconds())
	if r.verdict == failed {
		file := filepath.Join(logs, c.name()+"-"+strings.ReplaceAll(op, " ", "-")+".log")
		fmt.Fprintf(&x.log, "\nFAILED: %v\n\nthe mirror said:\n%s", err, reg.log.Bytes())
		if err := os.WriteFile(file, x.log.Bytes(), 0o644); err != nil {
			r.why += "\nits log could not be kept: " + err.Error()
		}
	}
	os.RemoveAll(x.dir)
	return r
}

// fresh begins an empty project under an empty home. What of x came before stays
// where it is.
func (x *cell) fresh() error {
	if err := os.MkdirAll(x.dir, 0o755); err != nil {
		return err
	}
	at, err := os.MkdirTemp(x.dir, "p")
	if err != nil {
		return err
	}
	x.home, x.project = filepath.Join(at, "home"), filepath.Join(at, "project")
	for _, dir := range []string{x.home, x.project} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	files := map[string]string{
		// The token is for publish: who has none is not even refused by the registry.
		".npmrc": fmt.Sprintf("registry=%s\n//%s%s:_authToken=token-of-the-matrix\n", x.url(), x.host, x.base),
	}
	switch x.c.family {
	case "yarn1":
		files[".yarnrc"] = fmt.Sprintf("registry %q\n", x.url())
	case "berry":
		files = map[string]string{".yarnrc.yml": fmt.Sprintf("npmRegistryServer: %q\nnpmAuthToken: token-of-the-matrix\nunsafeHttpWhitelist: [127.0.0.1]\n", strings.TrimSuffix(x.url(), "/")) +
			"nodeLinker: node-modules\nenableTelemetry: false\nenableColors: false\n"}
		// Without a lockfile of its own it looks for a project further up.
		files["yarn.lock"] = ""
	}
	for name, text := range files {
		if err := x.write(name, text); err != nil {
			return err
		}
	}
	return nil
}

func (x *cell) url() string { return "http://" + x.host + x.base }

func (x *cell) write(name, text string) error {
	return os.WriteFile(filepath.Join(x.project, name), []byte(text), 0o644)
}

func (x *cell) read(name string) (string, error) {
	raw, err := os.ReadFile(filepath.Join(x.project, name))
	return string(raw), err
}

// manifest writes package.json with these dependencies, "name@range".
func (x *cell) manifest(dependencies ...string) error {
	deps := map[string]string{}
	for _, d := range dependencies {
		i := strings.LastIndexByte(d, '@')
		deps[d[:i]] = d[i+1:]
	}
	raw, err := json.Marshal(map[string]any{"name": "project", "version": "1.0.0", "private": true, "dependencies": deps})
	if err != nil {
		return err
	}
	return x.write("package.json", string(raw))
}

// said is what a program printed.
type said struct {
	code     int
	out, all string // standard output; that and standard error
}

// run runs a program of the client's in the project.
func (x *cell) run(args ...string) (said, error) {
	return x.exec(filepath.Join(x.house.bin(x.c), x.c.bin), args...)
}

// must is run that has to end with 0.
func (x *cell) must(args ...string) (said, error) {
	s, err := x.run(args...)
	if err == nil && s.code != 0 {
		err = fmt.Errorf("%s %s ended with %d:\n%s", x.c.bin, strings.Join(args, " "), s.code, tail(s.all))
	}
	return s, err
}

func (x *cell) exec(program string, args ...string) (said, error) {
	ctx, cancel := context.WithTimeout(x.ctx, patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = x.project
	// A client may leave children that hold its output open.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	path := []string{x.house.bin(x.c), x.house.node(), x.house.bin(clients[0]), "/usr/bin", "/bin"}
	cmd.Env = append([]string{
		"PATH=" + strings.Join(path, ":"), "HOME=" + x.home, "TMPDIR=" + x.home, "LANG=C.UTF-8", "NO_COLOR=1",
		"XDG_CACHE_HOME=" + x.home + "/cache", "XDG_CONFIG_HOME=" + x.home + "/config",
		"XDG_DATA_HOME=" + x.home + "/data", "XDG_STATE_HOME=" + x.home + "/state",
		"HTTP_PROXY=" + x.reg.beyond.address, "HTTPS_PROXY=" + x.reg.beyond.address, "NO_PROXY=127.0.0.1,localhost",
	}, x.more...)
	var out, all output
	cmd.Stdout, cmd.Stderr = both{&out, &all}, &all
	fmt.Fprintf(&x.log, "$ %s %s\n", filepath.Base(program), strings.Join(args, " "))
	begin := time.Now()
	err := cmd.Run()
	s := said{cmd.ProcessState.ExitCode(), string(out.Bytes()), string(all.Bytes())}
	fmt.Fprintf(&x.log, "%s[%d, %.1f s]\n", s.all, s.code, time.Since(begin).Seconds())
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return s, fmt.Errorf("%s %s: no end after %.0f s:\n%s", filepath.Base(program), strings.Join(args, " "), time.Since(begin).Seconds(), tail(s.all))
	case errors.As(err, &exit), err == nil:
		return s, nil
	}
	return s, err
}

type both struct{ a, b *output }

func (b both) Write(p []byte) (int, error) {
	b.a.Write(p)
	return b.b.Write(p)
}

// tail is the end of what was printed.
func tail(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-8):], "\n")
}
