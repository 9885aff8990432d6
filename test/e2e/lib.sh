# Shared by the end-to-end scripts: sourced, never run. Every script works in a
# directory of its own under $WORK and leaves nothing running.
set -euo pipefail
shopt -s inherit_errexit

ROOT=$(git -C "$(dirname "${BASH_SOURCE[0]}")" rev-parse --show-toplevel)
WORK=${WORK:-$(mktemp -d)}
mkdir -p "$WORK"
export PATH="$WORK/bin:$PATH" REGMIRROR_CONFIG=/dev/null
PIDS=()

say() { printf '\n== %s\n' "$*" >&2; }
fail() { printf 'FAILED: %s\n' "$*" >&2; exit 1; }

cleanup() {
  local pid
  for pid in "${PIDS[@]:-}"; do [ -n "$pid" ] && kill "$pid" 2>/dev/null || true; done
  for pid in "${PIDS[@]:-}"; do [ -n "$pid" ] && wait "$pid" 2>/dev/null || true; done
}
trap cleanup EXIT

# start LOG COMMAND…: runs it in the background; its process is $!.
start() {
  local log=$1
  shift
  "$@" >"$log" 2>&1 &
  PIDS+=($!)
}

# until_ok SECONDS COMMAND…: tries until it succeeds.
until_ok() {
  local end=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || return 1
    sleep 0.2
  done
}

# json FILE EXPRESSION: evaluates a JavaScript expression on the object in FILE.
json() { node -e 'const o=JSON.parse(require("fs").readFileSync(process.argv[1],"utf8"));const v=eval(process.argv[2]);console.log(typeof v==="object"?JSON.stringify(v):v)' "$1" "$2"; }

# has_json FILE: it holds a whole object.
has_json() { node -e 'JSON.parse(require("fs").readFileSync(process.argv[1],"utf8"))' "$1"; }

# free_port: a port that nothing listens on, and that it has not given before.
free_port() {
  local port
  mkdir -p "$WORK/ports"
  until port=$(node -e 'const s=require("net").createServer().listen(0,"127.0.0.1",()=>{console.log(s.address().port);s.close()})') &&
    mkdir "$WORK/ports/$port" 2>/dev/null; do :; done
  echo "$port"
}

# build: our three commands, once a run.
build() {
  mkdir -p "$WORK/bin"
  go build -C "$ROOT" -o "$WORK/bin/" ./cmd/...
}

# build_kubo: Kubo's daemon, from the small module that pins it. REGMIRROR_TEST_KUBO
# names one that is there already.
build_kubo() {
  if [ -n "${REGMIRROR_TEST_KUBO:-}" ]; then
    ln -sf "$REGMIRROR_TEST_KUBO" "$WORK/bin/ipfs"
  elif [ ! -x "$WORK/bin/ipfs" ]; then
    go build -C "$ROOT/internal/ipfs/kubotest" -trimpath -ldflags '-s -w' -o "$WORK/bin/ipfs" github.com/ipfs/kubo/cmd/ipfs
  fi
}

# kubo_init DIR: a repository that talks to this machine only.
kubo_init() {
  local api gw swarm
  api=$(free_port) gw=${2:-$(free_port)} swarm=$(free_port)
  IPFS_PATH=$1 ipfs init --profile=test,autoconf-off,unixfs-v1-2025 >/dev/null
  IPFS_PATH=$1 ipfs config Addresses.API "/ip4/127.0.0.1/tcp/$api"
  IPFS_PATH=$1 ipfs config Addresses.Gateway "/ip4/127.0.0.1/tcp/$gw"
  IPFS_PATH=$1 ipfs config --json Addresses.Swarm "[\"/ip4/127.0.0.1/tcp/$swarm\"]"
  echo "/ip4/127.0.0.1/tcp/$api" >"$1/our-api"
  echo "http://127.0.0.1:$gw" >"$1/our-gateway"
}

# kubo_start DIR [PREFIX…]: the daemon of that repository.
kubo_start() {
  local dir=$1
  IPFS_TELEMETRY=off IPFS_PATH=$dir start "$dir/daemon.log" ipfs daemon
  KUBO_PID=${PIDS[-1]}
  until_ok 30 env IPFS_PATH="$dir" ipfs --api "$(cat "$dir/our-api")" id || { cat "$dir/daemon.log" >&2; fail "Kubo did not start"; }
}

# fresh_install DIR REGISTRY NAME…: npm install into an empty project with an
# empty cache.
fresh_install() {
  local dir=$1 registry=$2
  shift 2
  rm -rf "$dir"
  mkdir -p "$dir"
  echo '{"name":"fresh","version":"1.0.0","private":true}' >"$dir/package.json"
  (cd "$dir" && npm install --no-audit --no-fund --cache "$dir/.cache" --registry "$registry" "$@" >install.log 2>&1) ||
    { tail -n 15 "$dir/install.log" >&2; return 1; }
}

count_installed() { (cd "$1" && node -e 'console.log(Object.keys(require("./package-lock.json").packages).length-1)'); }
