#!/usr/bin/env bash
# The feed that we serve, read by the clients that people have: nano and pouchdb,
# live and from a cursor.
. "$(dirname "$0")/lib.sh"
mkdir -p "$WORK/bin"
go build -C "$ROOT" -o "$WORK/bin/" ./internal/couch/couchtest/couchtestd

say "nano and pouchdb from the npm registry"
[ -d "$WORK/clients/node_modules" ] || npm install --silent --no-save --ignore-scripts --no-audit --no-fund --prefix "$WORK/clients" nano@11.0.7 pouchdb@9.0.0 2>/dev/null

port=$(free_port)
start "$WORK/couchtestd.log" couchtestd -listen "127.0.0.1:$port" -rows 1000 -every 50ms
until_ok 20 curl -sf "http://127.0.0.1:$port/registry"
(cd "$WORK/clients" && node "$ROOT/test/e2e/ledgerfeed/check.mjs" "http://127.0.0.1:$port/registry" 1000) ||
  { tail -n 20 "$WORK/couchtestd.log" >&2; fail "a client did not get what it should"; }

say "a feed held open ends with the server"
start "$WORK/continuous.out" curl -sN "http://127.0.0.1:$port/registry/_changes?feed=continuous&since=now&heartbeat=true"
open=${PIDS[-1]}
until_ok 10 grep -q live- "$WORK/continuous.out"
kill "${PIDS[0]}"
until_ok 10 sh -c "! kill -0 $open 2>/dev/null" || fail "the connection is still open"
echo "ledgerfeed: ok"
