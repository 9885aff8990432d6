package ipnskeys

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"filippo.io/age"
	"filippo.io/age/plugin"
)

// Seal is what a key is sealed to, by age (https://age-encryption.org/v1).
type Seal struct {
	// Recipients can open it, each alone; none means the identity that lies
	// beside the keys, made on first use. A passphrase is the only recipient of
	// its seal.
	Recipients []age.Recipient
	// Opens are identities that open it, where they are at hand: then what was
	// sealed is opened again before it counts.
	Opens []age.Identity
}

// ErrRecipient is returned for what is no age recipient.
var ErrRecipient = errors.New("no age recipient: it begins with age1")

// SealTo is the seal that each of recipients opens: X25519 (age1…), hybrid
// (age1pq1…) and a plugin's (age1NAME1…), which runs age-plugin-NAME. Errors:
// ErrRecipient.
func SealTo(recipients ...string) (Seal, error) {
	var s Seal
	for i, text := range recipients {
		parsed, err := age.ParseRecipients(strings.NewReader(text))
		if err == nil && len(parsed) == 1 {
			s.Recipients = append(s.Recipients, parsed[0])
			continue
		}
		p, err := plugin.NewRecipient(text, pluginUI)
		if err != nil {
			return Seal{}, fmt.Errorf("recipient %d: %w", i+1, ErrRecipient) // unquoted: it may be an identity, by mistake
		}
		s.Recipients = append(s.Recipients, pluginRecipient{p})
	}
	return s, nil
}

// SealWith is the seal that a passphrase opens (scrypt; about a second).
func SealWith(passphrase string) (Seal, error) {
	to, err := age.NewScryptRecipient(passphrase)
	if err != nil {
		return Seal{}, fmt.Errorf("seal with a passphrase: %w", err)
	}
	opens, err := age.NewScryptIdentity(passphrase)
	if err != nil {
		return Seal{}, fmt.Errorf("seal with a passphrase: %w", err)
	}
	return Seal{[]age.Recipient{to}, []age.Identity{opens}}, nil
}

// resolve gives a seal without recipients those of the identity in dir.
func (s Seal) resolve(dir string) (Seal, error) {
	if len(s.Recipients) > 0 {
		return s, nil
	}
	identity, err := ownIdentity(dir)
	if err != nil {
		return Seal{}, err
	}
	return Seal{[]age.Recipient{identity.Recipient()}, []age.Identity{identity}}, nil
}

func (s Seal) close(clear []byte) ([]byte, error) {
	var sealed bytes.Buffer
	w, err := age.Encrypt(&sealed, s.Recipients...)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	if _, err := w.Write(clear); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return sealed.Bytes(), nil
}

// decrypt opens what is sealed. Errors: ErrSealed, ErrCorrupt.
func decrypt(sealed io.Reader, identities []age.Identity) ([]byte, error) {
	if len(identities) == 0 {
		return nil, ErrSealed
	}
	r, err := age.Decrypt(sealed, identities...)
	if err != nil {
		noMatch, failed := new(age.NoIdentityMatchError), new(identityError)
		switch {
		case errors.As(err, &noMatch):
			return nil, ErrSealed
		case errors.As(err, &failed):
			return nil, fmt.Errorf("%w: %w", ErrSealed, failed.err)
		}
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	clear, err := io.ReadAll(io.LimitReader(r, maxSecret+1))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	if len(clear) > maxSecret {
		return nil, fmt.Errorf("it is over %d bytes: %w", maxSecret, ErrCorrupt)
	}
	return clear, nil
}

// Opening says what a key may be opened with, beside the identity that lies
// with the keys. The secrets are in files and in people's heads, never in an
// argument or an environment variable.
type Opening struct {
	// Identities are age identity files, which their owner alone can read.
	Identities []string
	// Credentials is systemd's credential directory, "" for none. Its file of the
	// key's name is an identity file, where there is one (systemd.exec(5),
	// "Credentials"). Such a file may be readable by its group: systemd hands a
	// credential to a service's user by an access control list, whose mask shows
	// as the group's bits.
	Credentials string
	// Passphrase asks a person, at most once, and only for a key that was sealed
	// with a passphrase; nil where there is nobody to ask.
	Passphrase func() (string, error)
}

// Load is Load with what o says.
func (o Opening) Load(ctx context.Context, dir, name string) (*Signer, error) {
	identities, err := o.Read(name)
	if err != nil {
		return nil, fmt.Errorf("load key %q: %w", name, err)
	}
	return Load(ctx, dir, name, identities...)
}

// Read reads the identities for the key name. Errors: ErrKeyName, and ErrSealed
// with those of ReadIdentities.
func (o Opening) Read(name string) ([]age.Identity, error) {
	if !keyName.MatchString(name) {
		return nil, ErrKeyName
	}
	var all []age.Identity
	for _, path := range o.Identities {
		identities, err := ReadIdentities(path)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrSealed, err)
		}
		all = append(all, identities...)
	}
	if o.Credentials != "" {
		path := filepath.Join(o.Credentials, name)
		raw, err := readOnly(path, 0o037)
		var identities []age.Identity
		if err == nil {
			identities, err = parseIdentities(path, raw)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("%w: %w", ErrSealed, err)
		}
		all = append(all, identities...)
	}
	if o.Passphrase != nil {
		all = append(all, &passphraseIdentity{ask: sync.OnceValues(o.Passphrase)})
	}
	return all, nil
}

// ReadIdentities reads an age identity file, which must be readable by its
// owner alone: X25519, hybrid, and plugins' identities. Errors: *UnsafeError,
// os.ErrNotExist, ErrCorrupt.
func ReadIdentities(path string) ([]age.Identity, error) {
	raw, err := readSecret(path)
	if err != nil {
		return nil, err
	}
	return parseIdentities(path, raw)
}

// parseIdentities never quotes a line, as age's own errors may: it is a secret.
func parseIdentities(path string, raw []byte) ([]age.Identity, error) {
	corrupt := fmt.Errorf("%s is no age identity file: %w", path, ErrCorrupt)
	var identities []age.Identity
	lines := bufio.NewScanner(bytes.NewReader(raw))
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		if strings.HasPrefix(line, "AGE-PLUGIN-") {
			p, err := plugin.NewIdentity(line, pluginUI)
			if err != nil {
				return nil, corrupt
			}
			identities = append(identities, pluginIdentity{p})
			continue
		}
		one, err := age.ParseIdentities(strings.NewReader(line))
		if err != nil {
			return nil, corrupt
		}
		identities = append(identities, one...)
	}
	if lines.Err() != nil || len(identities) == 0 {
		return nil, corrupt
	}
	return identities, nil
}

// identityError is why an identity could not be used, which says nothing of
// the sealed file.
type identityError struct{ err error }

func (e *identityError) Error() string { return e.err.Error() }
func (e *identityError) Unwrap() error { return e.err }

var errPassphrase = errors.New("it has another passphrase")

// passphraseIdentity asks for the passphrase when a file needs one.
type passphraseIdentity struct{ ask func() (string, error) }

func (i *passphraseIdentity) Unwrap(stanzas []*age.Stanza) ([]byte, error) {
	if len(stanzas) != 1 || stanzas[0].Type != "scrypt" {
		return nil, age.ErrIncorrectIdentity
	}
	passphrase, err := i.ask()
	if err != nil {
		return nil, &identityError{err}
	}
	identity, err := age.NewScryptIdentity(passphrase)
	if err != nil {
		return nil, &identityError{err}
	}
	key, err := identity.Unwrap(stanzas)
	if errors.Is(err, age.ErrIncorrectIdentity) {
		err = &identityError{errPassphrase}
	}
	return key, err
}

// pluginTime bounds one answer of a plugin, with a person's touch or PIN.
const pluginTime = 2 * time.Minute

// pluginUI asks on the terminal, where there is one; else what the plugin asks
// fails.
var pluginUI = plugin.NewTerminalUI(
	func(format string, v ...any) { fmt.Fprintf(os.Stderr, format+"\n", v...) },
	func(format string, v ...any) { fmt.Fprintf(os.Stderr, "warning: "+format+"\n", v...) },
)

var errPluginTime = fmt.Errorf("the age plugin did not answer within %v", pluginTime)

type pluginIdentity struct{ *plugin.Identity }

func (i pluginIdentity) Unwrap(stanzas []*age.Stanza) ([]byte, error) {
	key, err := within(pluginTime, func() ([]byte, error) { return i.Identity.Unwrap(stanzas) })
	if err != nil && !errors.Is(err, age.ErrIncorrectIdentity) {
		err = &identityError{err}
	}
	return key, err
}

type pluginRecipient struct{ *plugin.Recipient }

func (r pluginRecipient) Wrap(key []byte) ([]*age.Stanza, error) {
	return within(pluginTime, func() ([]*age.Stanza, error) { return r.Recipient.Wrap(key) })
}

func (r pluginRecipient) WrapWithLabels(key []byte) ([]*age.Stanza, []string, error) {
	type wrapped struct {
		stanzas []*age.Stanza
		labels  []string
	}
	w, err := within(pluginTime, func() (wrapped, error) {
		stanzas, labels, err := r.Recipient.WrapWithLabels(key)
		return wrapped{stanzas, labels}, err
	})
	return w.stanzas, w.labels, err
}

// within gives up on f after d: age has no way to stop a plugin, which is then
// left to end by itself.
func within[T any](d time.Duration, f func() (T, error)) (T, error) {
	type answer struct {
		value T
		err   error
	}
	done := make(chan answer, 1)
	go func() {
		value, err := f()
		done <- answer{value, err}
	}()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case a := <-done:
		return a.value, a.err
	case <-t.C:
		var zero T
		return zero, errPluginTime
	}
}
