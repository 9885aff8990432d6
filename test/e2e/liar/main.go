// Command liar is, for the end-to-end scripts, a gateway that is not honest:
// liar LISTEN ORIGIN DIR stands before the gateway at the URL ORIGIN, and reads, at every
// request, from the directory DIR what it lies about:
//
//	record  the IPNS record that it gives for every name
//	flip    a line for each CID (or "all") in whose block one bit is turned round
//	gone    a line for each CID (or "all") that it does not have, and any CAR that has it ends there
//	silent  it never answers for a block, until the asker leaves
package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/ipfs/go-cid"
	car "github.com/ipld/go-car/v2"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: liar HOST:PORT ORIGIN DIR")
		os.Exit(64)
	}
	err := http.ListenAndServe(os.Args[1], &liar{origin: os.Args[2], dir: os.Args[3]})
	fmt.Fprintln(os.Stderr, "liar: error:", err)
	os.Exit(1)
}

type liar struct{ origin, dir string }

// lies reports whether it lies in that way about a CID.
func (l *liar) lies(how, c string) bool {
	said, err := os.ReadFile(filepath.Join(l.dir, how))
	if err != nil {
		return false
	}
	lines := strings.Fields(string(said))
	return slices.Contains(lines, c) || slices.Contains(lines, "all")
}

func (l *liar) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.URL.Path, "/routing/v1/ipns/") || r.URL.Query().Get("format") == "ipns-record" {
		if raw, err := os.ReadFile(filepath.Join(l.dir, "record")); err == nil {
			w.Header().Set("Content-Type", "application/vnd.ipfs.ipns-record")
			_, _ = w.Write(raw)
			return
		}
	}
	if _, err := os.Stat(filepath.Join(l.dir, "silent")); err == nil && strings.HasPrefix(r.URL.Path, "/ipfs/") {
		<-r.Context().Done()
		return
	}
	req, err := http.NewRequestWithContext(r.Context(), r.Method, l.origin+r.URL.RequestURI(), nil)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	req.Header.Set("Accept", r.Header.Get("Accept"))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err == nil && resp.StatusCode == http.StatusOK {
		body, err = l.forge(r.URL.Path, r.URL.Query().Get("format"), body)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	for _, h := range []string{"Content-Type", "X-Ipfs-Roots", "Etag"} {
		if v := resp.Header.Get(h); v != "" {
			w.Header().Set(h, v)
		}
	}
	w.WriteHeader(resp.StatusCode)
	_, _ = w.Write(body)
}

var errGone = errors.New("not found here")

// forge is a body as it is given on.
func (l *liar) forge(path, format string, body []byte) ([]byte, error) {
	switch format {
	case "raw":
		return l.block(strings.TrimPrefix(path, "/ipfs/"), body)
	case "car":
		return l.car(body)
	}
	return body, nil
}

func (l *liar) block(c string, data []byte) ([]byte, error) {
	if l.lies("gone", c) {
		return nil, errGone
	}
	if l.lies("flip", c) && len(data) > 0 {
		data = bytes.Clone(data)
		data[len(data)/2] ^= 1
	}
	return data, nil
}

// car gives a CAR on up to the first block that is gone.
func (l *liar) car(body []byte) ([]byte, error) {
	r, err := car.NewBlockReader(bytes.NewReader(body), car.WithTrustedCAR(true))
	if err != nil {
		return nil, err
	}
	length, n := binary.Uvarint(body)
	out := bytes.NewBuffer(body[: n+int(length) : n+int(length)])
	for {
		b, err := r.Next()
		if err == io.EOF {
			return out.Bytes(), nil
		}
		if err != nil {
			return nil, err
		}
		data, err := l.block(b.Cid().String(), b.RawData())
		if err != nil {
			return out.Bytes(), nil
		}
		section(out, b.Cid(), data)
	}
}

func section(out *bytes.Buffer, c cid.Cid, data []byte) {
	var length [binary.MaxVarintLen64]byte
	out.Write(length[:binary.PutUvarint(length[:], uint64(c.ByteLen()+len(data)))])
	out.Write(c.Bytes())
	out.Write(data)
}
