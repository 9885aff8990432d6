// Package cli is what the three commands have in common at their edge: exit
// codes, error messages with hints, flags that are also environment variables
// and configuration keys, logging and progress. It knows nothing of what the
// commands do.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// Exit codes shared by all commands, after sysexits(3). Codes from 10 up are a
// command's own; 2 is never used, for a Go panic ends with it.
const (
	CodeOK     = 0
	CodeFailed = 1
	CodeUsage  = 64 // wrong flag, argument, environment variable or configuration key; a file named by one is not there
	CodeAway   = 69 // the IPFS node, or another service, cannot be reached
	CodeLocked = 75 // another process owns the state
)

// Cause says what people are told, and which code scripts get, when an error
// matches Is.
type Cause struct {
	Is   error
	Code int
	Hint string // one line: what to do; "" for none, with CodeUsage for the command's help
}

// ErrUsage marks a mistake on the command line or in the configuration.
var ErrUsage = errors.New("usage")

type usageError struct{ err error }

func (e usageError) Error() string   { return e.err.Error() }
func (e usageError) Unwrap() []error { return []error{e.err, ErrUsage} }

// Usagef is an error that ends the command with CodeUsage.
func Usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

type hintError struct {
	error
	hint string
}

func (e hintError) Unwrap() error { return e.error }
func (e hintError) Hint() string  { return e.hint }

// Hint adds to err one line that says what to do about it. An error of another
// package that has such a line says it with a method Hint.
func Hint(err error, hint string) error {
	if err == nil {
		return nil
	}
	return hintError{err, hint}
}

type exitError int

func (e exitError) Error() string { return fmt.Sprintf("ends with code %d", int(e)) }

// Exit ends the command with code: all that there is to say was said, by Report.
func Exit(code int) error { return exitError(code) }

// Main runs root and returns the process's exit code. Its context ends at the
// first interrupt or SIGTERM; a second interrupt kills the process.
func Main(root *cobra.Command, causes []Cause) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	go func() {
		<-ctx.Done()
		stop() // the next signal is the default one: the process ends at once
	}()
	return Run(ctx, root, causes, os.Args[1:], os.Stdout, os.Stderr)
}

// Run is Main for a given context, arguments and streams.
func Run(ctx context.Context, root *cobra.Command, causes []Cause, args []string, stdout, stderr io.Writer) int {
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.CompletionOptions.HiddenDefaultCmd = true
	judgeTyped(root)
	judgeTopics(root)
	root.SetFlagErrorFunc(wrongFlag)
	prior := root.PersistentPreRunE
	root.PersistentPreRunE = func(cmd *cobra.Command, args []string) error {
		keepTyped(cmd)
		if prior != nil && !cmd.HasSubCommands() { // a group prints its help, whatever the configuration
			return prior(cmd, args)
		}
		return nil
	}
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return CodeOK
	}
	var exit exitError
	if errors.As(err, &exit) {
		return int(exit)
	}
	return Report(stderr, cmd, err, causes)
}

// Code is the exit code with which Main ends for err.
func Code(err error, causes []Cause) int {
	switch {
	case err == nil:
		return CodeOK
	case errors.Is(err, context.Canceled):
		return CodeFailed
	}
	code, _ := judge(err, causes)
	return code
}

// judge gives the code for err, and the hint of its cause.
func judge(err error, causes []Cause) (code int, hint string) {
	for _, c := range causes {
		if errors.Is(err, c.Is) {
			return c.Code, c.Hint
		}
	}
	if errors.Is(err, ErrUsage) {
		return CodeUsage, ""
	}
	return CodeFailed, ""
}

// Report prints err, with which cmd or a part of it ended, as people read it and
// returns its exit code.
func Report(w io.Writer, cmd *cobra.Command, err error, causes []Cause) int {
	name := cmd.Root().Name()
	if errors.Is(err, context.Canceled) {
		fmt.Fprintf(w, "%s: stopped; start it again to go on where it was\n", name)
		return CodeFailed
	}
	// One line, also of several errors: errors.Join has a line for each.
	fmt.Fprintf(w, "%s: error: %s\n", name, strings.ReplaceAll(err.Error(), "\n", "; "))
	code, hint := judge(err, causes)
	if of := namedFile(cmd, err); of != "" {
		code, hint = CodeUsage, of
	}
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		hint = h.Hint()
	}
	if hint == "" {
		hint = permissionHint(err)
	}
	if hint == "" && code == CodeUsage {
		hint = "see `" + cmd.CommandPath() + " --help`"
	}
	if hint != "" {
		fmt.Fprintf(w, "%s: hint: %s\n", name, Beside(cmd, hint))
	}
	return code
}

// permissionHint says what to do where the system does not let this user have a file or
// a port; "" for any other error.
func permissionHint(err error) string {
	if !errors.Is(err, fs.ErrPermission) {
		return ""
	}
	var file *fs.PathError
	var link *os.LinkError
	var port *net.OpError
	switch {
	case errors.As(err, &file), errors.As(err, &link):
		return fmt.Sprintf("this runs as user %d: `ls -ld` of the file and of the directories above it shows who may use it; run this as that user, change the owner, or name another place", os.Getuid())
	case errors.As(err, &port) && port.Op == "listen":
		return "ports below 1024 are the system's: take one above"
	}
	return ""
}

// Stopped says of cmd, which runs on until it is stopped, that it was, and what is kept
// from which the next start goes on: a person who pressed Ctrl-C wonders. log is for who
// reads no terminal.
func Stopped(cmd *cobra.Command, log *slog.Logger, kept string) {
	if w := cmd.ErrOrStderr(); IsTerminal(w) {
		fmt.Fprintf(w, "%s: stopped; %s, and the same command goes on there\n", cmd.Root().Name(), kept)
		return
	}
	log.Info("stopped", "kept", kept)
}

// Version is what `version` prints: the module's version, or the commit that
// the binary was built from, and Go's.
func Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	version := info.Main.Version
	if version == "" {
		version = "(devel)"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 && version == "(devel)" {
			version = s.Value[:12]
		}
	}
	return version + " " + info.GoVersion
}

// VersionCommand is the command `version`.
func VersionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), cmd.Root().Name(), Version())
			return err
		},
	}
}
