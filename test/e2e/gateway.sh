#!/usr/bin/env bash
# A bare Kubo gateway is a registry: no mirror runs. Every client installs from
# http://127.0.0.1:8080/ipns/<name>/ in a network namespace with loopback only.
# It uses the repository and the name that three.sh made.
. "$(dirname "$0")/lib.sh"
build_kubo

if [ "${1:-}" != inside ]; then
  [ -s "$WORK/name" ] || fail "run three.sh with the same WORK first"
  say "clients from the npm registry"
  npm install --silent --no-save --ignore-scripts --no-audit --no-fund --prefix "$WORK/clients" \
    npm11@npm:npm@11.21.2 npm12@npm:npm@12.2.0 pnpm10@npm:pnpm@10.34.8 pnpm11@npm:pnpm@11.28.10 pnpm12@npm:pnpm@12.21.0 \
    yarn1@npm:yarn@1.22.22 yarn4@npm:@yarnpkg/cli-dist@4.18.1 bun@1.4.5 2>/dev/null
  WORK=$WORK exec unshare -n bash "$0" inside
fi

ip link set lo up
A=$WORK/kubo-a
IPFS_PATH=$A ipfs config Addresses.Gateway /ip4/127.0.0.1/tcp/8080
echo http://127.0.0.1:8080 >"$A/our-gateway"
kubo_start "$A"
R=http://127.0.0.1:8080/ipns/$(cat "$WORK/name")/
M=$WORK/clients/node_modules
T=$WORK/gateway
rm -rf "$T"

try() { # try CLIENT COMMAND…: in an empty project with an empty cache
  local client=$1
  shift
  mkdir -p "$T/$client/home"
  cd "$T/$client"
  echo '{"name":"fresh","version":"1.0.0","private":true}' >package.json
  echo "registry=$R" >.npmrc
  local begin=$SECONDS
  if ! HOME=$T/$client/home "$@" >out.log 2>&1; then tail -n 20 out.log >&2; fail "$client"; fi
  node -e "require('express')" || fail "$client: express does not load"
  printf '%-8s installs express@4 from the gateway in %d s, and it loads\n' "$client" $((SECONDS - begin))
}

say "install from $R"
try npm11 node "$M/npm11/bin/npm-cli.js" install --no-audit --no-fund --cache "$T/npm11/cache" express@4
try npm12 node "$M/npm12/bin/npm-cli.js" install --no-audit --no-fund --cache "$T/npm12/cache" express@4
try pnpm10 node "$M/pnpm10/bin/pnpm.cjs" add --store-dir "$T/pnpm10/store" --config.cache-dir="$T/pnpm10/cache" express@4
if node -e 'process.exit(+process.versions.node.split(".")[0]<22?1:0)'; then
  try pnpm11 node "$M/pnpm11/bin/pnpm.mjs" add --store-dir "$T/pnpm11/store" --config.cache-dir="$T/pnpm11/cache" express@4
fi
try pnpm12 "$(ls "$M"/@pnpm/exe.*/pnpm | head -n 1)" add --store-dir "$T/pnpm12/store" --config.cache-dir="$T/pnpm12/cache" express@4
try yarn1 node "$M/yarn1/bin/yarn.js" add --non-interactive --registry "$R" --cache-folder "$T/yarn1/cache" express@4
mkdir -p "$T/yarn4" && cat >"$T/yarn4/.yarnrc.yml" <<Y
npmRegistryServer: "${R%/}"
unsafeHttpWhitelist: ["127.0.0.1"]
enableGlobalCache: false
enableTelemetry: false
nodeLinker: node-modules
Y
touch "$T/yarn4/yarn.lock"
try yarn4 node "$M/yarn4/bin/yarn.js" add express@4
try bun env BUN_INSTALL_CACHE_DIR="$T/bun/cache" "$(ls "$M"/@oven/bun-*/bin/bun | head -n 1)" add express@4

say "a project of 60 and more packages, npm alone, from the gateway"
fresh_install "$T/big" "$R" express@4 eslint@8
n=$(count_installed "$T/big")
[ "$n" -ge 60 ] || fail "only $n packages"
(cd "$T/big" && node -e "require('express'); console.log('express loads; $n packages')")
echo "gateway: ok"
