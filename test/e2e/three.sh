#!/usr/bin/env bash
# Three commands over two real Kubo nodes. The installing side runs in a network
# namespace with loopback only, its state empty, the origin node its only source.
. "$(dirname "$0")/lib.sh"
build
build_kubo
NAMES="express@4 eslint@8"

if [ "${1:-}" = inside ]; then
  # In the namespace: loopback and nothing else.
  ip link set lo up
  if curl -s -m 3 -o /dev/null "$(npm config get registry 2>/dev/null)"; then fail "the namespace reaches the network"; fi
  A=$WORK/kubo-a
  name=$(cat "$WORK/name")
  kubo_start "$A"; a_pid=$KUBO_PID
  addr=$(IPFS_PATH=$A ipfs --api "$(cat "$A/our-api")" id -f '<addrs>' | grep 127.0.0.1 | head -n 1)

  install_from() { # install_from KUBO-REPO STATE PROJECT
    local port
    port=$(free_port)
    rm -rf "$1" "$2"
    kubo_init "$1"
    kubo_start "$1"
    IPFS_PATH=$1 ipfs --api "$(cat "$1/our-api")" swarm connect "$addr" || true
    start "$2.log" registry-mirror daemon --ipfs "$name" --state "$2" --node kubo --ipfs-api "$(cat "$1/our-api")" --listen "127.0.0.1:$port"
    until_ok 20 curl -sf "http://127.0.0.1:$port/-/ping" || { cat "$2.log" >&2; fail "the mirror did not start"; }
    fresh_install "$3" "http://127.0.0.1:$port" --fetch-retries=1 --fetch-retry-mintimeout=1000 --fetch-timeout=20000 $NAMES
  }

  say "install in a namespace with loopback only"
  time install_from "$WORK/kubo-b" "$WORK/state-b" "$WORK/q1" || { cat "$WORK/state-b.log" >&2; fail "the install failed"; }
  n=$(count_installed "$WORK/q1")
  [ "$n" -ge 60 ] || fail "only $n packages"
  (cd "$WORK/q1" && node -e "require('express'); console.log('express loads; $n packages')")
  registry-mirror status --state "$WORK/state-b" --json >"$WORK/status-b.json"
  json "$WORK/status-b.json" '({bytes_by_source:o.bytes_by_source,tarballs_by_source:o.tarballs_by_source})'
  [ "$(json "$WORK/status-b.json" 'o.bytes_by_source.upstream')" = 0 ] || fail "bytes came from upstream"
  # the full size of every tarball that npm fetched came from the origin node
  node - "$WORK/q1" "$WORK/status-b.json" <<'JS'
const fs=require('fs'),path=require('path'),[,,project,status]=process.argv;
let sum=0;const seen=new Set();
const idx=path.join(project,'.cache/_cacache/index-v5');
const walk=d=>fs.readdirSync(d,{withFileTypes:true}).forEach(e=>e.isDirectory()?walk(path.join(d,e.name)):
  fs.readFileSync(path.join(d,e.name),'utf8').split('\n').filter(Boolean).forEach(l=>{
    const o=JSON.parse(l.slice(l.indexOf('\t')+1));
    if(o&&o.key.includes('.tgz')&&!seen.has(o.integrity)){seen.add(o.integrity);sum+=o.size}}));
walk(idx);
const t=JSON.parse(fs.readFileSync(status)).tarballs_by_source;
const got=t.bitswap+t.car;
console.log(`npm fetched ${seen.size} tarballs, ${sum} bytes; the mirror took ${got} from its peers`);
if(seen.size<60||got<sum) process.exit(1);
JS

  say "the origin stopped: the same install from empty state fails"
  kill "$a_pid"; wait "$a_pid" || true
  if install_from "$WORK/kubo-c" "$WORK/state-c" "$WORK/q2" 2>"$WORK/q2.err"; then fail "installed without any source"; fi
  tail -n 3 "$WORK/q2.err" >&2
  echo "three: ok"
  exit 0
fi

say "follower and publisher over Kubo, from the npm registry"
A=$WORK/kubo-a S=$WORK/state-a
rm -rf "$A" "$S"
kubo_init "$A"
kubo_start "$A"
api=$(cat "$A/our-api")
follower add $NAMES --state "$S" --node kubo --ipfs-api "$api"
time follower run --once --feed none --state "$S" -v 2>"$WORK/follower.log" || { tail "$WORK/follower.log" >&2; fail "follower run"; }
follower status --state "$S"
publisher key new --state "$S"
publisher build --state "$S"
publisher publish --state "$S" --json >"$WORK/publish.json"
json "$WORK/publish.json" '({name:o.name,release:o.number,packages:o.packages,versions:o.versions,routes:o.routes})'
json "$WORK/publish.json" 'o.name' >"$WORK/name"
publisher status --state "$S"
cleanup; PIDS=()

WORK=$WORK unshare -n bash "$0" inside
