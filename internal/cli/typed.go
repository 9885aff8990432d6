package cli

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// judgeTyped has c and all below it tell of a mistake on the command line in this
// package's words. A group of commands, c being one, takes no arguments: what is none
// of its commands is a mistake, for which cobra alone would print its help and end well.
func judgeTyped(c *cobra.Command) {
	for _, sub := range c.Commands() {
		judgeTyped(sub)
	}
	if isGroup(c) {
		c.Args = func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(c, args[0])
			}
			return nil
		}
		c.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
	} else if check := c.Args; check != nil {
		c.Args = func(c *cobra.Command, args []string) error {
			if check(c, args) == nil {
				return nil
			}
			return wrongArguments(c, args, check)
		}
	}
}

// judgeTopics has `help` of what is no command be a mistake too, for which cobra would
// print the help of root and end well.
func judgeTopics(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	help, _, _ := root.Find([]string{"help"})
	if help == root {
		return // which has no commands
	}
	help.Args = func(_ *cobra.Command, args []string) error {
		c, rest, err := root.Find(args)
		if err == nil && c.HasSubCommands() && len(rest) > 0 {
			err = unknownCommand(c, rest[0])
		}
		return err
	}
}

func isGroup(c *cobra.Command) bool { return c.HasSubCommands() && !c.Runnable() }

// unknownCommand is the error where typed is no command of the group c.
func unknownCommand(c *cobra.Command, typed string) error {
	hint := "`" + c.CommandPath() + " --help` lists the commands"
	if near := nearest(c, typed); near != "" {
		hint = "did you mean `" + c.CommandPath() + " " + near + "`? " + hint
	}
	return Hint(Usagef("unknown command %.100q", typed), hint)
}

// nearest is the command of the group c that was meant with typed, "" where none is like it.
func nearest(c *cobra.Command, typed string) string {
	for c.SuggestionsMinimumDistance = 1; c.SuggestionsMinimumDistance <= 2; c.SuggestionsMinimumDistance++ {
		if near := c.SuggestionsFor(typed); len(near) > 0 {
			return near[0]
		}
	}
	return ""
}

// wrongArguments is the error where check does not take args.
func wrongArguments(c *cobra.Command, args []string, check cobra.PositionalArgs) error {
	hint := usage(c)
	for n := len(args) - 1; n >= 0; n-- {
		if check(c, args[:n]) == nil {
			return Hint(Usagef("%.100q is one argument too many", args[n]), hint)
		}
	}
	missing := "an argument"
	if words := strings.Fields(c.Use); len(words) > len(args)+1 {
		missing = words[len(args)+1]
	}
	return Hint(Usagef("%s is missing", missing), hint)
}

// usage is the hint that says how c is used.
func usage(c *cobra.Command) string {
	line := c.Use
	if c.HasParent() {
		line = c.Parent().CommandPath() + " " + line
	}
	return "usage: " + line + "; --help says more"
}

// wrongFlag is the error where flags were not parsed, as pflag has it.
func wrongFlag(c *cobra.Command, err error) error {
	if c.HasSubCommands() && c.Flags().NArg() > 0 { // and the flag is that command's
		return unknownCommand(c, c.Flags().Arg(0))
	}
	var unknown *pflag.NotExistError
	var needs *pflag.ValueRequiredError
	var invalid *pflag.InvalidValueError
	switch {
	case errors.As(err, &unknown):
		return unknownFlag(c, unknown)
	case errors.As(err, &needs):
		return Hint(Usagef("--%s: its value is missing", needs.GetFlag().Name), about(needs.GetFlag()))
	case errors.As(err, &invalid):
		return wrongValue("--"+invalid.GetFlag().Name, err)
	}
	return usageError{err}
}

// unknownFlag is the error where c has no such flag.
func unknownFlag(c *cobra.Command, unknown *pflag.NotExistError) error {
	dashes, name := "--", unknown.GetSpecifiedName()
	if all := unknown.GetSpecifiedShortnames(); all != "" {
		dashes, name = "-", all
	}
	err := Usagef("unknown flag %s%.100s", dashes, name)
	// Commands are what cobra compares a word with.
	var flags cobra.Command
	c.Flags().VisitAll(func(f *pflag.Flag) {
		flags.AddCommand(&cobra.Command{Use: f.Name, Run: func(*cobra.Command, []string) {}})
	})
	if c.Flags().Lookup(name) != nil {
		return Hint(err, "did you mean --"+name+"?")
	}
	if near := nearest(&flags, name); len(name) > 1 && near != "" {
		return Hint(err, "did you mean --"+near+"?")
	}
	var have []string
	var visit func(*cobra.Command)
	visit = func(o *cobra.Command) {
		if o.Flags().Lookup(name) != nil {
			have = append(have, "`"+o.CommandPath()+"`")
		}
		for _, sub := range o.Commands() {
			visit(sub)
		}
	}
	if visit(c.Root()); len(have) > 0 {
		return Hint(err, "it is a flag of "+strings.Join(have, ", "))
	}
	return err
}

// wrongValue is the error where what, which gives a flag its value, gives one that it
// cannot have, as pflag says it.
func wrongValue(what string, err error) error {
	var invalid *pflag.InvalidValueError
	if !errors.As(err, &invalid) {
		return Usagef("%s: %w", what, err)
	}
	f, value := invalid.GetFlag(), invalid.GetValue()
	switch f.Value.Type() {
	case "bool":
		return Hint(Usagef("%s: %.100q is neither true nor false", what, value), about(f))
	case "int", "int64":
		return Hint(Usagef("%s: %.100q is no whole number", what, value), about(f))
	case "uint", "uint64":
		return Hint(Usagef("%s: %.100q is no whole number from 0 up", what, value), about(f))
	case "duration":
		return Hint(Usagef("%s: %.100q is no duration", what, value), "a duration is in hours, minutes and seconds: 168h is a week, 1h30m an hour and a half")
	}
	return Hint(Usagef("%s: %w", what, errors.Unwrap(invalid)), about(f))
}

// about is the hint that says what f is.
func about(f *pflag.Flag) string { return "--" + f.Name + ": " + f.Usage }

// namedFile gives the hint for an error about a file that was named to cmd, as an
// argument or a flag's value, and is not there or no such file as is needed; "" for any
// other error. A file of the state that is missing is nobody's mistake.
func namedFile(cmd *cobra.Command, err error) string {
	var file *fs.PathError
	if !errors.As(err, &file) || !isNamed(cmd, file.Path) {
		return ""
	}
	switch {
	case errors.Is(file, syscall.EISDIR), errors.Is(file, fs.ErrExist) && isDir(file.Path): // the latter of a rename to it
		return "that is a directory: name a file in it"
	case errors.Is(file, syscall.ENOTDIR):
		return "one of the directories above it is a file"
	case !errors.Is(file, fs.ErrNotExist):
		return ""
	}
	path, err := filepath.Abs(file.Path)
	if err != nil {
		return "is its name right?"
	}
	dir := filepath.Dir(path)
	if _, err := os.Stat(dir); err != nil {
		return "there is no directory " + dir + ": make it, or name another file"
	}
	return "there is no " + filepath.Base(path) + " in " + dir + ": is its name right, and is that the directory?"
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

func isNamed(cmd *cobra.Command, path string) bool {
	named := slices.Contains(cmd.Flags().Args(), path)
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if list, ok := f.Value.(pflag.SliceValue); ok {
			named = named || slices.Contains(list.GetSlice(), path)
		} else {
			named = named || f.Value.String() == path
		}
	})
	return named
}

// OfFile is err as it is of the file at path, where that is written aside first, under
// a name that means nothing to people.
func OfFile(path string, err error) error {
	var file *fs.PathError
	var link *os.LinkError
	switch {
	case errors.As(err, &file):
		return &fs.PathError{Op: "write", Path: path, Err: file.Err}
	case errors.As(err, &link):
		return &fs.PathError{Op: "write", Path: path, Err: link.Err}
	}
	return err
}

// besideFlags and besideName are the annotations of a root command that have the flags
// which lead the next command to what this one is about.
const (
	besideFlags = "beside"
	besideName  = "beside-name"
)

// keepTyped keeps what was typed of --state, --config and --name, for Beside.
func keepTyped(cmd *cobra.Command) {
	typed := func(names ...string) (text string) {
		for _, name := range names {
			if f := cmd.Flags().Lookup(name); f != nil && f.Changed {
				text += " --" + name + " " + ShellWord(f.Value.String())
			}
		}
		return text
	}
	cmd.Root().Annotations = map[string]string{besideFlags: typed("state", "config"), besideName: typed("name")}
}

// ours are commands of this project within text, as people should type them.
var ours = regexp.MustCompile("`(?:" + strings.Join(Commands, "|") + ") [a-z][^`]*`")

// Beside gives the commands of this project that text has in backquotes, as in
// `follower add NAME`, the flags --state and --config with which cmd was started, and
// those of publisher, where text does not say of which registry they are, its --name:
// what is typed as it is printed must not work on another state or registry. What other
// people type is written without the program, as in "their `up`". Report does it for all
// hints.
func Beside(cmd *cobra.Command, text string) string {
	typed := cmd.Root().Annotations
	return ours.ReplaceAllStringFunc(text, func(command string) string {
		if strings.Contains(command, "--state") || strings.Contains(command, "--help") {
			return command
		}
		flags := typed[besideFlags]
		if strings.HasPrefix(command, "`publisher ") && !strings.Contains(command, " NAME") && !strings.Contains(command, "--name") {
			flags = typed[besideName] + flags
		}
		return strings.TrimSuffix(command, "`") + flags + "`"
	})
}

// plain are the characters that mean nothing to a shell.
const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789@/._-:+,="

// ShellWord is text as a POSIX shell takes it for one word.
func ShellWord(text string) string {
	if text != "" && !strings.ContainsFunc(text, func(r rune) bool { return !strings.ContainsRune(plain, r) }) {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}
