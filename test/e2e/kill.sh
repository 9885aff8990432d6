#!/usr/bin/env bash
# kill -9 at five different moments, of `up` and of `follower`, each followed by
# a restart, ends with the same list as an undisturbed run, all against one
# frozen registry on loopback.
. "$(dirname "$0")/lib.sh"
build
go build -C "$ROOT" -o "$WORK/bin/" ./internal/npm/npmtest/npmtestd
reg=$(free_port)
start "$WORK/npmtestd.log" npmtestd -listen "127.0.0.1:$reg" -packages 1500 -seed 42
until_ok 20 curl -sf "http://127.0.0.1:$reg/-/ping"
R=http://127.0.0.1:$reg
curl -sf "$R/-/feed/_all_docs?limit=10000" >"$WORK/all.json"
json "$WORK/all.json" 'o.rows.map(r=>r.id).join("\n")' >"$WORK/names.txt"

up_list() { # up_list STATE: runs up until it serves, prints the list
  local port out=$1.json
  port=$(free_port)
  rm -f "$out"
  start "$1.log" sh -c "exec registry-mirror up --from-file '$WORK/names.txt' --upstream '$R' --state '$1' --listen 127.0.0.1:$port --json >'$out'"
  until_ok 120 has_json "$out" || { cat "$1.log" >&2; fail "up did not come up"; }
  kill -INT "${PIDS[-1]}"; wait "${PIDS[-1]}" 2>/dev/null || true
  unset 'PIDS[-1]'
  json "$out" 'o.list'
}
follow_list() { # follow_list STATE: runs the follower once, builds, prints the list
  follower run --once --feed "$R/-/feed" --upstream "$R" --state "$1" 2>>"$1.log"
  publisher key new --state "$1" >/dev/null
  publisher build --state "$1"
  publisher status --state "$1" --json >"$1.json"
  json "$1.json" 'o.list'
}

rm -rf "$WORK"/kill-*
say "undisturbed"
begin=$(date +%s%N)
want=$(up_list "$WORK/kill-up")
ms=$((($(date +%s%N) - begin) / 1000000))
echo "up: $want in $ms ms"
S=$WORK/kill-follow
follower add --all --state "$S" --node embedded
begin=$(date +%s%N)
fwant=$(follow_list "$S")
fms=$((($(date +%s%N) - begin) / 1000000))
echo "follower: $fwant in $fms ms"

for i in 1 2 3 4 5; do
  at=$(node -p "($ms*$i/6/1000).toFixed(2)")
  S=$WORK/kill-up-$i
  rm -rf "$S"
  port=$(free_port)
  registry-mirror up --from-file "$WORK/names.txt" --upstream "$R" --state "$S" --listen "127.0.0.1:$port" >/dev/null 2>&1 &
  pid=$!
  sleep "$at"
  kill -9 "$pid"; wait "$pid" 2>/dev/null || true
  got=$(up_list "$S")
  [ "$got" = "$want" ] || fail "up killed at $at s: $got"
  echo "up killed at $at s, started again: the same list"

  at=$(node -p "($fms*$i/6/1000).toFixed(2)")
  S=$WORK/kill-follow-$i
  rm -rf "$S"
  follower add --all --state "$S" --node embedded
  follower run --once --feed "$R/-/feed" --upstream "$R" --state "$S" >/dev/null 2>&1 &
  pid=$!
  sleep "$at"
  kill -9 "$pid" 2>/dev/null || true
  wait "$pid" 2>/dev/null || true
  got=$(follow_list "$S")
  [ "$got" = "$fwant" ] || fail "follower killed at $at s: $got"
  echo "follower killed at $at s, started again: the same list"
done
echo "kill: ok"
