package page

import (
	"strings"
	"testing"

	"github.com/registry-mirror/registry-mirror/internal/mirror"
)

func TestReadme(t *testing.T) {
	for text, want := range map[string]string{
		"":                               "",
		"# a\n###### b":                  "<h3>a</h3>\n<h6>b</h6>\n",
		"[a](https://x.test/?a=1&b)":     `<p><a href="https://x.test/?a=1&amp;b" rel="nofollow noopener noreferrer">a</a></p>` + "\n",
		"[a](docs/x.md) [b](#c)":         "<p>a b</p>\n",
		"<me@x.test>":                    `<p><a href="mailto:me@x.test" rel="nofollow noopener noreferrer">me@x.test</a></p>` + "\n",
		"![a *b*](https://x.test/i.png)": `<p><a href="https://x.test/i.png" rel="nofollow noopener noreferrer"><span class="image">a b</span></a></p>` + "\n",
		"[![a](https://x.test/i.png)](https://y.test)":                            `<p><a href="https://y.test" rel="nofollow noopener noreferrer"><span class="image">a</span></a></p>` + "\n",
		"a <b>b</b><br>c <img src=x alt=d>":                                       `<p>a b<br>c <span class="image">d</span></p>` + "\n",
		"<h1 align=center><a href=\"https://x.test\">x</a></h1>\n<p>y<br>z</p>\n": `<p><a href="https://x.test" rel="nofollow noopener noreferrer">x</a></p>` + "\n<p>y<br>z</p>\n",
		"<script>\nalert(1)\n\nmore\n</script>\n\nend":                            "<p>end</p>\n",
		"| a |\n|:-:|\n| b |":                                                     "<table>\n<thead>\n<tr>\n<th>a</th>\n</tr>\n</thead>\n<tbody>\n<tr>\n<td>b</td>\n</tr>\n</tbody>\n</table>\n",
	} {
		if got := string(Readme(text)); got != want {
			t.Errorf("%q is\n%s, want\n%s", text, got, want)
		}
	}
}

// What would take long is shown as it is written; what only looks like it is not.
func TestReadmeThatTakesLong(t *testing.T) {
	fill := func(s string) string { return strings.Repeat(s, mirror.MaxReadme/len(s)) }
	for _, text := range []string{fill(">"), fill("> "), fill("- ") + "a", fill("1) "), fill("["), fill("[a]("), fill("[](<"), fill("!["), strings.Repeat("[", 30000) + strings.Repeat("]", 30000)} {
		if got := Readme(text); !strings.HasPrefix(string(got), "<pre>") {
			t.Errorf("%.20q… is rendered", text)
		}
	}
	for _, text := range []string{fill("[a](https://x.test)\n\n"), fill("- a\n"), fill("-"), fill("* "), "---\n***\n" + strings.Repeat("=", 80), fill("1. a\n"), "-----------------------------\na", "1.2.3.4.5.6.7.8.9.10"} {
		if got := Readme(text); strings.HasPrefix(string(got), "<pre>") {
			t.Errorf("%.20q… is not rendered", text)
		}
	}
}
