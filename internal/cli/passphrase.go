package cli

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/term"
)

var (
	// ErrNoTerminal is returned where a person would have to be asked, and there
	// is no terminal to do it on.
	ErrNoTerminal = errors.New("there is no terminal to ask for a passphrase on")
	// ErrPassphrases is returned by NewPassphrase.
	ErrPassphrases = errors.New("the two passphrases differ, or are empty")
)

// ReadPassphrase asks on the process's terminal, wherever its streams go, and
// shows nothing of the answer. It waits until ctx ends. Errors: ErrNoTerminal.
func ReadPassphrase(ctx context.Context, prompt string) (string, error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrNoTerminal, err)
	}
	defer tty.Close()
	fd := int(tty.Fd())
	before, err := term.GetState(fd)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrNoTerminal, err)
	}
	if _, err := fmt.Fprint(tty, prompt); err != nil {
		return "", fmt.Errorf("ask for a passphrase: %w", err)
	}
	type answer struct {
		text []byte
		err  error
	}
	answered := make(chan answer, 1)
	go func() {
		text, err := term.ReadPassword(fd)
		answered <- answer{text, err}
	}()
	select {
	case a := <-answered:
		fmt.Fprintln(tty)
		if a.err != nil {
			return "", fmt.Errorf("ask for a passphrase: %w", a.err)
		}
		return string(a.text), nil
	case <-ctx.Done(): // the process ends; the terminal must show what is typed again
		term.Restore(fd, before)
		fmt.Fprintln(tty)
		return "", ctx.Err()
	}
}

// NewPassphrase asks twice for a passphrase that something will be sealed with.
// Errors: ErrPassphrases, ReadPassphrase's.
func NewPassphrase(ctx context.Context) (string, error) {
	first, err := ReadPassphrase(ctx, "New passphrase: ")
	if err != nil {
		return "", err
	}
	again, err := ReadPassphrase(ctx, "Once more: ")
	if err != nil {
		return "", err
	}
	if first == "" || first != again {
		return "", ErrPassphrases
	}
	return first, nil
}
