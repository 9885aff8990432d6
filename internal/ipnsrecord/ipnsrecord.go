// Package ipnsrecord checks, compares and accepts IPNS records: what a record
// says, whether its name signed it, and whether a reader that has accepted an
// earlier one may follow it. It is pure: the clock is an argument, and it knows
// nothing of networks, files, npm or private keys.
package ipnsrecord

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/ipfs/boxo/ipns"
	"github.com/ipfs/boxo/ipns/pb"
	"github.com/ipfs/boxo/path"
	"github.com/ipfs/go-cid"
	ic "github.com/libp2p/go-libp2p/core/crypto"
	"google.golang.org/protobuf/proto"
)

var (
	// ErrTooBig is returned for a record over MaxSize bytes.
	ErrTooBig = errors.New("IPNS record is over 10 KiB")
	// ErrMalformed is returned for bytes that are no IPNS record, or whose
	// fields contradict one another.
	ErrMalformed = errors.New("malformed IPNS record")
	// ErrSignature is returned for a record that its name did not sign.
	ErrSignature = errors.New("IPNS record is not signed by its name")
	// ErrSequence is returned for a sequence of MaxSequence or more: nobody
	// signs that often, so it is a thief's way to make a name unusable.
	ErrSequence = errors.New("IPNS record's sequence is out of bounds")
	// ErrValue is returned for a record that does not point at a CID.
	ErrValue = errors.New("IPNS record does not point at /ipfs/<CID>")
	// ErrExpired is returned, together with the record, for one that is good in
	// all else.
	ErrExpired = errors.New("IPNS record has expired")

	// ErrName is returned for a record of another name than the state's.
	ErrName = errors.New("IPNS record of another name")
	// ErrRollback is returned for a record or a release older than one accepted.
	ErrRollback = errors.New("older than what was accepted before")
	// ErrEquivocation is returned for a second value under one sequence, or a
	// second release under one number: IPNS permits the first, and both mean
	// that the key is in two hands.
	ErrEquivocation = errors.New("two values under one number")
	// ErrSuccessor is returned for what announces another successor key than the
	// one pinned, or a name that is not the pinned one's.
	ErrSuccessor = errors.New("announces another successor key than the one pinned")
)

const (
	// MaxSize is the largest record in bytes, IPNS specification, "Record size limit".
	MaxSize = ipns.MaxRecordSize
	// MaxSequence is the first sequence that is refused. Sequences of 2^63 and
	// more are stored as negative numbers, which readers order differently.
	MaxSequence = uint64(1) << 62
	// MediaType is the media type of a record over HTTP, IPIP-351.
	MediaType = "application/vnd.ipfs.ipns-record"
)

// Record is a record that Check found good.
type Record struct {
	Name     ipns.Name
	Value    cid.Cid // of /ipfs/<CID>
	Sequence uint64
	EOL      time.Time     // valid until
	TTL      time.Duration // cache hint; no promise
	V2Only   bool          // without the fields of V1
	Raw      []byte        // as it came
}

// Check says whether raw is a record of name that is valid at now: at most
// MaxSize bytes, signed by the name's key (V2; V1 fields where present must
// agree), with a sequence below MaxSequence, pointing at /ipfs/<CID>, not
// expired. An expired record that is otherwise good is returned with
// ErrExpired, since its sequence still counts; with any other error the record
// is zero. The zero time is before every expiry.
func Check(name ipns.Name, raw []byte, now time.Time) (Record, error) {
	if len(raw) > MaxSize {
		return Record{}, fmt.Errorf("%w: %d bytes", ErrTooBig, len(raw))
	}
	rec, err := ipns.UnmarshalRecord(raw)
	if err != nil {
		return Record{}, malformed(err)
	}
	// boxo judges expiry by the machine's clock, and last of all but the TTL:
	// its verdict on expiry is put aside and both are judged below.
	switch err := ipns.ValidateWithName(rec, name); {
	case err == nil, errors.Is(err, ipns.ErrExpiredRecord):
	case errors.Is(err, ipns.ErrSignature), errors.Is(err, ipns.ErrPublicKeyMismatch), errors.Is(err, ipns.ErrPublicKeyNotFound):
		return Record{}, fmt.Errorf("%w: %w", ErrSignature, err)
	default:
		return Record{}, malformed(err)
	}
	var p pb.IpnsRecord // what boxo does not hand out
	if err := proto.Unmarshal(raw, &p); err != nil {
		return Record{}, malformed(err)
	}
	r := Record{Name: name, V2Only: !hasV1(&p), Raw: bytes.Clone(raw)}
	if r.Sequence, err = rec.Sequence(); err != nil {
		return Record{}, malformed(err)
	}
	if r.Sequence >= MaxSequence {
		return Record{}, fmt.Errorf("%w: %d", ErrSequence, r.Sequence)
	}
	if r.EOL, err = rec.Validity(); err != nil {
		return Record{}, malformed(err)
	}
	if r.TTL, err = rec.TTL(); err != nil {
		return Record{}, malformed(err)
	}
	if r.TTL < 0 {
		return Record{}, fmt.Errorf("%w: negative TTL", ErrMalformed)
	}
	value, err := rec.Value()
	if err != nil {
		return Record{}, fmt.Errorf("%w: %s", ErrValue, oneLine(err))
	}
	segments := value.Segments()
	if value.Namespace() != path.IPFSNamespace || len(segments) != 2 {
		return Record{}, fmt.Errorf("%w: %q", ErrValue, value)
	}
	if r.Value, err = cid.Decode(segments[1]); err != nil {
		return Record{}, fmt.Errorf("%w: %s", ErrValue, oneLine(err))
	}
	if now.After(r.EOL) {
		return r, fmt.Errorf("%w on %s", ErrExpired, r.EOL.UTC().Format(time.RFC3339))
	}
	return r, nil
}

func malformed(err error) error { return fmt.Errorf("%w: %s", ErrMalformed, oneLine(err)) }

// oneLine is what boxo says on several lines, with whatever a record holds in it.
func oneLine(err error) string {
	return strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r): // protobuf's errors have one that is none of ASCII's
			return ' '
		case !strconv.IsPrint(r):
			return '.'
		}
		return r
	}, strings.ReplaceAll(err.Error(), "\n", ": "))
}

// Better says whether a wins over b in IPNS: the higher sequence, then the
// later end of life, then the bytes. Both passed Check; a record wins over the
// zero Record.
func Better(a, b Record) bool {
	switch {
	case b.Raw == nil:
		return a.Raw != nil
	case a.Raw == nil:
		return false
	case a.Sequence != b.Sequence:
		return a.Sequence > b.Sequence
	case !a.EOL.Equal(b.EOL):
		return a.EOL.After(b.EOL)
	}
	return bytes.Compare(a.Raw, b.Raw) > 0
}

// State is how far a reader has followed one name: its high-water mark. The
// zero State has accepted nothing. It only ever moves by Accept, AcceptRelease,
// Announce and Succeed, and is kept outside any cache.
type State struct {
	Name     string    `json:"name,omitempty"`  // base36, "k51…"
	Sequence uint64    `json:"sequence"`        // highest accepted
	Value    string    `json:"value,omitempty"` // CID under that sequence; "" before the first
	EOL      time.Time `json:"eol,omitzero"`    // latest end of life seen for that sequence
	Number   uint64    `json:"number"`          // highest release number accepted
	Root     string    `json:"root,omitempty"`  // CID of that release
	Next     string    `json:"next,omitempty"`  // pinned commitment to the successor key
	// Successor is the name that Next commits to, once it was announced: the one
	// to follow as soon as there is a record of it.
	Successor string `json:"successor,omitempty"`
}

// Accept moves s to a record that Check found good, or says why it must not:
// ErrRollback, ErrEquivocation, ErrName. On an error s is returned unchanged.
func Accept(s State, r Record) (State, error) {
	name, value := r.Name.String(), r.Value.String()
	if s.Name != "" && s.Name != name {
		return s, fmt.Errorf("%w: %s, not %s", ErrName, name, s.Name)
	}
	switch {
	case s.Value == "" || r.Sequence > s.Sequence:
		s.EOL = r.EOL
	case r.Sequence < s.Sequence:
		return s, fmt.Errorf("record with sequence %d after %d: %w", r.Sequence, s.Sequence, ErrRollback)
	case value != s.Value:
		return s, fmt.Errorf("sequence %d is %s and %s: %w", r.Sequence, s.Value, value, ErrEquivocation)
	case r.EOL.After(s.EOL):
		s.EOL = r.EOL
	}
	s.Name, s.Sequence, s.Value = name, r.Sequence, value
	return s, nil
}

// Release is what a reader holds a release to its state by.
type Release struct {
	Root   cid.Cid
	Number uint64
	// Names are the names that the registry had, the oldest first, and last the one
	// that it has from this release on; none means the one that it was read under.
	Names []string
	// Next commits to the successor of the last name's key; "" promises none.
	Next string
}

// AcceptRelease moves s to a release, or says why it must not: ErrRollback for a
// lower number, ErrEquivocation for another release of the same number, and
// Announce's errors. On an error s is returned unchanged.
func AcceptRelease(s State, r Release) (State, error) {
	root := r.Root.String()
	if s.Root != "" {
		switch {
		case r.Number < s.Number:
			return s, fmt.Errorf("release %d after %d: %w", r.Number, s.Number, ErrRollback)
		case r.Number == s.Number && root != s.Root:
			return s, fmt.Errorf("release %d is %s and %s: %w", r.Number, s.Root, root, ErrEquivocation)
		}
	}
	after, err := Announce(s, r)
	if err != nil {
		return s, err
	}
	after.Number, after.Root = r.Number, root
	return after, nil
}

// Announce takes up what r says of the key that follows, or says why it must not,
// whether or not r itself may be followed: ErrSuccessor for another promise than
// the one pinned, for a name that is not the one promised, and for names among
// which the followed one is not, or is twice. On an error s is returned unchanged.
//
// What a release promises of a name is its Next where that name is the last of its
// Names, else the name behind it. The first promise seen is pinned (trust on first
// use), and never another of the same name; a release without one changes
// nothing. So a thief of the key may announce what he likes, and moves no reader
// that saw the owner's promise. A name that fits the pin needs no further proof:
// nobody but the owner knew it.
//
// Where nothing is pinned and the followed name is not among Names, the release is
// of another registry's key, to which somebody gave a name of his own: it promises
// nothing of that name.
func Announce(s State, r Release) (State, error) {
	promise, heir := r.Next, ""
	if len(r.Names) > 0 {
		at := slices.Index(r.Names, s.Name)
		switch {
		case at < 0 && s.Next == "":
			return s, nil
		case at < 0:
			return s, fmt.Errorf("release %d: %w: it is of %s, not of %s", r.Number, ErrSuccessor, r.Names[len(r.Names)-1], s.Name)
		case slices.Contains(r.Names[at+1:], s.Name):
			return s, fmt.Errorf("release %d: %w: it names %s twice", r.Number, ErrSuccessor, s.Name)
		case at < len(r.Names)-1:
			heir = r.Names[at+1]
			var err error
			if promise, err = commitmentOf(heir); err != nil {
				return s, fmt.Errorf("release %d: %w: %w", r.Number, ErrSuccessor, err)
			}
		}
	}
	if promise != "" && s.Next != "" && promise != s.Next {
		if heir != "" {
			return s, fmt.Errorf("release %d: %w: %s is not of %s", r.Number, ErrSuccessor, heir, s.Next)
		}
		return s, fmt.Errorf("release %d: %w: %s, not %s", r.Number, ErrSuccessor, promise, s.Next)
	}
	if s.Next == "" {
		s.Next = promise
	}
	if heir != "" {
		s.Successor = heir
	}
	return s, nil
}

// Told is Announce for a name that a person says is the successor's. It needs a
// pin: ErrSuccessor where there is none.
func Told(s State, name ipns.Name) (State, error) {
	promise, err := Commitment(name)
	switch {
	case err != nil:
		return s, fmt.Errorf("%w: %w", ErrSuccessor, err)
	case s.Next == "":
		return s, fmt.Errorf("%w: no release of %s promised one yet", ErrSuccessor, s.Name)
	case promise != s.Next:
		return s, fmt.Errorf("%w: %s is not of %s", ErrSuccessor, name, s.Next)
	}
	s.Successor = name.String()
	return s, nil
}

// Succeed begins the state of the successor that s announced with a record of it
// that Check found good, or says why it must not: ErrName for a record of another
// name, ErrSuccessor where the pin is not of it, or for one of former, the names
// followed before. Nothing of s is in what it begins: whoever has the old key may
// have run its numbers up, and what it promised was of its own successor. On an
// error s is returned unchanged.
func Succeed(s State, former []string, r Record) (State, error) {
	name := r.Name.String()
	if s.Successor == "" || name != s.Successor {
		return s, fmt.Errorf("%w: %s, not %q", ErrName, name, s.Successor)
	}
	if _, err := Told(s, r.Name); err != nil {
		return s, err
	}
	if name == s.Name || slices.Contains(former, name) {
		return s, fmt.Errorf("%w: %s was followed before", ErrSuccessor, name)
	}
	return Accept(State{}, r)
}

func commitmentOf(text string) (string, error) {
	name, err := ipns.NameFromString(text)
	if err != nil || name.String() != text {
		return "", fmt.Errorf("%.100q is no IPNS name", text)
	}
	return Commitment(name)
}

// Commitment is what release.json promises of the key that will follow: the
// SHA-256, in hex, of the public key (libp2p's protobuf form) of an Ed25519
// name. The key stays unknown until it is used.
func Commitment(name ipns.Name) (string, error) {
	key, err := name.Peer().ExtractPublicKey()
	if err != nil {
		return "", fmt.Errorf("public key of %s: %w", name, err)
	}
	raw, err := ic.MarshalPublicKey(key)
	if err != nil {
		return "", fmt.Errorf("public key of %s: %w", name, err)
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:]), nil
}
