#!/usr/bin/env bash
# What a daemon on the public network says to it: eight servers of the public DHT, on
# addresses that are public in a network namespace of their own, write down each message
# that they get; tcpdump, where it is there, writes down who else was to be reached. One
# mirror installs without --share, and announces nothing; one with it, and announces what
# it has. Root is needed. The tables come last.
. "$(dirname "$0")/lib.sh"
[ "$(id -u)" = 0 ] || { echo "quiet: skipped, a network namespace with addresses needs root"; exit 0; }
if [ "${1:-}" != inside ]; then
  build
  go build -C "$ROOT" -o "$WORK/bin/" ./internal/npm/npmtest/npmtestd ./test/e2e/dhtd
  WORK=$WORK exec unshare -n bash "$0" inside
fi
S=$WORK/quiet
rm -rf "$S"
mkdir -p "$S"
cd "$S"
export REGMIRROR_STATE=$S/none # each command below names its own
ip link set lo up
addrs=()
for ip in 45.33.0.1 52.1.0.1 62.2.0.1 77.3.0.1 82.4.0.1 91.5.0.1 104.6.0.1 130.7.0.1; do
  ip addr add "$ip/32" dev lo
  addrs+=("/ip4/$ip/tcp/4001")
done
# The rest of the world: every packet for it goes into a hole, and is seen.
ip link add hole type veth peer name pit
ip addr add 146.9.0.1/24 dev hole
ip link set hole up arp off && ip link set pit up arp off
ip route add default dev hole
if command -v tcpdump >/dev/null; then
  start tcpdump.log tcpdump -n -l -i hole -w hole.pcap -U
  sleep 1
fi

# inside `start`, so that standard output is the object alone
up() { # up LABEL FLAG…
  local label=$1
  shift
  start "$label.log" sh -c 'out=$1; shift; exec "$@" >"$out"' sh "$S/$label.json" registry-mirror up pkg-0038 pkg-0037 @scope-2/pkg-0035 pkg-0030 \
    --network public --upstream http://127.0.0.1:4800 --state "$S/pub" --listen 127.0.0.1:4801 --json "$@"
  UP=${PIDS[-1]}
  until_ok 60 has_json "$label.json" || { cat "$label.log" >&2; fail "up did not come up"; }
}
mirror() { # mirror LABEL PORT FLAG…
  local label=$1 port=$2
  shift 2
  start "$label.log" registry-mirror daemon --ipfs "$name" --network public --state "$S/$label" --listen "127.0.0.1:$port" --peer "$publisher" --peer "${servers[1]}" "$@"
  list() { registry-mirror status --state "$S/$label" --json >"$label.json" && [ "$(json "$label.json" 'o.release?.number??0')" -gt 0 ]; }
  until_ok 30 list || { cat "$label.log" >&2; fail "$label has no list"; }
  fresh_install "$S/$label-project" "http://127.0.0.1:$port" pkg-0038 pkg-0037 @scope-2/pkg-0035 || { cat "$label.log" >&2; fail "npm install through $label"; }
  echo "$label: $(count_installed "$label-project") packages installed"
}

say "a DHT of eight servers, a publisher and two mirrors"
start dht.log sh -c 'exec "$0" "$@" >>dht.out' dhtd "${addrs[@]}"
until_ok 20 grep -q '^$' dht.out || { cat dht.log >&2; fail "no DHT"; }
mapfile -t servers < <(sed '/^$/q' dht.out | grep .)
start npmtestd.log npmtestd -listen 127.0.0.1:4800 -packages 40 -seed 7
until_ok 20 curl -sf http://127.0.0.1:4800/-/ping

say "a publisher that does not share, for 75 s"
up publisher --peer "${servers[0]}"
name=$(json publisher.json o.name)
registry-mirror status --state pub
sleep 75
kill -INT "$UP"; wait "$UP" || true
echo "phase" >>dht.out

say "the same with --share, and two mirrors, which install"
up publisher-shares --share --peer "${servers[0]}"
publisher=$(json publisher-shares.json 'o.peers.find(a=>/^.ip4.146.*.tcp/.test(a))')
mirror quiet 4802
mirror shares 4803 --share
registry-mirror status --state pub
registry-mirror status --state quiet
registry-mirror status --state shares
sleep 75
kill -INT "$UP"; wait "$UP" || true

say "the publisher is gone, and the mirror is asked for what it does not hold"
echo "alone" >>dht.out
curl -s -m 60 -w '%{http_code} after %{time_total} s\n' http://127.0.0.1:4802/pkg-0030 || true
for n in pkg-0030 $(json shares-project/package-lock.json 'Object.keys(o.packages).filter(Boolean).map(k=>k.replace(/.*node_modules./,"")).join(" ")'); do
  publisher show "$n" --state pub --json
done >shown.json

say "what the servers of the DHT were told"
cat >tables.js <<'JS'
const fs=require('fs');
const read=f=>JSON.parse(fs.readFileSync(f,'utf8'));
// A CID without what stands for its codec, which a provider record does not have.
const bare=c=>c.slice(5);
const pub=read('publisher-shares.json'),what=new Map([[bare(pub.cid),'release'],[bare(pub.list.root),'list'],[bare(pub.list.overflow),'list']]);
const all=fs.readFileSync('shown.json','utf8').split(/\n(?=\{)/).filter(s=>s.trim()).map(s=>JSON.parse(s));
for(const p of all){what.set(bare(p.directory.cid),'package directory');
  for(const k of ['gateway','packument','install'])if(p[k])what.set(bare(p[k].cid),'document');
  for(const v of p.versions)what.set(bare(v.cid),'tarball');}
const who=new Map([[read('quiet.json').node.id,'mirror'],[read('shares.json').node.id,'mirror --share']]);
const id=pub.peers[0].replace(/.*\/p2p\//,'');
const lines=fs.readFileSync('dht.out','utf8').split('\n');
const rows={},seen=new Map();let phase='publisher',alone='';
for(const l of lines.slice(lines.indexOf('')+1)){
  if(l==='phase'){phase='publisher --share';continue}
  if(l==='alone'){alone=' alone';continue}
  const [type,from,key]=l.split(' ');if(!key)continue;
  const w=from===id?phase:(who.get(from)??from)+alone;
  rows[w]??={};rows[w][type]=(rows[w][type]??0)+1;
  const k=key.startsWith('/ipns/')?'the name':key==='-'?'':what.get(bare(key))??'another block';
  if(k){const t=`${w}\t${type}\t${k}`;seen.has(t)||seen.set(t,new Set());seen.get(t).add(key);}
}
const types=['ADD_PROVIDER','GET_PROVIDERS','PUT_VALUE','GET_VALUE','FIND_NODE','PING'];
console.log('messages'.padEnd(22)+types.map(t=>t.padStart(15)).join(''));
for(const w of Object.keys(rows).sort())console.log(w.padEnd(22)+types.map(t=>String(rows[w][t]??0).padStart(15)).join(''));
console.log('\nwho                    type            of what              different ones');
for(const [t,s] of [...seen].sort()){const [w,type,k]=t.split('\t');console.log(w.padEnd(23)+type.padEnd(16)+k.padEnd(21)+s.size);}
const must=(ok,text)=>{if(!ok){console.log(`WRONG: ${text}`);process.exitCode=1}};
const announced=w=>rows[w]?.ADD_PROVIDER??0;
for(const w of ['mirror','mirror alone','publisher'])must(announced(w)===0,`${w} announced without --share`);
must(announced('publisher --share')>0,'publisher --share announced nothing');
for(const k of ['release','list','tarball','document','package directory'])must(seen.has(`mirror --share\tADD_PROVIDER\t${k}`),`mirror --share announced no ${k}`);
for(const t of seen.keys())must(!/^publisher.*ADD_PROVIDER\t(tarball|document|package directory|another)|ADD_PROVIDER\tanother/.test(t),t);
JS
node tables.js
if [ -e hole.pcap ]; then
  say "whom else they wanted to reach"
  tcpdump -n -r hole.pcap 2>/dev/null | sed -n 's/.* > \([0-9.]*\)\.\([0-9]*\): .*\(A\|AAAA\|TXT\)? \([^ ]*\) .*/\1 port \2, DNS: \4/p; t; s/.* > \([^ ]*\): .*/\1/p' | sort | uniq -c | sort -rn | head -n 20
fi
echo "quiet: ok"
