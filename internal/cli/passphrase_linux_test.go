package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// passphraseCase is the variable that makes TestPassphraseOnTerminal the process
// that asks; it says how.
const passphraseCase = "CLI_TEST_PASSPHRASE"

// What is typed on the terminal, and nothing else, is the passphrase, and the
// terminal shows none of it. Without a terminal nobody is asked.
func TestPassphraseOnTerminal(t *testing.T) {
	if how := os.Getenv(passphraseCase); how != "" {
		askPassphrase(how)
	}
	for _, c := range []struct {
		how      string
		terminal bool
		typed    string
		want     string
	}{
		{"once", true, "open sesame\n", `"open sesame" <nil>`},
		{"twice", true, "open sesame\nopen sesame\n", `"open sesame" <nil>`},
		{"twice", true, "open sesame\nopen sesam\n", ErrPassphrases.Error()},
		{"twice", true, "\n\n", ErrPassphrases.Error()},
		{"until ended", true, "", "ended, and the terminal shows what is typed: true"},
		{"once", false, "open sesame\n", ErrNoTerminal.Error()},
	} {
		t.Run(fmt.Sprint(c.how, c.terminal, c.typed), func(t *testing.T) {
			master, slave := openTerminal(t)
			cmd := exec.Command(os.Args[0], "-test.run=^TestPassphraseOnTerminal$")
			cmd.Env = append(os.Environ(), passphraseCase+"="+c.how)
			cmd.Stdin = slave
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: c.terminal}
			if !c.terminal {
				cmd.Stdin = strings.NewReader(c.typed) // standard input is nobody's terminal
			}
			var out bytes.Buffer
			cmd.Stdout = &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			slave.Close()
			fd := int(master.Fd())
			shown := make(chan string)
			go func() { // answers one prompt after another, as a person does
				var all []byte
				lines := strings.SplitAfter(c.typed, "\n")
				buf := make([]byte, 1<<10)
				for {
					n, err := master.Read(buf)
					all = append(all, buf[:n]...)
					if err != nil { // the other side is closed
						shown <- string(all)
						return
					}
					if bytes.HasSuffix(all, []byte(": ")) && len(lines) > 0 && lines[0] != "" {
						for shows(fd) { // a person is slower than that
							time.Sleep(time.Millisecond)
						}
						master.WriteString(lines[0])
						lines = lines[1:]
					}
				}
			}()
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
			if text := <-shown; strings.Contains(text, "sesam") || c.terminal && !strings.Contains(text, "assphrase: ") {
				t.Errorf("the terminal shows %q", text)
			}
			if !strings.Contains(out.String(), c.want) {
				t.Errorf("got %s, want %s", &out, c.want)
			}
		})
	}
}

func askPassphrase(how string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var text string
	var err error
	switch how {
	case "once":
		text, err = ReadPassphrase(ctx, "Passphrase: ")
	case "twice":
		text, err = NewPassphrase(ctx)
	case "until ended":
		ended, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		defer cancel()
		_, err = ReadPassphrase(ended, "Passphrase: ")
		if errors.Is(err, context.DeadlineExceeded) {
			fmt.Println("ended, and the terminal shows what is typed:", shows(0))
			os.Exit(0)
		}
	}
	fmt.Printf("%q %v\n", text, err)
	os.Exit(0)
}

// shows tells whether a terminal shows what is typed.
func shows(fd int) bool {
	state, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	return err == nil && state.Lflag&unix.ECHO != 0
}

// openTerminal gives both sides of a new terminal (pty(7)).
func openTerminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no terminals here: %v", err)
	}
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile(fmt.Sprint("/dev/pts/", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return master, slave
}
