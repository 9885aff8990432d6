package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ipfs/boxo/ipns"
	"github.com/spf13/cobra"

	"github.com/registry-mirror/registry-mirror/internal/cli"
	"github.com/registry-mirror/registry-mirror/internal/ipfs"
	"github.com/registry-mirror/registry-mirror/internal/ipnsrecord"
	"github.com/registry-mirror/registry-mirror/internal/publish"
	"github.com/registry-mirror/registry-mirror/internal/state"
	"github.com/registry-mirror/registry-mirror/ipnskeys"
)

// errNoRecord ends inspect where the node finds no record of the name.
var errNoRecord = errors.New("the node finds no record")

const (
	// minLifetime leaves time to sign anew at half of it.
	minLifetime = time.Minute
	// lookTimeout is how long the node may look for a record: a DHT walk takes up
	// to a minute.
	lookTimeout = 75 * time.Second
	// maxDraft bounds a draft that is read, in bytes; one takes about 350.
	maxDraft = 64 << 10
)

func bindLifetime(cmd *cobra.Command, r *registry) {
	cmd.Flags().DurationVar(&r.lifetime, "lifetime", publish.DefaultLifetime, "how long a record is valid; half way it is signed anew")
}

// bindRecord binds what says how records are made. It counts from the next one
// on that is signed.
func bindRecord(cmd *cobra.Command, r *registry) {
	bindLifetime(cmd, r)
	cmd.Flags().DurationVar(&r.ttl, "ttl", publish.DefaultTTL, "how long readers may go without asking for a newer record")
	cmd.Flags().BoolVar(&r.v2Only, "v2-only", false, "sign records without the fields of V1, which old nodes need")
}

func (r *registry) checkLifetime() error {
	if r.lifetime < minLifetime || r.lifetime > publish.MaxLifetime {
		return cli.Hint(cli.Usagef("--lifetime %s: it is from %s to %s", r.lifetime, minLifetime, publish.MaxLifetime),
			"until its end anybody may put a record again, so it is no longer than runs may be missed")
	}
	return nil
}

func (r *registry) checkRecord() error {
	if err := r.checkLifetime(); err != nil {
		return err
	}
	if r.ttl <= 0 || r.ttl > r.lifetime {
		return cli.Hint(cli.Usagef("--ttl %s: it is more than 0, and no more than --lifetime %s", r.ttl, r.lifetime),
			"a short one, as 1m, lets readers see a new release soon")
	}
	return nil
}

func recordCommand(r *registry) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "record",
		Short: "Look at IPNS records, and sign them on another machine",
		Long: `Looks at IPNS records, and publishes in three steps where the key is not on the
machine that publishes: draft says what is to be signed, sign signs it where the key is,
put hands it to a node.`,
		Example: `  publisher record draft --output release.draft
  publisher record sign release.draft --output release.ipns-record   # where the key is
  publisher record put release.ipns-record`,
	}
	cmd.AddCommand(inspectCommand(r), verifyCommand(r), draftCommand(r), signCommand(r), putCommand(r))
	return cmd
}

// fieldsJSON is ipnsrecord.Fields as --json prints it. Times are text: a hostile
// one may lie beyond JSON's years.
type fieldsJSON struct {
	Value     string        `json:"value"`
	EOL       string        `json:"eol,omitempty"`
	Sequence  uint64        `json:"sequence"`
	TTL       time.Duration `json:"ttl"` // nanoseconds
	Signature int           `json:"signature_bytes"`
	Problem   string        `json:"problem,omitempty"`
}

func fields(f *ipnsrecord.Fields) *fieldsJSON {
	if f == nil {
		return nil
	}
	v := &fieldsJSON{Value: plain(f.Value), Sequence: f.Sequence, TTL: f.TTL, Signature: f.Signature, Problem: f.Problem}
	if !f.EOL.IsZero() {
		v.EOL = f.EOL.Format(time.RFC3339Nano)
	}
	return v
}

// plain is text that a terminal takes as it is, else quoted.
func plain(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return !strconv.IsPrint(r) || r == '\uFFFD' }) {
		return strconv.Quote(s)
	}
	return s
}

// What a record is found to be.
const (
	isValid   = "valid"
	isExpired = "expired"
	isInvalid = "invalid"
	isUnknown = "unknown" // whose it is
)

// recordJSON is what `record inspect` and `record verify` say.
type recordJSON struct {
	Verdict   string      `json:"verdict"`
	Problem   string      `json:"problem,omitempty"`
	Name      string      `json:"name,omitempty"`
	NameFrom  string      `json:"name_from,omitempty"` // what says that it is of this name
	Remaining int64       `json:"remaining_s"`         // until it expires; of a valid one
	Size      int         `json:"size"`
	V1        *fieldsJSON `json:"v1,omitempty"`
	V2        *fieldsJSON `json:"v2,omitempty"`
	More      []string    `json:"more,omitempty"`          // names of further signed fields
	Unknown   int         `json:"unknown_bytes,omitempty"` // of fields that IPNS does not know
}

// judge says what raw is, as a record of name; the zero Name is one that nothing
// says. The error is why it is not valid.
func judge(c ipnsrecord.Contents, raw []byte, name ipns.Name, from string) (recordJSON, error) {
	v := recordJSON{Verdict: isUnknown, Size: c.Size, V1: fields(c.V1), V2: fields(c.V2), Unknown: c.Unknown}
	for _, key := range c.More {
		v.More = append(v.More, plain(key))
	}
	if name.Equal(ipns.Name{}) {
		v.Problem = "it does not carry its key, so nothing says whose it is: `publisher record verify NAME FILE`"
		return v, nil
	}
	v.Name, v.NameFrom = name.String(), from
	now := time.Now()
	r, err := ipnsrecord.Check(name, raw, now)
	switch {
	case err == nil:
		v.Verdict, v.Remaining = isValid, int64(r.EOL.Sub(now)/time.Second)
	case errors.Is(err, ipnsrecord.ErrExpired):
		v.Verdict = isExpired
	default:
		v.Verdict = isInvalid
	}
	if err != nil {
		v.Problem = err.Error()
	}
	return v, err
}

func (v recordJSON) print(w io.Writer) error {
	verdict := v.Verdict
	if v.Problem != "" {
		verdict += ": " + v.Problem
	} else {
		verdict += fmt.Sprintf(" for %s", time.Duration(v.Remaining)*time.Second)
	}
	fmt.Fprintf(w, "verdict   %s\n", verdict)
	if v.Name != "" {
		fmt.Fprintf(w, "name      /ipns/%s (says %s)\n", v.Name, v.NameFrom)
	}
	fmt.Fprintf(w, "size      %d bytes\n", v.Size)
	for _, form := range []struct {
		name string
		f    *fieldsJSON
	}{{"V2", v.V2}, {"V1", v.V1}} {
		if form.f == nil {
			fmt.Fprintf(w, "%-10snone\n", form.name)
			continue
		}
		fmt.Fprintf(w, "%-10s%s\n", form.name, form.f.Value)
		fmt.Fprintf(w, "          sequence %d, until %s, TTL %s, signature of %d bytes\n", form.f.Sequence, form.f.EOL, form.f.TTL, form.f.Signature)
		if form.f.Problem != "" {
			fmt.Fprintf(w, "          cannot be read: %s\n", form.f.Problem)
		}
	}
	if len(v.More) > 0 {
		fmt.Fprintf(w, "further   %s\n", strings.Join(v.More, ", "))
	}
	if v.Unknown > 0 {
		fmt.Fprintf(w, "unknown   %d bytes of fields that IPNS does not know\n", v.Unknown)
	}
	return nil
}

func inspectCommand(r *registry) *cobra.Command {
	return &cobra.Command{
		Use:   "inspect FILE | NAME | -",
		Short: "Say what a record says, and whether it is valid",
		Long: `Says what a record says, field by field, and whether it is valid. NAME is k51…,
/ipns/k51… or ipns://k51…, of which the node of this state is asked; - is standard input.

A record of an Ed25519 key does not carry that key, so whose a file's is must come from
elsewhere: the file's name, where it begins with the IPNS name, or a key of this state.
publisher record verify takes the name as it is given.`,
		Example: `  publisher record inspect k51….ipns-record
  publisher record inspect /ipns/k51… --json | jq .v2.sequence
  curl -sH 'Accept: application/vnd.ipfs.ipns-record' $ROUTER/routing/v1/ipns/k51… | publisher record inspect -`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			raw, name, from, err := r.recordOf(cmd, args[0])
			if err != nil {
				return err
			}
			c, err := ipnsrecord.Inspect(raw)
			if err != nil {
				return fmt.Errorf("inspect %s: %w", args[0], err)
			}
			if from == "" {
				if name, from, err = r.nameOf(c, raw, args[0]); err != nil {
					return err
				}
			}
			v, _ := judge(c, raw, name, from)
			if r.JSON {
				return cli.PrintJSON(cmd.OutOrStdout(), v)
			}
			return v.print(cmd.OutOrStdout())
		},
	}
}

func verifyCommand(r *registry) *cobra.Command {
	return &cobra.Command{
		Use:   "verify NAME FILE",
		Short: "Say whether a record is valid for a name",
		Long: `Ends with 0 where FILE, or standard input for -, is a record that NAME signed and
that has not expired, else with 14, saying why not. It needs no state, node or network.`,
		Example: `  publisher record verify k51… release.ipns-record && publisher record put release.ipns-record k51…`,
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := parseName(args[0])
			if err != nil {
				return err
			}
			raw, err := readInput(cmd, args[1], ipnsrecord.MaxSize)
			if err != nil {
				return err
			}
			c, err := ipnsrecord.Inspect(raw)
			v := recordJSON{Verdict: isInvalid, Name: name.String(), NameFrom: byArgument, Size: len(raw)}
			if err != nil {
				v.Problem = err.Error()
			} else {
				v, err = judge(c, raw, name, byArgument)
			}
			if err != nil {
				err = fmt.Errorf("verify %s: %w", args[1], err)
			}
			out := cmd.OutOrStdout()
			switch {
			case r.JSON:
				return errors.Join(err, cli.PrintJSON(out, v))
			case err != nil || !cli.IsTerminal(out) && !r.Verbose:
				return err
			}
			return v.print(out)
		},
	}
}

// What says whose a record is.
const (
	byArgument = "the command line"
	byRecord   = "the key in the record"
	byFile     = "the file's name"
	byKey      = "a key of this state"
)

// recordOf reads a file, or asks the node for the record of a name; from is "" for
// a file.
func (r *registry) recordOf(cmd *cobra.Command, arg string) (raw []byte, name ipns.Name, from string, err error) {
	_, statErr := os.Stat(arg)
	name, err = parseName(arg)
	if arg == "-" || err != nil || statErr == nil && !strings.HasPrefix(arg, "/ipns/") {
		raw, err = readInput(cmd, arg, ipnsrecord.MaxSize)
		return raw, ipns.Name{}, "", err
	}
	node, err := r.node(cmd)
	if err != nil {
		return nil, name, "", err
	}
	defer func() { err = errors.Join(err, node.Close()) }()
	ctx, cancel := context.WithTimeout(cmd.Context(), lookTimeout)
	defer cancel()
	raw, err = node.Record(ctx, name)
	if errors.Is(err, ipfs.ErrNotFound) {
		err = fmt.Errorf("inspect %s: %w", name, errNoRecord)
	}
	return raw, name, byArgument, err
}

// nameOf says whose record raw is taken to be, and what says so; "" where nothing
// does.
func (r *registry) nameOf(c ipnsrecord.Contents, raw []byte, file string) (ipns.Name, string, error) {
	if !c.Name.Equal(ipns.Name{}) {
		return c.Name, byRecord, nil
	}
	stem, _, _ := strings.Cut(filepath.Base(file), ".")
	stem, _, _ = strings.Cut(stem, "_")
	if name, err := ipns.NameFromString(stem); err == nil {
		return name, byFile, nil
	}
	keys, err := ipnskeys.List(state.Dir(r.State).Keys())
	if err != nil {
		return ipns.Name{}, "", err
	}
	for _, k := range keys {
		for _, name := range k.Names() {
			if _, err := ipnsrecord.Check(name, raw, time.Time{}); !errors.Is(err, ipnsrecord.ErrSignature) && c.V2 != nil {
				return name, byKey, nil
			}
		}
	}
	return ipns.Name{}, "", nil
}

// parseName takes k51…, /ipns/k51… and ipns://k51….
func parseName(text string) (ipns.Name, error) {
	name, err := ipns.NameFromString(strings.TrimSuffix(strings.TrimPrefix(strings.TrimPrefix(text, "ipns://"), "/ipns/"), "/"))
	if err != nil {
		return ipns.Name{}, cli.Hint(cli.Usagef("%.100q is no IPNS name", text), "an IPNS name begins with k51")
	}
	return name, nil
}

// readInput reads a file, or standard input for "-": all of it, or one byte more
// than most.
func readInput(cmd *cobra.Command, file string, most int) ([]byte, error) {
	in := cmd.InOrStdin()
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, cli.Usagef("read: %w", err)
		}
		defer f.Close()
		in = f
	}
	raw, err := io.ReadAll(io.LimitReader(in, int64(most)+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	return raw, nil
}

// bindOutput binds where draft and sign write; "" is standard output.
func bindOutput(cmd *cobra.Command, output *string) {
	cmd.Flags().StringVarP(output, "output", "o", "", "file to write instead of standard output; one that is there is never replaced")
}

// writeOutput writes a file that appears whole or not at all, and is on disk
// then. One that holds these bytes will do. No link is made: a memory stick's
// filesystem may have none.
func writeOutput(path string, data []byte) error {
	have, err := os.ReadFile(path)
	switch {
	case err == nil && bytes.Equal(have, data):
		return nil
	case err == nil:
		return cli.Hint(cli.Usagef("--output %s: there is another file of this name", path), "name another one: none is replaced")
	case !errors.Is(err, os.ErrNotExist):
		return cli.Usagef("--output: %w", err)
	}
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*") // 0600
	if err != nil {
		return cli.Usagef("--output: %w", cli.OfFile(path, err))
	}
	defer os.Remove(f.Name()) // fails once it was renamed
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return cli.OfFile(path, err)
	}
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return errors.Join(d.Sync(), d.Close())
}

func draftCommand(r *registry) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "draft [NAME]",
		Short: "Build a release, and write down the record that is to be signed",
		Long: `Does what publish does but for the signing: builds a release if the ledger moved,
makes sure that the node has all of it, keeps in the journal what is to be signed, and
writes that as a draft. It needs keys/NAME/public.json of the key, and not the key.

Until a newer release, or until half of the lifetime is over, it is the same draft each
time. After that its sequence is abandoned: put refuses what was signed for it. Where the
newest release has a signed record it ends with 1: there is nothing to sign.

NAME is a name that the registry had before its key was rotated, and that is still kept
up: it points at the same release, by a record and a draft of its own.`,
		Example: `  publisher record draft --output release.draft
  publisher record draft k51... --output former.draft     # for the name before a rotation
  publisher record draft | ssh vault publisher record sign - | publisher record put -`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := r.checkRecord(); err != nil {
				return err
			}
			var former *ipns.Name
			if len(args) == 1 {
				name, err := parseName(args[0])
				if err != nil {
					return err
				}
				former = &name
			}
			var draft publish.Draft
			err := r.with(cmd, build, func(ctx context.Context, o *opened) (err error) {
				if former == nil || former.Equal(o.key.IPNSName) {
					draft, err = o.Draft(ctx)
				} else {
					draft, err = o.DraftFormer(ctx, *former)
				}
				return err
			})
			if err != nil {
				return err
			}
			text, err := draft.Encode()
			if err != nil {
				return err
			}
			if output != "" {
				return writeOutput(output, text)
			}
			_, err = cmd.OutOrStdout().Write(text)
			return err
		},
	}
	bindParameters(cmd, r)
	bindRecord(cmd, r)
	bindOutput(cmd, &output)
	return cmd
}

// signedJSON is what `record sign --json` prints.
type signedJSON struct {
	Name     string    `json:"name"`
	Number   uint64    `json:"number"` // of the release
	CID      string    `json:"cid"`
	Sequence uint64    `json:"sequence"`
	EOL      time.Time `json:"eol"`
	Record   []byte    `json:"record"`
}

func signCommand(r *registry) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "sign DRAFT",
		Short: "Sign a draft, without node, ledger and network",
		Long: `Signs DRAFT, or standard input for -, with the key of this state that has the draft's
IPNS name, and writes the record. It needs the keys and nothing else of the state, and
keeps in the journal what it signed: never two values for one sequence, whatever drafts
it is given. Signed again, a draft gives the same bytes.

Before you sign, see that the draft's value is the release that you mean to publish:
nothing here can tell.`,
		Example: `  publisher record sign release.draft --output release.ipns-record`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			out := cmd.OutOrStdout()
			if output == "" && !r.JSON && cli.IsTerminal(out) {
				return cli.Hint(cli.Usagef("a record is no text for a terminal"), "write it to a file with --output FILE")
			}
			raw, err := readInput(cmd, args[0], maxDraft)
			if err != nil {
				return err
			}
			draft, err := publish.ParseDraft(raw)
			if err != nil {
				return fmt.Errorf("sign %s: %w", args[0], err)
			}
			dir := state.Dir(r.State)
			key, number, err := keyOf(dir, draft.Name)
			if err != nil {
				return err
			}
			var signer publish.Signer
			if number < key.Number {
				r.name = key.Name
				identities, err := r.opening(cmd.Context()).Read(key.Name)
				if err != nil {
					return err
				}
				signer, err = ipnskeys.LoadFormer(cmd.Context(), key.Dir, key.Name, draft.Name, identities...)
				if err != nil {
					return err
				}
			} else if signer, err = r.loadKey(cmd.Context(), key); err != nil {
				return err
			}
			p := publish.New(publish.Options{
				Registry: key.Name, Signer: signer, Journal: publish.JournalOf(dir.Journal(key.Name), number), Log: r.Logger(cmd.ErrOrStderr(), false),
			})
			record, err := p.SignDraft(draft)
			if errors.Is(err, ipnsrecord.ErrEquivocation) {
				err = cli.Hint(err, "two machines draft, or the journal of the one that does is an old copy: nothing was signed")
			}
			if err != nil {
				return err
			}
			if log := cmd.ErrOrStderr(); cli.IsTerminal(log) || r.Verbose {
				fmt.Fprintf(log, "signed record %d of /ipns/%s: release %d, %s, until %s\n",
					draft.Sequence, draft.Name, draft.Release, draft.Value, cli.Time(draft.EOL))
			}
			if output != "" {
				if err := writeOutput(output, record); err != nil {
					return err
				}
			}
			switch {
			case r.JSON:
				return cli.PrintJSON(out, signedJSON{draft.Name.String(), draft.Release, draft.Value.String(), draft.Sequence, draft.EOL, record})
			case output == "":
				_, err = out.Write(record)
			}
			return err
		},
	}
	bindIdentity(cmd, r)
	bindOutput(cmd, &output)
	return cmd
}

// keyOf finds the key of an IPNS name, opening nothing. Where there is none it is
// ipnskeys.ErrNoKey.
func keyOf(dir state.Dir, name ipns.Name) (k ipnskeys.Key, number int, err error) {
	keys, err := ipnskeys.List(dir.Keys())
	if err != nil {
		return ipnskeys.Key{}, 0, err
	}
	for _, k := range keys {
		if at := slices.IndexFunc(k.Names(), name.Equal); at >= 0 {
			return k, at + 1, nil
		}
	}
	return ipnskeys.Key{}, 0, cli.Hint(fmt.Errorf("key of %s: %w", name, ipnskeys.ErrNoKey), "`publisher key list` says which names this state can sign for")
}

func putCommand(r *registry) *cobra.Command {
	return &cobra.Command{
		Use:   "put RECORD [NAME]",
		Short: "Hand a signed record to the node, and read it back",
		Long: `Hands RECORD, or standard input for -, to the node of this state and reads it back, as
publish does. It needs no key: anybody may put a record. NAME is needed where neither
the file's name begins with the IPNS name nor the state has its key.

Where the state has the journal of that name, the record must be the one that was
drafted there; it is kept there before it is put. One that a newer record overtook is
refused.`,
		Example: `  publisher record put release.ipns-record
  publisher record put release.ipns-record k51…   # anywhere`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			raw, err := readInput(cmd, args[0], ipnsrecord.MaxSize)
			if err != nil {
				return err
			}
			name, err := r.putName(raw, args)
			if err != nil {
				return err
			}
			// Before a node is made for it.
			if _, err := ipnsrecord.Check(name, raw, time.Now()); err != nil {
				return fmt.Errorf("put %s: %w", args[0], err)
			}
			dir := state.Dir(r.State)
			journal := ""
			key, number, err := keyOf(dir, name)
			if err == nil {
				journal = publish.JournalOf(dir.Journal(key.Name), number)
			} else if !errors.Is(err, ipnskeys.ErrNoKey) {
				return err
			}
			node, err := r.node(cmd)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, node.Close()) }()
			p := publish.New(publish.Options{
				Registry: key.Name, Node: node, IPNSName: name, Journal: journal, Log: r.Logger(cmd.ErrOrStderr(), false),
			})
			result, err := p.Put(cmd.Context(), name, raw)
			out := cmd.OutOrStdout()
			switch {
			case r.JSON && result.Sequence > 0:
				return errors.Join(err, cli.PrintJSON(out, result))
			case err != nil || !cli.IsTerminal(out) && !r.Verbose:
				return err
			}
			return printPut(out, result)
		},
	}
}

// putName is the second argument, or what nameOf says.
func (r *registry) putName(raw []byte, args []string) (ipns.Name, error) {
	if len(args) == 2 {
		return parseName(args[1])
	}
	c, err := ipnsrecord.Inspect(raw)
	if err != nil {
		return ipns.Name{}, fmt.Errorf("put %s: %w", args[0], err)
	}
	name, from, err := r.nameOf(c, raw, args[0])
	if err == nil && from == "" {
		err = cli.Hint(cli.Usagef("put %s: nothing says whose record it is", args[0]), "name it: `publisher record put "+cli.ShellWord(args[0])+" k51…`")
	}
	return name, err
}

func printPut(w io.Writer, result publish.Result) error {
	where := "read back"
	if result.LocalOnly {
		where = "local only: the node has no peers"
	}
	fmt.Fprintf(w, "record %d of /ipns/%s: %s, valid until %s, %s\n", result.Sequence, result.Name, result.CID, cli.Time(result.EOL), where)
	if result.Number > 0 {
		fmt.Fprintf(w, "release %d: the journal has its record\n", result.Number)
	}
	return nil
}

// node opens the state's node alone.
func (r *registry) node(cmd *cobra.Command) (*state.Node, error) {
	return state.Dir(r.State).OpenNode(cmd.Context(), state.NodeOptions{
		Kind: r.Node, API: r.IPFSAPI, Network: ipfs.Network(r.Network), Peers: r.Peers, Log: r.Logger(cmd.ErrOrStderr(), false),
	})
}
