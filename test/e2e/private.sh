#!/usr/bin/env bash
# A company's own registry: `publisher init` and `serve` on one node, npm publish, and
# a colleague's mirror on a second node from which npm installs. The packages are made
# on the spot: no registry but these two is asked for anything.
. "$(dirname "$0")/lib.sh"
build
S=$WORK/private
rm -rf "$S"
mkdir -p "$S"
cd "$S"
port=$(free_port) mirror=$(free_port)
now() { date +%s%N; }
since() { echo "$((($(now) - $1) / 1000000)) ms"; }

say "init: a key, a ledger and one token"
publisher init acme --scope @acme --state company --json >init.json
token=$(json init.json o.token) name=$(json init.json o.ipns_name)
publisher init acme --scope @acme --state company 2>init.err && fail "made twice"
grep -q 'made already' init.err || { cat init.err >&2; fail "not refused clearly"; }

serve() {
  rm -f "$S/serve.json"
  start "$S/serve.log" sh -c "exec publisher serve --state '$S/company' --listen 127.0.0.1:$port --json >'$S/serve.json'"
  SERVE=${PIDS[-1]}
  until_ok 30 has_json "$S/serve.json" || { cat "$S/serve.log" >&2; fail "serve did not come up"; }
}
serve

# npm as who publishes, and as a colleague; the registry of all other names is nobody.
common="cache=$S/cache
registry=http://127.0.0.1:9/
update-notifier=false
audit=false
fund=false
fetch-retries=1
fetch-retry-mintimeout=100"
printf '%s\n@acme:registry=http://127.0.0.1:%s/\n//127.0.0.1:%s/:_authToken=%s\n' "$common" "$port" "$port" "$token" >publisher.npmrc
printf '%s\n@acme:registry=http://127.0.0.1:%s/\n//127.0.0.1:%s/:_authToken=wrong\n' "$common" "$port" "$port" >stranger.npmrc
printf '%s\n@acme:registry=http://127.0.0.1:%s/\n@evil:registry=http://127.0.0.1:%s/\n//127.0.0.1:%s/:_authToken=%s\n' "$common" "$port" "$port" "$port" "$token" >foreign.npmrc
printf '%s\n@acme:registry=http://127.0.0.1:%s/\n' "$common" "$mirror" >colleague.npmrc
# as RC ARGUMENT…: npm with that configuration, in the directory that is the current one.
as() { local rc=$1; shift; npm_config_userconfig="$S/$rc.npmrc" npm "$@"; }
# package DIR NAME VERSION [FILE BYTES]: a folder to publish.
package() {
  mkdir -p "$1"
  printf '{"name":"%s","version":"%s","main":"index.js"}' "$2" "$3" >"$1/package.json"
  printf 'module.exports = "%s"\n' "$3" >"$1/index.js"
  [ $# -lt 5 ] || head -c "$5" /dev/urandom >"$1/$4"
}

say "a colleague's mirror, by the printed line"
line=$(json init.json o.colleague_runs)
start "$S/mirror.log" sh -c "exec $line --state '$S/colleague' --listen 127.0.0.1:$mirror"
until_ok 30 sh -c "registry-mirror status --state '$S/colleague' --json | grep -q '\"number\": [1-9]'" || { cat mirror.log >&2; fail "the mirror has no list"; }

say "npm publish, and the colleague installs"
package thing @acme/thing 1.0.0
begin=$(now)
(cd thing && as publisher publish 2>&1) >publish.log || { cat publish.log serve.log >&2; fail "npm publish"; }
echo "npm publish took $(since "$begin")"
published=$(now)
mkdir -p project
echo '{"name":"project","version":"1.0.0","private":true}' >project/package.json
install() { (cd "$S/project" && as colleague install --prefer-online "$@"); }
until_ok 60 curl -sf -o /dev/null "http://127.0.0.1:$mirror/@acme%2fthing" || { cat mirror.log >&2; fail "it did not come to the mirror"; }
echo "in the colleague's mirror $(since "$published") after npm publish returned"
install @acme/thing >install.log 2>&1 || { cat install.log >&2; fail "npm install"; }
echo "npm install done $(since "$published") after npm publish returned"
[ "$(cd project && node -p 'require("@acme/thing")')" = 1.0.0 ] || fail "another thing was installed"
grep -q "127.0.0.1:$mirror/@acme/thing/-/thing-1.0.0.tgz" project/package-lock.json || fail "not from the mirror"

say "what npm asks beside"
(cd thing && as publisher view @acme/thing version && as publisher dist-tag ls @acme/thing && as publisher whoami --registry "http://127.0.0.1:$port/" && as publisher ping --registry "http://127.0.0.1:$port/") >view.log 2>&1 || { cat view.log >&2; fail "npm view and its like"; }
package thing @acme/thing 1.1.0-beta.1
(cd thing && as publisher publish --tag beta && as publisher dist-tag add @acme/thing@1.0.0 stable && as publisher dist-tag rm @acme/thing stable && as publisher deprecate @acme/thing@1.0.0 "use 1.1") >tags.log 2>&1 || { cat tags.log >&2; fail "dist-tags and deprecate"; }
[ "$(as publisher view @acme/thing dist-tags --json | tr -d ' \n')" = '{"beta":"1.1.0-beta.1","latest":"1.0.0"}' ] || fail "dist-tags are $(as publisher view @acme/thing dist-tags --json)"
[ "$(as publisher view @acme/thing@1.0.0 deprecated)" = "use 1.1" ] || fail "not deprecated"
fresh=$S/direct
mkdir -p "$fresh" && echo '{"name":"direct","version":"1.0.0","private":true}' >"$fresh/package.json"
(cd "$fresh" && as publisher install @acme/thing@beta) >direct.log 2>&1 || { cat direct.log >&2; fail "npm install from serve itself"; }

# refused WHAT WORDS RC [ARGUMENT…]: npm publish of ./thing must fail, saying so.
refused() {
  local what=$1 words=$2 rc=$3
  shift 3
  (cd thing && as "$rc" publish "$@") >refused.log 2>&1 && { cat refused.log >&2; fail "$what was published"; }
  grep -q "$words" refused.log || { cat refused.log >&2; fail "$what: not refused with $words"; }
  echo "$what: $(grep -m1 "$words" refused.log)"
}
say "what is refused"
package thing @acme/thing 2.0.0
refused "with a wrong token" "E401\|401 Unauthorized" stranger
refused "without a token" "ENEEDAUTH" colleague --registry "http://127.0.0.1:$port/" --@acme:registry="http://127.0.0.1:$port/"
as publisher view @acme/thing@2.0.0 version 2>&1 | grep -q 2.0.0 && fail "2.0.0 is there"
package thing @acme/thing 1.0.0
refused "a version a second time" "previously published\|published before" publisher
status=$(curl -s -o conflict.json -w '%{http_code}' -X PUT -H "Authorization: Bearer $token" --data-binary @- "http://127.0.0.1:$port/@acme%2fthing" < <(
  (cd thing && tar -czf "$S/other.tgz" --transform 's,^,package/,' package.json index.js)
  node -e 'const t=require("fs").readFileSync(process.argv[1]),h=a=>require("crypto").createHash(a).update(t);
    console.log(JSON.stringify({_id:"@acme/thing",name:"@acme/thing","dist-tags":{latest:"1.0.0"},
      versions:{"1.0.0":{name:"@acme/thing",version:"1.0.0",dist:{integrity:"sha512-"+h("sha512").digest("base64"),shasum:h("sha1").digest("hex")}}},
      _attachments:{"@acme/thing-1.0.0.tgz":{data:t.toString("base64"),length:t.length}}}))' "$S/other.tgz"
))
[ "$status" = 409 ] || { cat conflict.json >&2; fail "other bytes of a version that exists: $status"; }
echo "other bytes of a version that exists: $(cat conflict.json)"
package thing @evil/thing 1.0.0
refused "a foreign scope" "this registry takes @acme" foreign

say "kill -9 while npm publishes: whole or absent, and once more it succeeds"
held=0 absent=0
for round in 1 2 3 4; do
  package big @acme/big "1.0.$round" payload.bin 24000000
  (cd big && as publisher publish --fetch-retries 0) >big.log 2>&1 &
  npm=$!
  # from the moment when the tarball is coming in, a little later each time
  for _ in $(seq 2000); do ls -l "/proc/$SERVE/fd" 2>/dev/null | grep -q publish- && break; done
  sleep "0.$((round * round - 1))"
  kill -KILL "$SERVE" 2>/dev/null || true
  wait "$SERVE" 2>/dev/null || true
  PIDS=("${PIDS[@]/$SERVE/}")
  wait "$npm" || true
  serve
  if as publisher view "@acme/big@1.0.$round" version 2>/dev/null | grep -q "1.0.$round"; then
    held=$((held + 1))
    (cd big && as publisher pack --silent >/dev/null)
    curl -sf "http://127.0.0.1:$port/@acme/big/-/big-1.0.$round.tgz" | cmp - "big/acme-big-1.0.$round.tgz" || fail "1.0.$round is not whole"
    rm "big/acme-big-1.0.$round.tgz"
    (cd big && as publisher publish) >again.log 2>&1 && fail "npm took 1.0.$round twice"
    grep -q "previously published\|published before" again.log || { cat again.log >&2; fail "1.0.$round once more"; }
  else
    absent=$((absent + 1))
    (cd big && as publisher publish) >again.log 2>&1 || { cat again.log serve.log >&2; fail "1.0.$round once more"; }
  fi
done
echo "of 4 killed: $held whole, $absent absent and published again"
until_ok 60 sh -c "curl -sf http://127.0.0.1:$mirror/@acme%2fbig | grep -q '\"1.0.4\"'" || { cat mirror.log >&2; fail "the mirror did not follow"; }
install @acme/big@1.0.4 >install.log 2>&1 || { cat install.log >&2; fail "npm install of what was killed"; }

say "beside serve, and after it"
publisher status --name acme --state company
publisher publish --name acme --state company 2>beside.err && fail "two publish at once"
kill -INT "$SERVE" && wait "$SERVE" || fail "serve did not end well"
PIDS=("${PIDS[@]/$SERVE/}")
publisher republish --name acme --state company --verbose 2>/dev/null
publisher check --name acme --state company
publisher log --name acme --state company | head -n 3
echo "private: ok"
