package clients

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// What is added to a file stands between two marks, which are comments in every format.
// The first also says how many lines follow, and what cannot be seen afterwards: that
// there was no file, or that its last line had no end. A line that had to make way is kept behind keptMark.
const (
	beginMark = `# >>> registry-mirror use`
	endMark   = "# <<< `registry-mirror unuse` takes this out, as it was before"
	keptMark  = "# was: "

	madeWord  = "new file"
	endedWord = "a newline before this"
)

// block is what takes the place of some lines of a file.
type block struct {
	indent string
	kept   []string // lines that make way, with their ends
	lines  []string // of ours, without
}

// splice puts b where kept was: at at, over len(b.kept) lines.
func splice(lines []string, at int, b block, made bool) []string {
	eol := "\n"
	if len(lines) > 0 && strings.HasSuffix(lines[0], "\r\n") {
		eol = "\r\n"
	}
	head := slices.Clone(lines[:at])
	tail := lines[at+len(b.kept):]
	words := []string{fmt.Sprint(len(b.kept) + len(b.lines))}
	if made {
		words = append(words, madeWord)
	}
	// An end that is added is one byte, whatever ends the others have: so it is known
	// what to take off again.
	open := func(line string) bool { return !strings.HasSuffix(line, "\n") }
	if at > 0 && open(head[at-1]) {
		head[at-1] += "\n"
		words = append(words, endedWord)
	}
	all := append(head, b.indent+beginMark+": "+strings.Join(words, ", ")+eol)
	unended := false
	for _, k := range b.kept {
		if unended = open(k); unended {
			k += "\n"
		}
		all = append(all, b.indent+keptMark+k)
	}
	for _, l := range b.lines {
		all = append(all, b.indent+l+eol)
	}
	end := b.indent + endMark
	if !unended {
		end += eol // else the block ends as the file did
	}
	return append(append(all, end), tail...)
}

// restored is a file without our blocks.
type restored struct {
	text  string
	found bool // there was one
	made  bool // and before it no file
}

// restore takes our blocks out of a file, and puts back what they took the place of. A
// line within them that is not ours stays. A block whose last mark was taken away has as
// many lines as the first one says.
func restore(f format, text string) restored {
	var out []string
	r := restored{}
	ended := false   // the block that is read added an end to the line before it
	blockAt := -1    // where in out what was put back for it begins; -1 outside of one
	stripAt := -1    // the line of out whose end goes if nothing comes after it
	mine := []bool{} // for each line of out: it was put back from behind keptMark
	add := func(line string, kept bool) { out, mine = append(out, line), append(mine, kept) }
	lines := strings.SplitAfter(text, "\n")
	until := len(lines) // the line before which a block without an end is over
	for i, line := range lines {
		if i == until {
			blockAt = -1
		}
		bare := bareLine(line)
		switch {
		case line == "":
		case strings.HasPrefix(bare, beginMark):
			r.found, blockAt, until = true, len(out), len(lines)
			words := strings.TrimPrefix(bare, beginMark+": ")
			if !endsBelow(lines[i+1:]) {
				until = i + 1 + number(words)
			}
			r.made = r.made || strings.Contains(words, madeWord)
			if ended = strings.Contains(words, endedWord); ended {
				stripAt = len(out)
			}
		case strings.HasPrefix(bare, endMark):
			r.found = true
			if !strings.HasSuffix(line, "\n") && blockAt >= 0 && len(out) > blockAt && mine[len(out)-1] {
				out[len(out)-1] = strings.TrimSuffix(out[len(out)-1], "\n")
			}
			blockAt = -1
		case blockAt >= 0 && strings.HasPrefix(bare, keptMark):
			_, kept, _ := strings.Cut(line, keptMark)
			add(kept, true)
		case blockAt >= 0 && f.ours().MatchString(bare):
		default:
			add(line, false)
		}
	}
	if stripAt == len(out) && stripAt > 0 {
		out[stripAt-1] = strings.TrimSuffix(out[stripAt-1], "\n")
	}
	r.text = strings.Join(out, "")
	return r
}

// webURL is a registry as Use writes it: without user, password and spaces.
var webURL = regexp.MustCompile(`https?://[^\s"']+`)

// marked is the registry that our blocks in a file name, "" where there is none.
func marked(text string) string {
	within := false
	for line := range strings.Lines(text) {
		bare := bareLine(line)
		switch {
		case strings.HasPrefix(bare, beginMark):
			within = true
		case strings.HasPrefix(bare, endMark):
			within = false
		case within && !strings.HasPrefix(bare, "#"):
			if registry := webURL.FindString(bare); registry != "" {
				return strings.TrimRight(registry, "/")
			}
		}
	}
	return ""
}

// bareLine is a line without indentation and end.
func bareLine(line string) string {
	return strings.TrimLeft(strings.TrimRight(line, "\r\n"), " \t")
}

// endsBelow says whether the block that begins above lines has its last mark.
func endsBelow(lines []string) bool {
	for _, line := range lines {
		switch bare := bareLine(line); {
		case strings.HasPrefix(bare, endMark):
			return true
		case strings.HasPrefix(bare, beginMark):
			return false
		}
	}
	return false
}

// number is that at the beginning of words, 0 where there is none.
func number(words string) int {
	digits, _, _ := strings.Cut(words, ",")
	n, err := strconv.Atoi(digits)
	if err != nil || n < 0 || n > maxFile {
		return 0
	}
	return n
}

// format is how a configuration file is written.
type format int

const (
	npmrc format = iota
	yarnrc
	yarnrcYML
	bunfig
)

// oursIn says which lines of a block of ours are ours. Others someone put there.
var oursIn = [...]*regexp.Regexp{
	npmrc:     regexp.MustCompile(`^(registry|@[^:=\s]+:registry|omit-lockfile-registry-resolved)\s*=`),
	yarnrc:    regexp.MustCompile(`^(registry|"@[^"]+:registry")\s`),
	yarnrcYML: regexp.MustCompile(`^(npmRegistryServer:|unsafeHttpWhitelist:|npmScopes:|"?[\w.~-]+"?:$|- )`),
	bunfig:    regexp.MustCompile(`^(\[install\]|\[install\.scopes\]|(install\.)?registry\s*=|(install\.scopes\.)?"@[^"]+"\s*=)`),
}

func (f format) ours() *regexp.Regexp { return oursIn[f] }
