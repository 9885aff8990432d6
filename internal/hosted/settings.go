package hosted

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/registry-mirror/registry-mirror/internal/npm"
)

var (
	// ErrExists is returned by Create where there is a registry already. It is left
	// as it is.
	ErrExists = errors.New("this registry was made already")
	// ErrNoRegistry is returned where no registry was made that takes what is published.
	ErrNoRegistry = errors.New("no registry here that can be published to")
	// ErrCorrupt is returned for a settings file that cannot be ours, and for a row or
	// document of ours that cannot be true.
	ErrCorrupt = errors.New("damaged")
	// ErrScope is returned for what is not the scope of a new package.
	ErrScope = errors.New("not a scope")
	// ErrNoToken is returned by RevokeToken for one that is not there.
	ErrNoToken = errors.New("no such token")
	// ErrTooMany is returned by NewToken once there are maxTokens.
	ErrTooMany = errors.New("there are too many tokens")
)

// maxTokens bounds the tokens of a registry; each request looks at all of them.
const maxTokens = 1000

// Settings are what a registry takes, and from whom: the file hosted.json. They may
// change while it is served: every request that writes reads them anew.
type Settings struct {
	Format int      `json:"format"` // settingsFormat
	Scopes []string `json:"scopes"` // "@acme", sorted
	Tokens []Token  `json:"tokens"`
}

// Token is what is kept of one token: not enough to use it.
type Token struct {
	ID      string    `json:"id"`     // by which it is revoked; also the name that `npm whoami` says
	SHA256  string    `json:"sha256"` // of the token, in hexadecimal
	Created time.Time `json:"created"`
}

// settingsFormat is the number of the form of hosted.json.
const settingsFormat = 1

// tokenPrefix begins every token, so that a scanner for secrets can know one.
const tokenPrefix = "rmt_"

// ParseScope checks a scope as it is typed, "@acme". Errors wrap ErrScope.
func ParseScope(s string) (string, error) {
	if name, err := npm.ParseNewName(s + "/x"); err != nil || name.Scope() != s {
		return "", fmt.Errorf("%.200q: %w: it is as in @acme, in lower case", s, ErrScope)
	}
	return s, nil
}

// Create makes the settings file at path with one token, which it returns: it is
// kept nowhere. Where there is a file it is ErrExists, and the file stays.
func Create(path string, scopes []string, now time.Time) (token string, err error) {
	s := Settings{Format: settingsFormat}
	for _, scope := range scopes {
		if scope, err = ParseScope(scope); err != nil {
			return "", err
		}
		s.Scopes = append(s.Scopes, scope)
	}
	slices.Sort(s.Scopes)
	if s.Scopes = slices.Compact(s.Scopes); len(s.Scopes) == 0 {
		return "", fmt.Errorf("no scope is named: %w", ErrScope)
	}
	err = locked(path, func() error {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			return errors.Join(ErrExists, err)
		}
		token, _ = s.mint(now)
		return s.write(path)
	})
	if err != nil {
		return "", fmt.Errorf("make the registry %s: %w", path, err)
	}
	return token, nil
}

// Open reads the settings file at path. Errors: ErrNoRegistry, ErrCorrupt.
func Open(path string) (Settings, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Settings{}, fmt.Errorf("%s: %w", path, ErrNoRegistry)
	}
	if err != nil {
		return Settings{}, fmt.Errorf("read the registry's settings: %w", err)
	}
	var s Settings
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	err = dec.Decode(&s)
	if err == nil && s.Format != settingsFormat {
		err = fmt.Errorf("format %d", s.Format)
	}
	for _, scope := range s.Scopes {
		if err == nil {
			_, err = ParseScope(scope)
		}
	}
	for _, t := range s.Tokens {
		if sum, bad := hex.DecodeString(t.SHA256); err == nil && (bad != nil || len(sum) != sha256.Size || t.ID == "") {
			err = fmt.Errorf("token %q", t.ID)
		}
	}
	if err == nil && len(s.Scopes) == 0 {
		err = errors.New("no scopes")
	}
	if err != nil {
		return Settings{}, fmt.Errorf("%s: %w: %w", path, ErrCorrupt, err)
	}
	return s, nil
}

// NewToken adds a token and returns it; it is kept nowhere. Errors: those of Open,
// ErrTooMany.
func NewToken(path string, now time.Time) (token string, t Token, err error) {
	err = locked(path, func() error {
		s, err := Open(path)
		if err != nil {
			return err
		}
		if len(s.Tokens) >= maxTokens {
			return ErrTooMany
		}
		token, t = s.mint(now)
		return s.write(path)
	})
	return token, t, err
}

// RevokeToken takes the token of that ID away: from the next request on it is no
// more than a wrong one. Errors: those of Open, ErrNoToken.
func RevokeToken(path, id string) error {
	return locked(path, func() error {
		s, err := Open(path)
		if err != nil {
			return err
		}
		before := len(s.Tokens)
		s.Tokens = slices.DeleteFunc(s.Tokens, func(t Token) bool { return t.ID == id })
		if len(s.Tokens) == before {
			return fmt.Errorf("%.100q: %w", id, ErrNoToken)
		}
		return s.write(path)
	})
}

// Holder gives the token that text is. It looks at every token, and takes as long
// whichever matches.
func (s Settings) Holder(text string) (t Token, ok bool) {
	sum := sha256.Sum256([]byte(text))
	for _, one := range s.Tokens {
		want, err := hex.DecodeString(one.SHA256)
		if err == nil && subtle.ConstantTimeCompare(sum[:], want) == 1 {
			t, ok = one, true
		}
	}
	return t, ok
}

// Takes says whether name is in one of the scopes.
func (s Settings) Takes(name npm.Name) bool { return slices.Contains(s.Scopes, name.Scope()) }

// mint adds a token of 256 random bits.
func (s *Settings) mint(now time.Time) (string, Token) {
	var bits [32]byte
	var id [4]byte
	rand.Read(bits[:]) // never fails
	for taken := true; taken; {
		rand.Read(id[:])
		taken = slices.ContainsFunc(s.Tokens, func(t Token) bool { return t.ID == hex.EncodeToString(id[:]) })
	}
	token := tokenPrefix + base64.RawURLEncoding.EncodeToString(bits[:])
	sum := sha256.Sum256([]byte(token))
	t := Token{ID: hex.EncodeToString(id[:]), SHA256: hex.EncodeToString(sum[:]), Created: now.UTC().Truncate(time.Second)}
	s.Tokens = append(s.Tokens, t)
	return token, t
}

// locked runs f with the settings file's lock, for which another process is waited
// for a moment.
func locked(path string, f func() error) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	for try := 1; ; try++ {
		lock, err := vfs.Default.Lock(path + ".lock")
		if err == nil {
			return errors.Join(f(), lock.Close())
		}
		if try == 15 {
			return fmt.Errorf("lock the registry's settings: %w", err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// write replaces the file: written beside it with mode 0600, synced, renamed, and
// the directory synced, so that a crash leaves the old one or the new one.
func (s Settings) write(path string) (err error) {
	raw, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails once it was renamed
	_, err = f.Write(append(raw, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// bearer is the token of an Authorization header (RFC 6750 section 2.1), "" where
// there is none.
func bearer(header string) string {
	scheme, token, _ := strings.Cut(header, " ")
	if !strings.EqualFold(scheme, "bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}
