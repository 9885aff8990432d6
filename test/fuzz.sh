#!/usr/bin/env bash
# Every fuzz target for a while, one after the other, and a part of what each came
# upon kept beside its tests, so that `go test` tries it again for ever.
#
#   test/fuzz.sh [TIME] [PATTERN]    TIME for each target (10m), targets that match (.)
set -euo pipefail
cd "$(dirname "$0")/.."
time=${1:-10m} pattern=${2:-.}
keep=32 # inputs of a target, the smallest

failed=0
for file in $(git grep -l '^func Fuzz' -- '*_test.go'); do
  dir=$(dirname "$file")
  for target in $(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$file" | grep -E "$pattern" || true); do
    printf '\n== ./%s %s\n' "$dir" "$target"
    go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "./$dir" | tail -n 3 || failed=1
    cache=$(go env GOCACHE)/fuzz/$(go list "./$dir")/$target
    [ -d "$cache" ] || continue
    mkdir -p "$dir/testdata/fuzz/$target"
    (cd "$cache" && ls -S -r | head -n "$keep") | while read -r input; do
      cp -n "$cache/$input" "$dir/testdata/fuzz/$target/"
    done
  done
done
exit $failed
