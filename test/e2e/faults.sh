#!/usr/bin/env bash
# What a publisher that cron runs says and ends with at each fault, with the built commands
# over embedded nodes and a frozen registry on loopback. A table of it comes at the end.
# `faults.sh expiry` waits a minute more, until a record has expired.
. "$(dirname "$0")/lib.sh"
build
go build -C "$ROOT" -o "$WORK/bin/" ./internal/npm/npmtest/npmtestd ./test/e2e/forge
S=$WORK/faults
rm -rf "$S"
mkdir -p "$S"
cd "$S"
reg=$(free_port)
start npmtestd.log npmtestd -listen "127.0.0.1:$reg" -packages 40 -seed 7
until_ok 20 curl -sf "http://127.0.0.1:$reg/-/ping"
R=http://127.0.0.1:$reg
curl -sf "$R/-/feed/_all_docs?limit=100" >all.json
json all.json 'o.rows.map(r=>r.id).join("\n")' >names.txt
mapfile -t NAMES <names.txt

fill() { # fill STATE NAME…: what the follower has then
  local state=$1
  shift
  follower add "$@" --no-deps --state "$state" --node embedded
  follower run --once --feed none --upstream "$R" --state "$state"
}

# fault NAME CODE PATTERN COMMAND…: a row of the table; what it ends with and a line of what
# it says are held to that. An empty PATTERN is silence.
wrong=0
fault() {
  local name=$1 want=$2 pattern=$3 code=0
  shift 3
  "$@" >out 2>said || code=$?
  {
    printf '%s\n  exit %s\n' "$name" $code
    sed "s|$S|…|g; s/^time=[^ ]* /  /; s/^/  /" said
    [ -s said ] || echo "  (nothing)"
  } >>table
  if [ $code != "$want" ]; then echo "  WRONG: not $want" >>table; wrong=1; fi
  if [ -z "$pattern" ] && [ -s said ] || ! grep -q "$pattern" said && [ -n "$pattern" ]; then
    echo "  WRONG: not \"$pattern\"" >>table
    wrong=1
  fi
}
# sequence STATE WANT: of the newest record.
sequence() {
  publisher status --state "$1" --json >status.json
  [ "$(json status.json o.sequence)" = "$2" ] || { echo "  WRONG: sequence $(json status.json o.sequence), not $2" >>table; wrong=1; }
}

say "a registry with four releases, a backup after the first, and its records in a web server's directory"
mkdir web
web=(--route "$S/web")
export REGMIRROR_STATE=$S/none # each command below names its own
publisher key new --state base --json >key.json
name=$(json key.json o.ipns_name)
for i in 0 1 2 3; do
  fill base "${NAMES[$i]}"
  publisher publish --state base "${web[@]}"
  [ $i -gt 0 ] || cp -a base/registries backup
done
publisher status --state base --json >base.json
[ "$(json base.json '[o.number,o.sequence]')" = "[4,4]" ] || fail "$(cat base.json)"
publisher key export base.key --clear --state base
copy() { rm -rf "$1" web; cp -a base "$1"; mkdir -p "web/routing/v1/ipns"; cp base.ipns-record "web/routing/v1/ipns/$name"; }
cp "web/routing/v1/ipns/$name" base.ipns-record
forge() { command forge base.key "$(json base.json o.cid)" "$@" >"web/routing/v1/ipns/$name"; }

publisher key new --state short
fill short "${NAMES[0]}"
publisher publish --state short --lifetime 1m
expires=$((SECONDS + 62))

say "the journal"
copy lost
rm lost/registries/main/journal
fault "journal lost, the network up" 0 "there is no journal" publisher publish --state lost "${web[@]}"
sequence lost 5
copy down
rm down/registries/main/journal
fault "journal lost, a route down" 12 "hint: " publisher publish --state down "${web[@]}" --route http://127.0.0.1:1
rm -rf web/routing
mv down/node down/node.away
fault "journal lost, the network has no record" 12 "hint: " publisher publish --state down "${web[@]}"
copy garbled
printf 'x' | dd of=garbled/registries/main/journal bs=1 seek=60 conv=notrunc status=none
fault "journal garbled" 1 "hint: " publisher publish --state garbled "${web[@]}"
copy old
rm -rf old/registries
cp -a backup old/registries
fault "the registry restored from three releases ago" 13 "hint: " publisher publish --state old "${web[@]}"
fault "  the same, put again" 13 "hint: " publisher republish --state old
rm old/registries/main/journal
fault "  its journal moved out, put again" 14 "hint: " publisher republish --state old
rm old/registries/main/journal
fault "  its journal moved out" 0 "there is no journal" publisher publish --state old "${web[@]}"
sequence old 5
[ "$(json status.json o.number)" = 5 ] || { echo "  WRONG: release $(json status.json o.number)" >>table; wrong=1; }
rm garbled/registries/main/journal
cp base.ipns-record "web/routing/v1/ipns/$name"
fault "the garbled journal moved out" 0 "there is no journal" publisher publish --state garbled "${web[@]}"

say "records that we did not sign"
copy rival
publisher key import base.key --state other --sequence-at-least 3
fill other "${NAMES[9]}"
mkdir otherweb
publisher publish --state other --route "$S/otherweb"
sequence other 4
cp "otherweb/routing/v1/ipns/$name" "web/routing/v1/ipns/$name"
fault "a rival record under our sequence" 14 "hint: " publisher publish --state rival "${web[@]}"
fault "  what status says of it" 0 "" publisher status --state rival "${web[@]}"
grep '^problem' out | sed "s|$S|…|g; s/^/  /" >>table
copy max
forge 18446744073709551615 24h
fault "a record with sequence 2^64-1" 13 "no record can follow it" publisher publish --state max "${web[@]}"
copy big
forge 9 24h 20000
fault "a record over 10 KiB on a route" 0 "over 10 KiB" publisher publish --state big "${web[@]}"
cmp -s base.ipns-record "web/routing/v1/ipns/$name" || { echo "  WRONG: it is still there" >>table; wrong=1; }
forge 9 24h 20000
cp "web/routing/v1/ipns/$name" big.ipns-record
fault "  put by hand" 14 "over 10 KiB" publisher record put big.ipns-record "$name" --state big
rm big/registries/main/journal
fault "  and the journal lost" 12 "hint: " publisher publish --state big "${web[@]}"
copy past
forge 9 -24h
fault "an expired record of a higher sequence" 13 "hint: " publisher publish --state past "${web[@]}"

say "the signer"
copy gone
mv gone/keys/main/key.age key.away
fault "key file gone" 15 "hint: " publisher publish --state gone
fault "  nothing to sign: put again" 0 "" publisher republish --state gone
mv key.away gone/keys/main/key.age
chmod 644 gone/keys/main/key.age
fault "key file that others may read" 15 "hint: " publisher publish --state gone
ssh-keygen -q -t ed25519 -N '' -f reg
eval "$(ssh-agent -a "$S/agent.sock")" >/dev/null
PIDS+=("$SSH_AGENT_PID")
ssh-add -q reg
publisher key add reg.pub --agent --sequence-at-least 0 --state agent
fill agent "${NAMES[0]}"
publisher publish --state agent
kill "$SSH_AGENT_PID"
fault "ssh-agent gone" 15 "hint: " publisher publish --state agent
openssl genpkey -algorithm ed25519 -out kms.key 2>/dev/null
openssl pkey -in kms.key -pubout -out kms.pem
cat >kms-sign <<'SH'
#!/bin/sh
message=$(mktemp) && cat >"$message" && openssl pkeyutl -sign -rawin -inkey "$1" -in "$message" && rm "$message"
SH
chmod 755 kms-sign
publisher key add kms.pem --command "$S/kms-sign" --sequence-at-least 0 --state kms -- "$S/kms.key"
fill kms "${NAMES[0]}"
publisher publish --state kms
fill kms "${NAMES[1]}"
mv kms-sign kms-gone
fault "signing program missing" 15 "hint: " publisher publish --state kms
printf '#!/bin/sh\necho the token is locked >&2\nexit 7\n' >kms-sign
chmod 755 kms-sign
fault "signing program fails" 15 "the token is locked" publisher publish --state kms
mv kms-gone kms-sign
fault "  it is back" 0 "" publisher publish --state kms
sequence kms 2

fault "a key under a second name" 64 "hint: " publisher key import base.key --name again --state other
say "two at once"
copy two
port=$(free_port)
start hang.log node -e 'require("net").createServer(()=>{}).listen(+process.argv[1],"127.0.0.1")' "$port" # answers nobody
until_ok 10 bash -c "exec 3<>/dev/tcp/127.0.0.1/$port"
publisher publish --state two --route "http://127.0.0.1:$port" --wait 30s >/dev/null 2>first &
first=$!
at_work() { ! publisher log --state two; }
until_ok 20 at_work
fault "two publishers at once" 75 "process $first\b" publisher publish --state two
kill -INT $first
wait $first || true

say "kill -9, thirty times"
copy killed
mkdir seen
begin=$(date +%s%N)
publisher rollback 2 --state killed "${web[@]}"
ms=$((($(date +%s%N) - begin) / 1000000))
RANDOM=7 hits=0
for i in $(seq 30); do
  # every other one has something to sign: the list of another release
  if [ $((i % 2)) = 1 ]; then command=(rollback $((i / 2 % 3 + 1))); else command=(publish); fi
  at=$(node -p "((0.3+$RANDOM/32768)*$ms/1000).toFixed(3)")
  publisher "${command[@]}" --state killed "${web[@]}" >/dev/null 2>>killed.log &
  pid=$!
  sleep "$at"
  kill -9 $pid 2>/dev/null || true
  code=0
  wait $pid 2>/dev/null || code=$?
  [ $code != 137 ] || hits=$((hits + 1))
  cp "web/routing/v1/ipns/$name" "seen/$i"
done
[ $hits -ge 5 ] || fail "only $hits of the kills met a run"
fault "after 30 kill -9, of which $hits met a run of $ms ms" 0 "" publisher publish --state killed "${web[@]}"
cp "web/routing/v1/ipns/$name" seen/31
cat >killed.js <<'JS'
const fs=require('fs'), lines=fs.readFileSync(process.argv[2],'utf8').split('\n').filter(Boolean).map(l=>JSON.parse(l.slice(33)));
const values={}, records={}, all=new Set(); let last=0, intents=0, torn=0;
for(const l of lines){
  if(l.op==='intent'){ if(l.sequence<=last) throw new Error(`intent ${l.sequence} after ${last}`); last=l.sequence; intents++; values[l.sequence]=l.value }
  if(l.op==='record'){ if(records[l.sequence]) throw new Error(`two records of ${l.sequence}`); records[l.sequence]=l.record; all.add(l.record) }
}
for(const s in values) if(!records[s]) torn++;
const seen=new Set(fs.readdirSync('seen').map(f=>fs.readFileSync('seen/'+f).toString('base64')));
for(const r of seen) if(!all.has(r)) throw new Error('readers had a record that the journal does not know');
if(intents<8||seen.size<3) throw new Error(`only ${intents} intents, ${seen.size} records: the kills came too early`);
console.log(`  ${intents} sequences, each with one value; ${torn} cut short before they were signed; readers saw ${seen.size} records, all in the journal`);
JS
node killed.js killed/registries/main/journal >>table || fail "the journal after the kills"

if [ "${1:-}" = expiry ]; then
  say "the record's end of life"
  while [ $SECONDS -lt $expires ]; do sleep 1; done
  fault "the record has expired: status" 0 "" publisher status --state short --lifetime 1m
  grep -E '^(record|signing|next)' out | sed 's/^/  /' >>table
  fault "the record has expired: publish" 0 "" publisher publish --state short --lifetime 1m
  sequence short 2
fi

say "the table"
cat table
[ $wrong = 0 ] || fail "see the lines that say WRONG"
echo "faults: ok"
