#!/usr/bin/env bash
# The quick forms of test/soak: docs/soak.md has the long ones.
. "$(dirname "$0")/lib.sh"
mkdir -p "$WORK/bin"
build_kubo
go build -C "$ROOT" -o "$WORK/bin/" ./test/soak
cd "$ROOT"

say "the follower is killed while Kubo restarts under it"
soak kill --kills 12 --changes 120 --kubo "$(readlink -f "$WORK/bin/ipfs")"

say "documents and tarballs that mean harm"
soak hostile
echo "soak: ok"
