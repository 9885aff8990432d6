#!/usr/bin/env bash
# One command, on real input: `up` takes packages from the npm registry and npm
# installs a project of 60 and more packages from it, with an empty cache.
. "$(dirname "$0")/lib.sh"
build
S=$WORK/up
port=$(free_port)
rm -rf "$S" "$WORK/up.json"

say "up express@4 eslint@8, nothing there before"
start "$WORK/up.log" sh -c "exec registry-mirror up express@4 eslint@8 @types/node lodash --state '$S' --listen 127.0.0.1:$port --json >'$WORK/up.json'"
until_ok 300 has_json "$WORK/up.json" || { cat "$WORK/up.log" >&2; fail "up did not come up"; }
json "$WORK/up.json" '({name:o.name,release:o.release,packages:o.packages,versions:o.versions,local_only:o.local_only})'

say "what nobody has looked at is found by what it says"
until_ok 60 sh -c "curl -sf 'http://127.0.0.1:$port/-/v1/search?text=minimalist' | grep -q '\"name\":\"express\"'" || fail "express is not found by its description"

say "npm install through it"
time fresh_install "$WORK/p1" "http://127.0.0.1:$port" express@4 eslint@8 @types/node lodash
n=$(count_installed "$WORK/p1")
[ "$n" -ge 60 ] || fail "only $n packages installed"
(cd "$WORK/p1" && node -e "require('express'); require('lodash'); console.log('express and lodash load; $n packages')")
# people type localhost, which is ::1 first on many machines
fresh_install "$WORK/p2" "http://localhost:$port" lodash
curl -sf -o /dev/null "http://[::1]:$port/lodash" || fail "not on ::1"  # npm itself cannot dial a bracketed address

say "a second run starts at once and fetches nothing"
kill -INT "${PIDS[-1]}"; wait "${PIDS[-1]}" || true; PIDS=()
before=$(json "$WORK/up.json" 'o.list.root')
rm -f "$WORK/up.json"
begin=$(date +%s%N)
start "$WORK/up2.log" sh -c "exec registry-mirror up express@4 eslint@8 @types/node lodash --state '$S' --listen 127.0.0.1:$port --json >'$WORK/up.json'"
until_ok 60 has_json "$WORK/up.json" || { cat "$WORK/up2.log" >&2; fail "up did not come up again"; }
echo "second start: $((($(date +%s%N) - begin) / 1000000)) ms"
[ "$(json "$WORK/up.json" 'o.list.root')" = "$before" ] || fail "the list changed without a change"
[ "$(json "$WORK/up.json" 'o.fetched.tarballs')" = 0 ] || fail "the second run fetched again"
kill -INT "${PIDS[-1]}"; wait "${PIDS[-1]}" || true; PIDS=()

say "pull-through: nothing asked for beforehand"
S=$WORK/pull
rm -rf "$S" "$WORK/pull.json"
start "$WORK/pull.log" sh -c "exec registry-mirror up --state '$S' --listen 127.0.0.1:$port --json >'$WORK/pull.json'"
until_ok 60 has_json "$WORK/pull.json" || { cat "$WORK/pull.log" >&2; fail "pull-through did not come up"; }
fresh_install "$WORK/p4" "http://127.0.0.1:$port" is-odd chalk@4
# what was pulled is in the next release
until_ok 60 sh -c "registry-mirror status --state '$S' --json | grep -q '\"packages\": [1-9]'" || fail "no release lists what was pulled"
registry-mirror status --state "$S" --json >"$WORK/pull-status.json"
json "$WORK/pull-status.json" '({release:o.release.number,packages:o.release.packages})'
echo "up: ok"
