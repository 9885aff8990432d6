package page

import (
	"bytes"
	"fmt"
	"html"
	"html/template"
	"net/url"
	"slices"
	"strings"

	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/ast"
	"github.com/yuin/goldmark/extension"
	"github.com/yuin/goldmark/renderer"
	"github.com/yuin/goldmark/util"
	nethtml "golang.org/x/net/html"
)

const (
	// maxNested and maxBrackets keep the time of a readme in bounds: what they allow
	// in 64 KiB takes some tenths of a second, what they do not up to minutes.
	maxNested   = 16   // quotes and lists that one line opens
	maxBrackets = 1000 // "[" in one block of text
)

// markdown renders what whoever published a package wrote. Of HTML in it only the text
// comes through; a link leads to http, https or mailto; an image is a link that says
// what it shows, for loading it would tell its server who reads this.
var markdown = goldmark.New(
	goldmark.WithExtensions(
		extension.NewTable(extension.WithTableCellAlignMethod(extension.TableCellAlignNone)),
		extension.Strikethrough, extension.Linkify,
	),
	goldmark.WithRendererOptions(renderer.WithNodeRenderers(util.Prioritized(harmless{}, 1))),
)

// Readme renders a readme, of which at most mirror.MaxReadme bytes are expected. One
// that is made to take long to render is shown as it was written.
func Readme(text string) template.HTML {
	if text == "" {
		return ""
	}
	var out bytes.Buffer
	if takesLong(text) || markdown.Convert([]byte(text), &out) != nil {
		return template.HTML(`<pre>` + html.EscapeString(text) + `</pre>`)
	}
	return template.HTML(out.String())
}

// takesLong says whether rendering would take time that grows with the square of the
// text: quotes and lists nested in one line, and brackets that may all begin a link.
func takesLong(text string) bool {
	brackets := 0
	for line := range strings.Lines(text) {
		if strings.TrimSpace(line) == "" {
			brackets = 0
			continue
		}
		if brackets += strings.Count(line, "["); brackets > maxBrackets {
			return true
		}
		nested := 0
		for rest := strings.TrimLeft(line, " \t"); rest != ""; nested++ {
			digits := len(rest) - len(strings.TrimLeft(rest, "0123456789"))
			if digits == len(rest) || !strings.ContainsRune(">-*+.)", rune(rest[digits])) {
				break
			}
			rest = strings.TrimLeft(rest[digits+1:], " \t")
		}
		// A rule, as "-----", opens nothing.
		if nested > maxNested && strings.Trim(line, "-*+_=. \t\r\n") != "" {
			return true
		}
	}
	return false
}

// harmless renders the nodes that goldmark would write addresses, ids or HTML for.
type harmless struct{}

// RegisterFuncs implements renderer.NodeRenderer.
func (h harmless) RegisterFuncs(r renderer.NodeRendererFuncRegisterer) {
	r.Register(ast.KindHeading, h.heading)
	r.Register(ast.KindLink, h.link)
	r.Register(ast.KindAutoLink, h.autoLink)
	r.Register(ast.KindImage, h.image)
	r.Register(ast.KindRawHTML, h.inline)
	r.Register(ast.KindHTMLBlock, h.block)
}

// heading keeps the page's own outline: a readme is a section of its second level.
func (harmless) heading(w util.BufWriter, _ []byte, n ast.Node, entering bool) (ast.WalkStatus, error) {
	level := min(n.(*ast.Heading).Level+2, 6)
	if entering {
		fmt.Fprintf(w, "<h%d>", level)
	} else {
		fmt.Fprintf(w, "</h%d>\n", level)
	}
	return ast.WalkContinue, nil
}

func (harmless) link(w util.BufWriter, _ []byte, n ast.Node, entering bool) (ast.WalkStatus, error) {
	address, ok := outward(string(n.(*ast.Link).Destination))
	switch {
	case !ok:
	case entering:
		_, _ = w.WriteString(anchor(address))
	default:
		_, _ = w.WriteString("</a>")
	}
	return ast.WalkContinue, nil
}

func (harmless) autoLink(w util.BufWriter, source []byte, n ast.Node, entering bool) (ast.WalkStatus, error) {
	if !entering {
		return ast.WalkContinue, nil
	}
	link := n.(*ast.AutoLink)
	address := string(link.URL(source))
	if link.AutoLinkType == ast.AutoLinkEmail && !strings.HasPrefix(strings.ToLower(address), "mailto:") {
		address = "mailto:" + address
	}
	writeLink(w, address, string(link.Label(source)))
	return ast.WalkContinue, nil
}

func (harmless) image(w util.BufWriter, source []byte, n ast.Node, entering bool) (ast.WalkStatus, error) {
	if entering {
		writeImage(w, string(n.(*ast.Image).Destination), textOf(n, source), within(n, ast.KindLink))
	}
	return ast.WalkSkipChildren, nil
}

func within(n ast.Node, kind ast.NodeKind) bool {
	for p := n.Parent(); p != nil; p = p.Parent() {
		if p.Kind() == kind {
			return true
		}
	}
	return false
}

// textOf is the plain text below a node.
func textOf(n ast.Node, source []byte) string {
	var b strings.Builder
	_ = ast.Walk(n, func(c ast.Node, entering bool) (ast.WalkStatus, error) {
		switch c := c.(type) {
		case *ast.Text:
			if entering {
				b.Write(c.Segment.Value(source))
			}
		case *ast.String:
			if entering {
				b.Write(c.Value)
			}
		}
		return ast.WalkContinue, nil
	})
	return b.String()
}

// inline leaves tags within a line out, but for what they say.
func (harmless) inline(w util.BufWriter, source []byte, n ast.Node, entering bool) (ast.WalkStatus, error) {
	if entering {
		var raw bytes.Buffer
		for i := range n.(*ast.RawHTML).Segments.Len() {
			at := n.(*ast.RawHTML).Segments.At(i)
			raw.Write(at.Value(source))
		}
		z := nethtml.NewTokenizer(&raw)
		z.Next()
		switch t := z.Token(); t.Data {
		case "br":
			_, _ = w.WriteString("<br>")
		case "img":
			writeImage(w, attribute(t, "src"), attribute(t, "alt"), true)
		}
	}
	return ast.WalkSkipChildren, nil
}

// silent are elements whose text is not meant to be read.
var silent = []string{"script", "style", "template", "svg", "math", "iframe", "object", "noscript", "noembed", "noframes", "title", "textarea", "select", "xmp", "plaintext"}

// apart are elements that begin a line of their own.
var apart = []string{"p", "div", "h1", "h2", "h3", "h4", "h5", "h6", "li", "tr", "table", "ul", "ol", "dl", "dd", "dt", "pre", "section", "center", "details", "summary", "blockquote", "hr", "header", "footer", "figure"}

// block shows the text of HTML, with its links and what its images show.
func (harmless) block(w util.BufWriter, source []byte, n ast.Node, entering bool) (ast.WalkStatus, error) {
	if !entering {
		return ast.WalkContinue, nil
	}
	b := n.(*ast.HTMLBlock)
	var raw bytes.Buffer
	for i := range b.Lines().Len() {
		at := b.Lines().At(i)
		raw.Write(at.Value(source))
	}
	if b.HasClosure() {
		raw.Write(b.ClosureLine.Value(source))
	}
	open, linked, hidden := false, false, ""
	paragraph := func(begin bool) {
		if linked {
			_, _ = w.WriteString("</a>")
			linked = false
		}
		if open && !begin {
			_, _ = w.WriteString("</p>\n")
		}
		if !open && begin {
			_, _ = w.WriteString("<p>")
		}
		open = begin
	}
	z := nethtml.NewTokenizer(&raw)
	for z.Next() != nethtml.ErrorToken {
		t := z.Token()
		ends, begins := t.Type == nethtml.EndTagToken, t.Type == nethtml.StartTagToken
		switch {
		case hidden != "":
			if ends && t.Data == hidden {
				hidden = ""
			}
		case begins && slices.Contains(silent, t.Data):
			hidden = t.Data
		case t.Type == nethtml.TextToken:
			if strings.TrimSpace(t.Data) == "" {
				if open {
					_ = w.WriteByte(' ')
				}
				continue
			}
			if !open {
				paragraph(true)
			}
			_, _ = w.WriteString(html.EscapeString(t.Data))
		case slices.Contains(apart, t.Data):
			paragraph(false)
		case t.Data == "br" && open:
			_, _ = w.WriteString("<br>")
		case t.Data == "img":
			if !open {
				paragraph(true)
			}
			writeImage(w, attribute(t, "src"), attribute(t, "alt"), linked)
		case t.Data == "a" && linked:
			_, _ = w.WriteString("</a>")
			linked = false
			if begins {
				linked = openLink(w, attribute(t, "href"))
			}
		case t.Data == "a" && begins:
			if !open {
				paragraph(true)
			}
			linked = openLink(w, attribute(t, "href"))
		}
	}
	paragraph(false)
	return ast.WalkContinue, nil
}

func attribute(t nethtml.Token, name string) string {
	for _, a := range t.Attr {
		if a.Key == name {
			return a.Val
		}
	}
	return ""
}

func openLink(w util.BufWriter, address string) bool {
	to, ok := outward(address)
	if ok {
		_, _ = w.WriteString(anchor(to))
	}
	return ok
}

func writeLink(w util.BufWriter, address, text string) {
	linked := openLink(w, address)
	_, _ = w.WriteString(html.EscapeString(text))
	if linked {
		_, _ = w.WriteString("</a>")
	}
}

// writeImage writes what an image shows in its place, and leads to it unless it is in
// a link already.
func writeImage(w util.BufWriter, address, alt string, linked bool) {
	alt = strings.Join(strings.Fields(alt), " ")
	to, ok := outward(address)
	if alt == "" {
		if !ok || linked {
			return // an ornament
		}
		alt = "image"
	}
	if ok && !linked {
		_, _ = w.WriteString(anchor(to))
		defer w.WriteString("</a>")
	}
	_, _ = w.WriteString(`<span class="image">` + html.EscapeString(alt) + `</span>`)
}

func anchor(address string) string {
	return `<a href="` + html.EscapeString(address) + `" rel="nofollow noopener noreferrer">`
}

// outward is an address that a link may lead to: one of http, https or mailto. What is
// relative would lead into this daemon.
func outward(address string) (string, bool) {
	u, err := url.Parse(strings.TrimSpace(address))
	if err != nil || len(address) > 2048 {
		return "", false
	}
	switch u.Scheme {
	case "http", "https":
		return u.String(), u.Host != ""
	case "mailto":
		return u.String(), u.Opaque != ""
	}
	return "", false
}
