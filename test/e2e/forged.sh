#!/usr/bin/env bash
# What a mirror does with what is forged, and with what is gone: records on a route, blocks
# in a gateway's answers and in a peer's store, tarballs at the registry they come from. For
# each, what npm and curl got and what `registry-mirror status` says; a table comes last.
. "$(dirname "$0")/lib.sh"
build
go build -C "$ROOT" -o "$WORK/bin/" ./internal/npm/npmtest/npmtestd ./test/e2e/forge ./test/e2e/liar
S=$WORK/forged
rm -rf "$S"
mkdir -p "$S/lies"
cd "$S"
export REGMIRROR_STATE=$S/none # each command below names its own
table=$S/table
: >"$table"
wrong=0

say "a registry with two releases, its node, and a gateway before it that lies when told to"
reg=$(free_port) liar=$(free_port) mirror=$(free_port)
upstream=http://127.0.0.1:$reg
start npmtestd.log npmtestd -listen "127.0.0.1:$reg" -packages 40 -seed 7
registry=${PIDS[-1]}
until_ok 20 curl -sf "$upstream/-/ping"
publisher key new --state pub --json >key.json
publisher key new --state other --json >other.json
publisher key export pub.key --clear --state pub
publisher key export other.key --clear --state other
name=$(json key.json o.ipns_name)
web=$S/web/routing/v1/ipns/$name
mkdir web
for want in pkg-0037 pkg-0038; do
  follower add "$want" --state pub --node embedded
  follower run --once --feed none --upstream "$upstream" --state pub 2>follower.log
  publisher publish --state pub --route "$S/web" --json >"$want.json" 2>publish.log || { cat publish.log >&2; fail "publish"; }
  cp "$web" "record-$(json "$want.json" o.sequence)"
done
old=$(json pkg-0037.json o.cid) new=$(json pkg-0038.json o.cid)
publisher show pkg-0038 --state pub --json >show.json
version=$(json show.json 'o.versions.at(-1).version') leaf=$(json show.json 'o.versions.at(-1).cid')
tarball=pkg-0038/-/pkg-0038-$version.tgz
missing=pkg-0037 # that no mirror here asks for before its last case
node_up() {
  rm -f pub-node.json
  start pub.log registry-mirror daemon --ipfs "$name" --network local --state pub --listen "127.0.0.1:$(free_port)" --no-upstream
  NODE=${PIDS[-1]}
  until_ok 30 sh -c "registry-mirror status --state '$S/pub' --json >'$S/pub-node.json'" || { cat pub.log >&2; fail "the publisher's node"; }
  address=$(json pub-node.json 'o.node.addrs.find(a=>a.includes("/tcp/"))') gateway=$(json pub-node.json o.node.gateway)
}
node_down() { kill -INT "$NODE"; wait "$NODE" || true; }
node_up
start liar.log liar "127.0.0.1:$liar" "$gateway" "$S/lies"
honest() { rm -f lies/*; }

# mirror STATE FLAG…: one that runs.
mirror() {
  local state=$1
  shift
  start "$state.log" registry-mirror daemon "$name" --state "$state" --listen "127.0.0.1:$mirror" "$@"
  MIRROR=${PIDS[-1]}
  until_ok 20 curl -sf "http://127.0.0.1:$mirror/-/ping" || { cat "$state.log" >&2; fail "the mirror of $state did not start"; }
}
down() { kill -INT "$MIRROR" && wait "$MIRROR" || fail "a mirror ended badly"; }
lying=(--gateway "http://127.0.0.1:$liar" --no-upstream)
has_list() { registry-mirror status --state "$1" --json >status.json && [ "$(json status.json 'o.release?.number??0')" -ge "${2:-1}" ]; }
synced() { # synced STATE: a mirror that follows the second release, with nothing else held yet
  mirror "$1" "${lying[@]}"
  until_ok 20 has_list "$1" 2 || { cat "$1.log" >&2; fail "$1 has no list"; }
}
row() { printf '  %-10s %s\n' "$1" "$2" >>"$table"; }
bad() { row WRONG "$1"; wrong=1; }
begin_case() { printf '%s\n' "$1" >>"$table"; say "$1"; }

# got URL STATUS: what curl has of it, held to that status.
got() {
  local begin code
  begin=$(date +%s%N)
  code=$(curl -s -m 150 -o body -w '%{http_code}' -H 'User-Agent: npm/11.0.0' -D head "http://127.0.0.1:$mirror/$1" || true)
  local took=$((($(date +%s%N) - begin) / 1000000))
  local said
  if [ "$code" = 200 ]; then said="$(stat -c %s body) bytes"; else said=$(tr -d '\n' <body | cut -c1-700); fi
  row curl "$code after $took ms: $said"
  sed -n 's/\r$//; s/^Npm-Notice: //p' head | while read -r line; do row notice "$line"; done
  [ "$code" = "$2" ] || bad "not $2"
}
# npm CODE: npm install of pkg-0038 with an empty cache ends so.
npms() {
  local code=0
  rm -rf project
  mkdir project
  echo '{"name":"fresh","version":"1.0.0","private":true}' >project/package.json
  (cd project && npm install --no-audit --no-fund --fetch-retries=0 --cache .cache --registry "http://127.0.0.1:$mirror" pkg-0038 >install.log 2>&1) || code=$?
  row npm "exit $code: $(sed '/complete log/d; /^npm error *$/d; /^$/d; s/^npm error //' project/install.log | awk 'NR<4' | tr '\n' ' ' | cut -c1-400)"
  if [ "$1" = 0 ]; then [ $code = 0 ] || bad "npm failed"; else [ $code != 0 ] || bad "npm succeeded"; fi
}
# status STATE PATTERN: a line of it matches.
status() {
  registry-mirror status --state "$1" >said
  sed '/^name\|^bytes\|^node\|^network\|^told/d' said | while read -r what line; do row status "$what $line"; done
  grep -q "$2" said || bad "status does not say \"$2\""
}
says() { registry-mirror status --state "$1" | grep -q "$2"; }
# asks STATE: it asks its routes now.
asks() { registry-mirror sync --state "$1" 2>said || row sync "exit $?: $(awk 'NR<3' said | tr '\n' ' ' | sed "s|$name|NAME|g" | cut -c1-400)"; }

say "records"
synced held
begin_case "rollback: the route gives the record before"
cp record-1 lies/record
asks held
status held "older"
got pkg-0038 200
npms 0
begin_case "equivocation: another value under the sequence that was accepted"
forge pub.key "$old" "$(json pkg-0038.json o.sequence)" 24h >lies/record
asks held
status held "^refused"
got pkg-0038 200
[ "$(find held/mirror -path '*evidence*' -name '*.json' | wc -l)" = 1 ] || bad "no evidence was kept"
begin_case "the next sequence, signed by whoever has the key, with the release before"
forge pub.key "$old" 9 24h >lies/record
asks held
status held "older"
got pkg-0038 200
begin_case "stale: a record of a higher sequence that has expired"
forge pub.key "$new" 10 -1h >lies/record
asks held
status held "expired"
got pkg-0038 200
begin_case "forged: one bit of the signature is another"
node -e 'const fs=require("fs"),b=fs.readFileSync(process.argv[1]);b[b.length-5]^=1;fs.writeFileSync(process.argv[2],b)' record-2 lies/record
asks held
status held "^problem"
got pkg-0038 200
begin_case "forged: signed with another key under this name"
forge other.key "$old" 11 24h >lies/record
asks held
status held "^problem"
got pkg-0038 200
begin_case "rubbish in place of a record"
head -c 9000 /dev/urandom >lies/record
asks held
status held "^problem"
down
for what in stale other; do
  begin_case "$what, and this mirror has never had a list"
  case $what in
    stale) forge pub.key "$new" 10 -1h >lies/record ;;
    other) forge other.key "$new" 11 24h >lies/record ;;
  esac
  mirror "fresh-$what" "${lying[@]}"
  until_ok 20 says "fresh-$what" '^problem' || bad "no problem is told"
  status "fresh-$what" '^problem'
  got pkg-0038 503
  npms 1
  down
done

say "blocks in a gateway's answers"
honest
begin_case "every block from the gateway has a bit turned round, no list held"
echo all >lies/flip
mirror flip-all "${lying[@]}"
until_ok 20 says flip-all '^problem' || bad "no problem is told"
status flip-all '^problem'
got pkg-0038 503
npms 1
down
honest
begin_case "the tarball's block from the only gateway has a bit turned round"
synced flip-leaf
echo "$leaf" >lies/flip
got "$tarball" 503
npms 1
status flip-leaf '^lacking'
honest
begin_case "  the same mirror, the gateway honest again"
got "$tarball" 200
npms 0
down
begin_case "the gateway takes the question and never answers"
synced silent
touch lies/silent
got "$tarball" 503
status silent '^lacking'
down
honest

say "tarballs that are gone"
begin_case "no provider has the tarball, and there is no upstream"
synced gone
echo "$leaf" >lies/gone
got "$tarball" 503
npms 1
status gone '^lacking'
down
begin_case "no provider has the tarball, upstream does"
mirror gone --gateway "http://127.0.0.1:$liar" --upstream "$upstream"
got "$tarball" 200
npms 0
status gone '^release'
down
begin_case "no provider has the tarball, and upstream has other bytes"
kill "$registry"; wait "$registry" || true
behind=$(free_port)
start npmtestd.log npmtestd -listen "127.0.0.1:$behind" -packages 40 -seed 7
cat >flipped.js <<'JS'
// A registry before another: all is as there, but for one bit of every tarball.
const http=require('http'),[,,port,origin]=process.argv;
http.createServer((q,s)=>http.get(origin+q.url,{headers:{accept:q.headers.accept??'*/*'}},r=>{
  const b=[];r.on('data',d=>b.push(d)).on('end',()=>{let body=Buffer.concat(b);
    if(q.url.endsWith('.tgz'))body[body.length>>1]^=1;
    s.writeHead(r.statusCode,{'content-type':r.headers['content-type']??''});s.end(body)})})).listen(port,'127.0.0.1');
JS
start flipped.log node flipped.js "$reg" "http://127.0.0.1:$behind"
flipped=${PIDS[-1]}
until_ok 10 curl -sf "$upstream/-/ping"
synced flipped
down
mirror flipped --gateway "http://127.0.0.1:$liar" --upstream "$upstream"
got "$tarball" 403
npms 1
status flipped '^withheld'
down
kill "$flipped"; wait "$flipped" || true
start npmtestd.log npmtestd -listen "127.0.0.1:$reg" -packages 40 -seed 7
until_ok 20 curl -sf "$upstream/-/ping"
honest

say "a peer"
# it holds the list and this packument before the store is damaged
peer=(--ipfs --network local --peer "$address")
mirror peer "${peer[@]}" --no-upstream
until_ok 20 has_list peer 2 || { cat peer.log >&2; fail "no list from the peer"; }
curl -sf -o /dev/null "http://127.0.0.1:$mirror/pkg-0038" || fail "no packument from the peer"
down
begin_case "bits of the block are turned round in the only peer's store"
node_down
node - pub/node "$(curl -sf "$upstream/$tarball" | base64 -w0)" <<'JS'
const fs=require('fs'),path=require('path'),want=Buffer.from(process.argv[3],'base64');
let n=0;
const walk=d=>{for(const e of fs.readdirSync(d,{withFileTypes:true})){const p=path.join(d,e.name);
  if(e.isDirectory())walk(p);else{const b=fs.readFileSync(p);for(let i=b.indexOf(want.subarray(0,200));i>=0;i=b.indexOf(want.subarray(0,200),i+1)){b[i+100]^=1;n++;fs.writeFileSync(p,b)}}}};
walk(process.argv[2]);
if(!n){console.error('the block is nowhere in the store');process.exit(1)}
JS
node_up
grep -m1 'level=ERROR' pub.log >&2 || true
mirror peer "${peer[@]}" --no-upstream
got "$tarball" 503
npms 1
status peer '^lacking'
down
begin_case "  the same, and upstream has it"
mirror peer "${peer[@]}" --upstream "$upstream"
got "$tarball" 200
npms 0
down
begin_case "the only peer is gone, and there is no upstream"
node_down
mirror peer "${peer[@]}" --no-upstream
got "$missing" 503
status peer '^lacking'
down

sed "s|$name|NAME|g; s|127.0.0.1:$liar|GATEWAY|g; s|$S|…|g" "$table"
[ $wrong = 0 ] || fail "see WRONG above"
echo "forged: ok"
