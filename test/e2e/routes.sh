#!/usr/bin/env bash
# A record by every route: two real Kubo nodes connected over loopback, a delegated
# routing server, and a web server's directory. Then each route is taken away in turn.
. "$(dirname "$0")/lib.sh"
build
build_kubo
go build -C "$ROOT" -o "$WORK/bin/router" ./test/e2e/router
S=$WORK/routes
rm -rf "$S"
mkdir -p "$S/web"
cd "$S"
export REGMIRROR_STATE=$S/state

kubo_init "$S/one"
kubo_init "$S/two"
kubo_start "$S/one"
one=$KUBO_PID
kubo_start "$S/two"
IPFS_PATH=$S/two ipfs swarm connect "$(IPFS_PATH=$S/one ipfs id -f '<addrs>' | grep 127.0.0.1 | head -n 1)"
port=$(free_port)
url=http://127.0.0.1:$port
start router.log router "127.0.0.1:$port"
router=${PIDS[-1]}

follower add is-odd --node kubo --ipfs-api "$(cat one/our-api)"
follower run --once --feed none
publisher key new --json >key.json
name=$(json key.json o.ipns_name)
routes=(--route "$url" --route "$S/web")

# publishes CODE: what the run says, and that it ended with that code.
publishes() {
  local code=0
  publisher publish "${routes[@]}" --json >publish.json 2>said || code=$?
  cat said
  if has_json publish.json 2>/dev/null; then
    json publish.json 'o.routes.map(r=>`  ${r.name.replace(/.*\//,"…/")}: ${r.read_back?"read back by "+r.via:"not read back"}`).join("\n")'
  fi
  [ $code = "$1" ] || fail "it ended with $code, not $1"
}

# reads FILE: the record that someone has is what the journal has, and valid.
reads() {
  publisher record verify "$name" "$1" >verdict || fail "$1: $(cat verdict)"
  [ "$(publisher record inspect "$1" --json >inspect.json; json inspect.json o.v2.sequence)" = "$(json publish.json o.sequence)" ] || fail "$1 is another record"
}

say "by three routes, read back from each"
publishes 0
[ "$(json publish.json 'o.routes.map(r=>r.read_back&&r.via)')" = '["gateway","http","file"]' ] || fail "$(cat publish.json)"
publisher status "${routes[@]}"

say "the second Kubo has it"
[ "$(IPFS_PATH=$S/two ipfs name resolve --nocache "$name")" = "/ipfs/$(json publish.json o.cid)" ] || fail "it resolves elsewhere"
IPFS_PATH=$S/two ipfs name get "$name" >two.ipns-record
[ "$(IPFS_PATH=$S/two ipfs name inspect --verify="$name" --enc=json two.ipns-record | node -p 'JSON.parse(require("fs").readFileSync(0)).Validation.Valid')" = true ] || fail "Kubo does not take it"
cmp two.ipns-record "web/routing/v1/ipns/$name"
reads two.ipns-record
IPFS_PATH=$S/two ipfs cat "/ipns/$name/_registry/release.json" | node -p 'const r=JSON.parse(require("fs").readFileSync(0));`  release ${r.number}, ${r.packages} packages`'

say "without the routing server: 10, and the others have the next release"
kill "$router"; wait "$router" || true
follower add is-even
follower run --once --feed none
publishes 10
[ "$(json publish.json 'o.routes.map(r=>r.read_back)')" = '[true,false,true]' ] || fail "$(cat publish.json)"
[ "$(IPFS_PATH=$S/two ipfs name resolve --nocache "$name")" = "/ipfs/$(json publish.json o.cid)" ] || fail "the second Kubo has not the next release"
reads "web/routing/v1/ipns/$name"

say "it is back, empty: the same bytes are put there too"
start router.log router "127.0.0.1:$port"
until_ok 10 curl -s "$url/"
publishes 0
[ "$(json publish.json '[o.sequence,o.signed]')" = '[2,false]' ] || fail "$(cat publish.json)"
curl -sf -H 'Accept: application/vnd.ipfs.ipns-record' "$url/routing/v1/ipns/$name" -o routed.ipns-record
reads routed.ipns-record

say "without the directory: 10"
mv web away
publishes 10
[ "$(json publish.json 'o.routes.map(r=>r.read_back)')" = '[true,true,false]' ] || fail "$(cat publish.json)"
[ ! -e web ] || fail "a directory was made where none was mounted"
mv away web

say "without the other Kubo the node keeps it by itself"
kill "$KUBO_PID"; wait "$KUBO_PID" || true
publishes 0

say "without the node: 69, and nothing is put anywhere"
kill "$one"; wait "$one" || true
publishes 69
code=0
publisher status "${routes[@]}" 2>said || code=$?
cat said
[ $code = 69 ] || fail "status ended with $code"
echo "routes: ok"
