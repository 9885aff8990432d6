#!/usr/bin/env bash
# A machine without a network installs a project from one file. Its sizes and times stand
# beside those of a copied npm cache and of `npm pack`. The machine is a network namespace
# with nothing but loopback: root is needed for it. PROJECT names a package.json to take in
# the place of the one here, of some 450 packages.
. "$(dirname "$0")/lib.sh"
[ "$(id -u)" = 0 ] || { echo "airgap: skipped, a network namespace of its own needs root"; exit 0; }
build
S=$WORK/airgap
rm -rf "$S"
mkdir -p "$S/project"
cd "$S"
export REGMIRROR_STATE=$S/none # each command below names its own
if [ -n "${PROJECT:-}" ]; then
  cp "$PROJECT" project/package.json
else
  echo '{"name":"airgap","version":"1.0.0","private":true,"dependencies":{"express":"^4.18.0","eslint":"^8.57.0","webpack":"^5.90.0","jest":"^29.7.0","react":"^18.3.0","typescript":"^5.4.0"}}' >project/package.json
fi
now() { date +%s%N; }
since() { echo $((($(now) - $1) / 1000000)); } # milliseconds
size() { du -sb "$1" | cut -f1; }
row() { printf '%-34s %12s bytes %8s ms\n' "$1" "${2:--}" "${3:--}"; }
npm_() { npm "$@" --no-audit --no-fund --ignore-scripts >npm.log 2>&1 || { tail -n 15 npm.log >&2; fail "npm $1"; }; }
ci_in() { # ci_in DIR ARG…: npm ci of the project in a copy of it
  local dir=$1
  shift
  rm -rf "$dir" && mkdir "$dir" && cp project/package*.json "$dir"
  (cd "$dir" && npm_ ci "$@")
}

say "the project's lockfile, and a registry that holds what it locks"
(cd project && npm_ install --package-lock-only --cache "$S/first-cache")
start up.log sh -c 'exec registry-mirror up --lockfile project/package-lock.json --state pub --listen 127.0.0.1:0 --json >up.json'
until_ok 600 has_json up.json || { cat up.log >&2; fail "up did not start"; }
name=$(json up.json o.name) peer=$(json up.json 'o.peers[0]')

say "a machine with a network: fetch, export, export again"
registry-mirror add npm "$name" --network local --peer "$peer" --state a
begin=$(now)
registry-mirror fetch --lockfile project/package-lock.json --no-upstream --state a -v
fetch=$(since "$begin")
begin=$(now)
registry-mirror export --lockfile project/package-lock.json --no-upstream --state a -o bundle.car -v
export=$(since "$begin")
registry-mirror export --lockfile project/package-lock.json --offline --state a -o again.car
cmp bundle.car again.car || fail "two exports differ"
registry-mirror export --lockfile project/package-lock.json --whole-list --offline --state a -o whole.car

say "what people carry today: a copied npm cache, and npm pack"
begin=$(now)
ci_in plain --cache "$S/npm-cache"
warm=$(since "$begin") cache=$(size npm-cache)
mkdir packs
specs=$(node -p 'const l=require("./project/package-lock.json");[...new Set(Object.entries(l.packages).filter(([k])=>k).map(([k,p])=>(p.name||k.slice(k.lastIndexOf("node_modules/")+13))+"@"+p.version))].join(" ")')
begin=$(now)
# shellcheck disable=SC2086
(cd packs && npm_ pack $specs --cache "$S/packs-cache")
pack=$(since "$begin")

say "the machine without one: import, daemon, npm ci"
cat >alone.sh <<'ALONE'
set -euo pipefail
ip link set lo up
! curl -sf --max-time 3 "$(npm config get registry)" >/dev/null || { echo "there is a network" >&2; exit 1; }
. "$ROOT/test/e2e/lib.sh"
begin=$(now)
registry-mirror import bundle.car --network local --state b -v
since "$begin" >import.ms
start b.log registry-mirror daemon --ipfs --offline --state b --listen 127.0.0.1:4873 "$name"
until_ok 20 curl -sf http://127.0.0.1:4873/-/ping || { cat b.log >&2; fail "the mirror did not start"; }
begin=$(now)
ci_in ours --cache "$S/empty-cache" --registry http://127.0.0.1:4873
since "$begin" >ours.ms
begin=$(now)
registry-mirror import whole.car --state b -v # by the daemon that runs
since "$begin" >running.ms
registry-mirror status --state b
begin=$(now)
ci_in copied --cache "$S/npm-cache" --offline
since "$begin" >copied.ms
ALONE
export ROOT WORK S name
export -f now since npm_ ci_in fail
unshare -n bash alone.sh
installed=$(count_installed ours)
for dir in ours copied plain; do (cd "$dir/node_modules" && find . -type f -not -name .package-lock.json -print0 | sort -z | xargs -0 sha256sum) >"$dir.sums"; done
cmp ours.sums plain.sums || fail "what was installed differs from what npm's registry gives"

if [ -n "${REGMIRROR_TEST_KUBO:-}" ]; then
  say "any IPFS node takes it"
  build_kubo
  kubo_init "$S/kubo" >/dev/null
  export IPFS_PATH=$S/kubo IPFS_TELEMETRY=off
  ipfs dag import --stats bundle.car
  root=$(ipfs dag import bundle.car | awk '/root/{print $3}')
  ipfs ls "/ipfs/$root" >&2
  ipfs cat "/ipfs/$root/packages/express/packument.json.gz" | gunzip | head -c 80
  echo
  ipfs repo gc -q >/dev/null
  ipfs dag export "$root" 2>/dev/null | wc -c
fi

say "$installed packages"
row "bundle.car" "$(size bundle.car)" "$export"
row "  with the whole list" "$(size whole.car)"
row "  fetch before it" "" "$fetch"
row "  import" "" "$(cat import.ms)"
row "  import by the running daemon" "" "$(cat running.ms)"
row "  npm ci, no network" "" "$(cat ours.ms)"
row "npm's cache, copied" "$cache" "$warm"
row "  npm ci --offline, no network" "" "$(cat copied.ms)"
row "npm pack of each" "$(size packs)" "$pack"
echo "airgap: ok"
