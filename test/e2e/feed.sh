#!/usr/bin/env bash
# The feed, live: a real pouchdb-server (CouchDB's protocol), then a server that
# behaves as npm's replicate service does. A changed packument goes in, and the
# new version installs through the mirror a moment later.
. "$(dirname "$0")/lib.sh"
build
go build -C "$ROOT" -o "$WORK/bin/" ./internal/npm/npmtest/npmtestd

say "pouchdb-server from the npm registry"
[ -d "$WORK/pouch/node_modules" ] || npm install --silent --no-save --ignore-scripts --no-audit --no-fund --prefix "$WORK/pouch" pouchdb-server@4.2.0 2>/dev/null
db=$(free_port) tarballs=$(free_port) port=$(free_port)
S=$WORK/feed
rm -rf "$S" "$WORK/couch"
mkdir -p "$WORK/couch"
(cd "$WORK/couch" && exec node "$WORK/pouch/node_modules/.bin/pouchdb-server" --in-memory --host 127.0.0.1 --port "$db") >"$WORK/couch.log" 2>&1 &
PIDS+=($!)
until_ok 30 curl -sf "http://127.0.0.1:$db/"
curl -sf -X PUT "http://127.0.0.1:$db/registry" >/dev/null

# put VERSION…: a packument of package "moving" with those versions, tarballs
# made by npm pack and served beside it.
put() {
  node - "$WORK/couch" "http://127.0.0.1:$db/registry" "http://127.0.0.1:$tarballs" "$@" <<'JS'
const fs=require('fs'),path=require('path'),cp=require('child_process'),crypto=require('crypto');
const [,,dir,db,base,...versions]=process.argv;
(async()=>{
  const doc={_id:'moving',name:'moving','dist-tags':{latest:versions.at(-1)},versions:{},time:{modified:new Date().toISOString()}};
  for(const v of versions){
    const d=path.join(dir,'src');fs.rmSync(d,{recursive:true,force:true});fs.mkdirSync(d);
    const manifest={name:'moving',version:v,main:'index.js'};
    fs.writeFileSync(path.join(d,'package.json'),JSON.stringify(manifest));
    fs.writeFileSync(path.join(d,'index.js'),`module.exports=${JSON.stringify(v)}\n`);
    const t=path.join(dir,'moving','-');fs.mkdirSync(t,{recursive:true});
    const f=path.join(t,`moving-${v}.tgz`);
    if(!fs.existsSync(f)) cp.execFileSync('npm',['pack','--silent','--pack-destination',t],{cwd:d});
    const b=fs.readFileSync(f);
    doc.versions[v]={...manifest,dist:{tarball:`${base}/moving/-/moving-${v}.tgz`,shasum:crypto.createHash('sha1').update(b).digest('hex'),integrity:'sha512-'+crypto.createHash('sha512').update(b).digest('base64')}};
    doc.time[v]='2020-01-01T00:00:00.000Z';
  }
  const old=await fetch(db+'/moving');
  if(old.ok) doc._rev=(await old.json())._rev;
  const r=await fetch(db+'/moving',{method:'PUT',headers:{'content-type':'application/json'},body:JSON.stringify(doc)});
  if(!r.ok) throw new Error(await r.text());
})();
JS
}
put 1.0.0
start "$WORK/tarballs.log" node -e "
const http=require('http'),fs=require('fs'),path=require('path');
http.createServer((q,r)=>{const f=path.join('$WORK/couch',path.normalize(q.url));fs.readFile(f,(e,b)=>{r.statusCode=e?404:200;r.end(b)})}).listen($tarballs,'127.0.0.1')"

say "follower, publisher and mirror beside it, over one embedded node"
follower add --all --state "$S" --node embedded
start "$WORK/feed-follower.log" follower run --feed "http://127.0.0.1:$db/registry" --upstream "http://127.0.0.1:$tarballs" --state "$S"
until_ok 60 sh -c "follower status --state '$S' --json | grep -q '\"versions\": 1'" || { cat "$WORK/feed-follower.log" >&2; fail "the first version was not stored"; }
publisher key new --state "$S" >/dev/null
publisher publish --state "$S" --json >"$WORK/feed-publish.json"
name=$(json "$WORK/feed-publish.json" 'o.name')
start "$WORK/feed-mirror.log" registry-mirror daemon --ipfs "$name" --state "$S" --listen "127.0.0.1:$port"
until_ok 30 curl -sf "http://127.0.0.1:$port/moving" || { cat "$WORK/feed-mirror.log" >&2; fail "the mirror has no list"; }
fresh_install "$WORK/f1" "http://127.0.0.1:$port" moving
[ "$(cd "$WORK/f1" && node -p 'require("moving")')" = 1.0.0 ] || fail "wrong version"

say "a new version goes into the feed"
begin=$(date +%s%N)
put 1.0.0 1.1.0
until_ok 60 sh -c "follower status --state '$S' --json | grep -q '\"versions\": 2'" || { cat "$WORK/feed-follower.log" >&2; fail "the new version was not stored"; }
publisher publish --state "$S"
registry-mirror sync --state "$S"
fresh_install "$WORK/f2" "http://127.0.0.1:$port" moving
[ "$(cd "$WORK/f2" && node -p 'require("moving")')" = 1.1.0 ] || fail "the new version did not arrive"
echo "from the feed to node_modules: $((($(date +%s%N) - begin) / 1000000)) ms"
cleanup; PIDS=()

say "a feed as npm's replicate service is today"
S=$WORK/feed-npm
rm -rf "$S"
reg=$(free_port)
start "$WORK/npmtestd.log" npmtestd -listen "127.0.0.1:$reg" -packages 50 -seed 7
until_ok 20 curl -sf "http://127.0.0.1:$reg/-/ping"
follower add --all --state "$S" --node embedded
follower run --once --feed "http://127.0.0.1:$reg/-/feed" --upstream "http://127.0.0.1:$reg" --state "$S"
follower status --state "$S" --json >"$WORK/feed-npm.json"
json "$WORK/feed-npm.json" '({cursors:o.cursors,packages:o.counts.packages,versions:o.counts.versions})'
[ "$(json "$WORK/feed-npm.json" 'o.counts.packages')" = 50 ] || fail "not every package of the feed was stored"
echo "feed: ok"
