#!/usr/bin/env bash
# The feed that we serve, read by the clients that people have: nano and pouchdb,
# live and from a cursor; then a follower's own, which another follower follows.
. "$(dirname "$0")/lib.sh"
build
go build -C "$ROOT" -o "$WORK/bin/" ./internal/npm/npmtest/npmtestd
go build -C "$ROOT" -o "$WORK/bin/" ./internal/couch/couchtest/couchtestd

say "nano and pouchdb from the npm registry"
[ -d "$WORK/couch-clients/node_modules" ] || npm install --silent --no-save --ignore-scripts --no-audit --no-fund --prefix "$WORK/couch-clients" nano@11.0.7 pouchdb@9.0.0 2>/dev/null

port=$(free_port)
start "$WORK/couchtestd.log" couchtestd -listen "127.0.0.1:$port" -rows 1000 -every 50ms
until_ok 20 curl -sf "http://127.0.0.1:$port/registry"
(cd "$WORK/couch-clients" && node "$ROOT/test/e2e/ledgerfeed/check.mjs" "http://127.0.0.1:$port/registry" 1000) ||
  { tail -n 20 "$WORK/couchtestd.log" >&2; fail "a client did not get what it should"; }

say "a feed held open ends with the server"
start "$WORK/continuous.out" curl -sN "http://127.0.0.1:$port/registry/_changes?feed=continuous&since=now&heartbeat=true"
open=${PIDS[-1]}
until_ok 10 grep -q live- "$WORK/continuous.out"
kill "${PIDS[0]}"
until_ok 10 sh -c "! kill -0 $open 2>/dev/null" || fail "the connection is still open"

say "a follower's ledger"
reg=$(free_port); listen=$(free_port)
R=http://127.0.0.1:$reg
rm -rf "$WORK/ledger-1" "$WORK/ledger-2"
start "$WORK/npmtestd.log" npmtestd -listen "127.0.0.1:$reg" -packages 50 -seed 7
until_ok 20 curl -sf "$R/-/ping"
follower add --all --state "$WORK/ledger-1"
follower run --once --feed "$R/-/feed" --upstream "$R" --state "$WORK/ledger-1"
start "$WORK/ledger-1.log" follower run --feed "$R/-/feed" --upstream "$R" --state "$WORK/ledger-1" --listen "127.0.0.1:$listen"
until_ok 20 curl -sf "http://127.0.0.1:$listen/readyz"
curl -sf "http://127.0.0.1:$listen/metrics" | grep -E '^follower_(packages|queue|versions)'
(cd "$WORK/couch-clients" && node "$ROOT/test/e2e/ledgerfeed/follower.mjs" "http://127.0.0.1:$listen/registry" "$R/-/npmtest/publish") ||
  { tail -n 20 "$WORK/ledger-1.log" >&2; fail "a client did not get what it should"; }

say "another follower follows it"
follower add --all --state "$WORK/ledger-2"
follower run --once --feed "http://127.0.0.1:$listen/registry" --upstream "$R" --state "$WORK/ledger-2"
for s in 1 2; do follower status --state "$WORK/ledger-$s" --json >"$WORK/status-$s.json"; done
one=$(json "$WORK/status-1.json" '[o.counts.packages,o.counts.versions,o.counts.bytes].join(" ")')
two=$(json "$WORK/status-2.json" '[o.counts.packages,o.counts.versions,o.counts.bytes].join(" ")')
[ "$one" = "$two" ] || fail "the first holds $one, the second $two"
echo "both hold: $one"
echo "ledgerfeed: ok"
