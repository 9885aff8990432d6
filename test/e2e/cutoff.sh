#!/usr/bin/env bash
# A network that is cut off: the publisher is gone, one machine has installed from it, and
# a second one, which has never heard of either, gets the list, the record and the packages
# from the first. Then nothing but loopback is left. Machines are network namespaces, joined
# by veth pairs; root is needed for them.
. "$(dirname "$0")/lib.sh"
[ "$(id -u)" = 0 ] || { echo "cutoff: skipped, network namespaces of its own need root"; exit 0; }
build
go build -C "$ROOT" -o "$WORK/bin/" ./internal/npm/npmtest/npmtestd
S=$WORK/cutoff
rm -rf "$S"
mkdir -p "$S"
cd "$S"
export REGMIRROR_STATE=$S/none # each command below names its own

# The publisher's machine p, ours a and b: p - a - b, and no way further.
NS=rm$$
remove() { for m in p a b; do ip netns del "$NS-$m" 2>/dev/null || true; done; }
trap 'cleanup; remove' EXIT
on() { local m=$1; shift; ip netns exec "$NS-$m" "$@"; }
machine() { ip netns add "$NS-$1" && on "$1" ip link set lo up; }
cable() { # cable ONE OTHER NET: ONE has NET.1, OTHER NET.2
  ip link add "$1$2" netns "$NS-$1" type veth peer name "$2$1" netns "$NS-$2"
  on "$1" ip addr add "$3.1/24" dev "$1$2" && on "$1" ip link set "$1$2" up
  on "$2" ip addr add "$3.2/24" dev "$2$1" && on "$2" ip link set "$2$1" up
}

# daemon MACHINE STATE FLAG…: a mirror on that machine, at port 4873 of it.
daemon() {
  local m=$1 state=$2
  shift 2
  start "$state.log" ip netns exec "$NS-$m" registry-mirror daemon --ipfs --network lan --state "$state" "$@"
  MIRROR=${PIDS[-1]}
  until_ok 20 on "$m" curl -sf http://127.0.0.1:4873/-/ping || { cat "$state.log" >&2; fail "the mirror of $state did not start"; }
}
ends() { kill -INT "$1" && wait "$1" || fail "a mirror ended badly"; }
# has_list MACHINE STATE: its mirror serves a release.
has_list() { on "$1" registry-mirror status --state "$2" --json >"$2.json" && [ "$(json "$2.json" 'o.release?.number??0')" -gt 0 ]; }
# installs MACHINE STATE PROJECT: npm with an empty cache, and where the bytes came from.
installs() {
  on "$1" bash -c ". '$ROOT/test/e2e/lib.sh'; trap - EXIT; fresh_install '$S/$3' http://127.0.0.1:4873 --fetch-retries=0 ${NAMES[*]}" || { cat "$2.log" >&2; fail "npm install of $3"; }
  (cd "$3" && node -e 'for (const n of process.argv.slice(1)) require(n)' "${NAMES[@]}") || fail "$3 does not load"
  node -p 'JSON.stringify(Object.entries(JSON.parse(require("fs").readFileSync(process.argv[1])).packages).filter(([k])=>k).map(([k,p])=>[k,p.version,p.integrity]))' "$3/package-lock.json" >"$3.tree"
  cmp "$3.tree" "${FIRST:=$3}.tree" || fail "$3 is not what $FIRST is"
  on "$1" registry-mirror status --state "$2" --json >"$2.json"
  [ "$(json "$2.json" o.bytes_by_source.upstream)" = 0 ] || fail "bytes came from upstream"
  echo "$3: $(count_installed "$3") packages; $(json "$2.json" '`${o.bytes_by_source.bitswap} bytes from peers, ${o.bytes_by_source.cache} held, record ${o.record.sequence}${o.stale?", expired":""}`')"
}

say "a publisher with two names: one record for days, one for a minute"
machine p
machine a
cable p a 10.77.1
start npmtestd.log ip netns exec "$NS-p" npmtestd -listen 127.0.0.1:4800 -packages 40 -seed 7
until_ok 20 on p curl -sf http://127.0.0.1:4800/-/ping
NAMES=(pkg-0038 pkg-0037 @scope-2/pkg-0035)
on p follower add "${NAMES[@]}" --state pub --node embedded
on p follower run --once --feed none --network lan --upstream http://127.0.0.1:4800 --state pub 2>pub-follower.log || { cat pub-follower.log >&2; fail "follower"; }
on p publisher key new --state pub --json >long.json
on p publisher key new --name short --state pub --json >short.json
long=$(json long.json o.ipns_name) short=$(json short.json o.ipns_name)
on p publisher publish --state pub
on p publisher publish --name short --lifetime 1m --state pub
expires=$((SECONDS + 62))
daemon p "$S/pub" "$long" "$short"
publisher=$MIRROR

say "machine a finds it by mDNS, and installs"
daemon a "$S/a" "$long" "$short"
a=$MIRROR
both() { on a registry-mirror status --state "$S/a" --json >a.json && [ "$(json a.json 'o.registries.filter(r=>r.release?.number>0).length')" = 2 ]; }
until_ok 30 both || { cat a.log >&2; fail "machine a has no lists"; }
on a bash -c ". '$ROOT/test/e2e/lib.sh'; trap - EXIT; fresh_install '$S/first' http://127.0.0.1:4873 ${NAMES[*]}" || fail "npm install on machine a"
node -p 'JSON.stringify(Object.entries(JSON.parse(require("fs").readFileSync(process.argv[1])).packages).filter(([k])=>k).map(([k,p])=>[k,p.version,p.integrity]))' first/package-lock.json >first.tree
FIRST=first
echo "first: $(count_installed first) packages"

say "the publisher and its machine are gone; machine b is joined to a, and to nothing else"
ends "$publisher"
ip netns del "$NS-p"
machine b
cable a b 10.77.2

# machine a runs since before the cable was there, and has to notice it
begin=$SECONDS
daemon b "$S/b1" "$long"
until_ok 90 has_list b "$S/b1" || { cat b1.log >&2; fail "machine b found no list by mDNS"; }
echo "the list was there $((SECONDS - begin)) s after the start"
on b registry-mirror status --state b1
installs b "$S/b1" by-mdns
ends "$MIRROR"

say "the same without multicast, by --peer"
on a ip link set ab multicast off
on b ip link set ba multicast off
peer=$(json a.json 'o.registries[0].node.addrs.find(x=>x.startsWith("/ip4/10.77.1.2/tcp/")).replace("10.77.1.2","10.77.2.1")')
daemon b "$S/b2" "$long" --peer "$peer"
until_ok 30 has_list b "$S/b2" || { cat b2.log >&2; fail "machine b has no list by --peer"; }
installs b "$S/b2" by-peer
ends "$MIRROR"

say "a record that has expired is not followed unasked"
while [ $SECONDS -lt $expires ]; do sleep 1; done
daemon b "$S/b3" "$short" --peer "$peer"
refuses() { on b registry-mirror status --state "$S/b3" | grep -q '^problem .*expired'; }
until_ok 30 refuses || { on b registry-mirror status --state b3; fail "it does not say that the record has expired"; }
on b registry-mirror status --state b3
has_list b "$S/b3" && fail "an expired record was followed"
on b curl -s -w '%{http_code}\n' "http://127.0.0.1:4873/pkg-0038" | tee refused
grep -q '503$' refused || fail "not a 503"
ends "$MIRROR"

say "with --accept-stale it is"
daemon b "$S/b3" "$short" --peer "$peer" --accept-stale
until_ok 30 has_list b "$S/b3" || { cat b3.log >&2; fail "an expired record was not followed with --accept-stale"; }
on b registry-mirror status --state b3
installs b "$S/b3" stale
ends "$MIRROR"

say "and with nothing but loopback, what each machine has installed is there"
ends "$a"
ip netns del "$NS-a"
alone() { [ "$(on b ip -o link | wc -l)" = 1 ]; }
until_ok 10 alone || fail "machine b has a network"
daemon b "$S/b1" "$long"
installs b "$S/b1" alone
ends "$MIRROR"
daemon b "$S/a" "$long" --offline
installs b "$S/a" alone-a
echo "cutoff: ok"
