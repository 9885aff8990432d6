package couch

import (
	"bufio"
	"bytes"
	"errors"
	"strings"
	"testing"
)

func FuzzReadPage(f *testing.F) {
	for _, seed := range []string{
		`{"results":[{"seq":"1-a","id":"a","changes":[{"rev":"1"}],"doc":{"a":1,"a":2}}],"last_seq":1}`,
		`{"results":[{"seq":null}]}`,
		`{"last_seq":1e9,"results":[]}`,
		`{"results":[{"seq":1,"id":"a","changes":[],"deleted":true,"doc":{}},{"seq":2,"seq":3}],"pending":0}`,
		"{\"results\":[\n\n],\n\"last_seq\":\"0\"}\n",
		`<html>`, `{"results":[{"seq":1`, `{"results":{}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		p, err := readPage(body)
		if err != nil {
			onlyMalformed(t, err)
			return
		}
		for _, c := range p.Changes {
			if c.Seq == "" || len(c.Seq) > maxSeq || c.Doc != nil && (c.Deleted || !bytes.HasPrefix(c.Doc, []byte("{"))) {
				t.Errorf("change %+v", c)
			}
		}
		if len(p.Changes) > p.rows {
			t.Errorf("%d changes of %d rows", len(p.Changes), p.rows)
		}
	})
}

func FuzzReadServer(f *testing.F) {
	for _, seed := range []string{
		`{"db_name":"registry","engine":"npm-replicate","doc_count":4250224,"update_seq":122786079}`,
		`{"db_name":"db","update_seq":"9-g1AAAA","doc_count":-1,"sizes":{"file":1}}`,
		`{"engine":"registry-mirror-feed","uuid":"abc","update_seq":"2-abc","include_docs":false}`,
		`{"update_seq":null,"doc_count":1e99}`, `{"doc_count":"7"}`, `{"update_seq":1,"update_seq":2}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		info, err := readServer(body)
		if err != nil {
			onlyMalformed(t, err)
			return
		}
		if info.UpdateSeq == "" || info.Engine == "" || info.DocCount < 0 || info.Engine == EngineNPM && info.IncludeDocs {
			t.Errorf("server %+v", info)
		}
	})
}

func FuzzReadAllDocs(f *testing.F) {
	for _, seed := range []string{
		`{"total_rows":2,"offset":0,"rows":[{"id":"a","key":"a","value":{"rev":"1-a"}},{"id":"b","key":"b","value":{"rev":"2-b","deleted":true}}]}`,
		`{"rows":[{"key":"x","error":"not_found"}]}`, `{"rows":[{"id":"a","value":null}]}`,
		`{"rows":[],"total_rows":null}`, `{"rows":[{"id":"a","id":"b"}]}`, `{"rows":[{"id":"` + strings.Repeat("a", maxID+1) + `"}]}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		p, err := readDocs(body)
		if err != nil {
			onlyMalformed(t, err)
			return
		}
		l := listing{bounds: map[string]bool{}}
		run, err := l.move(p)
		if err != nil {
			onlyMalformed(t, err)
			return
		}
		for _, d := range run.docs {
			if d.ID == "" || len(d.ID) > maxID || strings.HasPrefix(d.ID, "_design/") {
				t.Errorf("document %+v", d)
			}
		}
	})
}

func FuzzContinuous(f *testing.F) {
	for _, seed := range []string{
		"\n{\"seq\":\"1-a\",\"id\":\"a\",\"changes\":[{\"rev\":\"1-a\"}]}\n\n\r\n{\"last_seq\":\"1-a\",\"pending\":0}\n",
		"{\"seq\":1,\"last_seq\":2}\n", "{}\n", "{\"error\":\"x\"}\n", "null\n", "{\"seq\":1}{\"seq\":2}\n", "{\"seq\":1", "<html>\n",
		strings.Repeat("x", 5000) + "\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		in := lineReader{bufio.NewReaderSize(bytes.NewReader(text), 16), 1000}
		for range len(text) + 1 {
			l, err := in.next()
			if err != nil {
				if !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrTooLarge) && !errors.Is(err, ErrUnavailable) {
					t.Errorf("error %v", err)
				}
				return
			}
			if l.row && (l.last || l.Seq == "") {
				t.Errorf("line %+v", l)
			}
		}
		t.Error("it does not end")
	})
}

func onlyMalformed(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, ErrMalformed) || errors.Is(err, ErrRefused) || errors.Is(err, ErrReset) {
		t.Errorf("error %v", err)
	}
}
