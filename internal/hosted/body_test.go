package hosted

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/go-json-experiment/json/jsontext"
)

func TestSplit(t *testing.T) {
	data := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte("tarball "), 40_000))
	for _, test := range []struct{ name, body, document, tarball string }{
		{"an attachment", `{"a":1,"_attachments":{"x.tgz":{"data":"YWI=","length":2}}}`, `{"a":1,"_attachments":{"x.tgz":{"data":"","length":2}}}`, "ab"},
		{"white space", "{ \"_attachments\" :\n{\"x\":\t{ \"data\" : \"YWI=\" } } }", "{ \"_attachments\" :\n{\"x\":\t{ \"data\" : \"\" } } }", "ab"},
		{"a large one", `{"_attachments":{"x":{"data":"` + data + `"}}}`, `{"_attachments":{"x":{"data":""}}}`, strings.Repeat("tarball ", 40_000)},
		{"an empty one", `{"_attachments":{"x":{"data":""}}}`, `{"_attachments":{"x":{"data":""}}}`, ""},
		{"data elsewhere", `{"versions":{"x":{"data":"YWI="}},"data":"YWI=","_attachments":{"data":"YWI="}}`, `{"versions":{"x":{"data":"YWI="}},"data":"YWI=","_attachments":{"data":"YWI="}}`, ""},
		{"deeper", `{"_attachments":{"x":{"y":{"data":"YWI="}}}}`, `{"_attachments":{"x":{"y":{"data":"YWI="}}}}`, ""},
		{"in an array", `[{"_attachments":{"x":{"data":"YWI="}}}]`, `[{"_attachments":{"x":{"data":"YWI="}}}]`, ""},
		{"after another member", `{"_attachments":{"x":{"a":["data","YWI="],"b":"data","c":"YWI="}}}`, `{"_attachments":{"x":{"a":["data","YWI="],"b":"data","c":"YWI="}}}`, ""},
		{"escapes", `{"a\"}":"\\","_attachments":{"\"":{"data":"YWI="}}}`, `{"a\"}":"\\","_attachments":{"\"":{"data":""}}}`, "ab"},
		{"an escaped name", `{"_attachments":{"x":{"d\u0061ta":"YWI="}}}`, `{"_attachments":{"x":{"d\u0061ta":"YWI="}}}`, ""},
		{"no string", `{"_attachments":{"x":{"data":{"y":"YWI="}}}}`, `{"_attachments":{"x":{"data":{"y":"YWI="}}}}`, ""},
		{"nothing", ``, ``, ""},
	} {
		for _, r := range []io.Reader{strings.NewReader(test.body), iotest.OneByteReader(strings.NewReader(test.body))} {
			var tarball bytes.Buffer
			document, err := split(r, 1<<20, 1<<20, &tarball)
			if err != nil || string(document) != test.document || tarball.String() != test.tarball {
				t.Errorf("%s: %.100s and %.100q, %v", test.name, document, tarball.String(), err)
			}
		}
	}
	attached := func(s string) string { return `{"_attachments":{"x":{"data":"` + s + `"}}}` }
	for _, test := range []struct {
		name, body string
		want       error
	}{
		{"half a document", `{"a":"`, io.ErrUnexpectedEOF},
		{"half an attachment", `{"_attachments":{"x":{"data":"YWI=`, io.ErrUnexpectedEOF},
		{"half a group", `{"_attachments":{"x":{"data":"YW`, io.ErrUnexpectedEOF},
		{"two", `{"_attachments":{"x":{"data":"YWI="},"y":{"data":"YWI="}}}`, errBody},
		{"no padding", attached("YWI"), errBody},
		{"no base64", attached("YW-_"), errBody},
		{"bits behind the end", attached("YWJ="), errBody},
		{"bytes behind the end", attached("YWI=YWI="), errBody},
		{"a line break", attached("YWI=\n"), errBody},
		{"an escape", attached(`YWI\u003d`), errBody},
		{"a closing bracket", `}`, errBody},
		{"too large a document", `{"a":"` + strings.Repeat("a", 200) + `"}`, errTooLarge},
		{"too large a tarball", attached(strings.Repeat("YWJj", 34)), errTooLarge},
	} {
		_, err := split(strings.NewReader(test.body), 100, 100, io.Discard)
		if !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", test.name, err, test.want)
		}
	}
	broken := errors.New("broken")
	if _, err := split(iotest.ErrReader(broken), 100, 100, io.Discard); !errors.Is(err, broken) {
		t.Errorf("a reader that fails: %v", err)
	}
}

// What is left of a document is JSON if and only if the body was, and with the
// attachment put back it is the body's.
func FuzzSplit(f *testing.F) {
	f.Add([]byte(`{"a":1,"_attachments":{"x.tgz":{"data":"YWI=","length":2}}}`))
	f.Add([]byte(`{"_attachments":{"a":{"data":"` + `"},"data":"YWI=","b":["data"]}}`))
	f.Add([]byte(`[[{"_attachments":{"x":{"data" :"YWI="}}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var tarball bytes.Buffer
		document, err := split(bytes.NewReader(raw), 1<<20, 1<<20, &tarball)
		if err != nil {
			return
		}
		if json.Valid(document) != json.Valid(raw) {
			t.Fatalf("%q leaves %q", raw, document)
		}
		if !jsontext.Value(raw).IsValid() {
			return
		}
		type publication struct {
			Attachments map[string]struct {
				Data *string `json:"data"`
			} `json:"_attachments"`
		}
		var was, is publication
		if json.Unmarshal(raw, &was) != nil || json.Unmarshal(document, &is) != nil {
			return
		}
		found := false
		for name, a := range was.Attachments {
			b := is.Attachments[name]
			if a.Data == nil || b.Data == nil || *a.Data == *b.Data {
				continue
			}
			if found || *b.Data != "" || *a.Data != base64.StdEncoding.EncodeToString(tarball.Bytes()) {
				t.Fatalf("%q leaves %q and %q", raw, document, tarball.Bytes())
			}
			found = true
		}
		if !found && tarball.Len() > 0 {
			t.Fatalf("%q leaves %q and %q", raw, document, tarball.Bytes())
		}
	})
}

// No tarball makes packageOf fail in another way than with an error, and the
// package.json that it read is one that is in there.
func FuzzPackageOf(f *testing.F) {
	f.Add(archive(entry{"package/package.json", `{"name":"a","version":"1.0.0"}`}, entry{"package/x@", "y"}))
	f.Add([]byte("no tar"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		name, version, unpacked, err := packageOf(bytes.NewReader(zipped(raw)))
		if err == nil && (unpacked > int64(len(raw)) || !bytes.Contains(raw, []byte("package.json")) && (name != "" || version != "")) {
			t.Fatalf("%q is %q@%q of %d bytes", raw, name, version, unpacked)
		}
		_, _, _, _ = packageOf(bytes.NewReader(raw))
	})
}
