#!/usr/bin/env bash
# Offline signing over a real Kubo: drafted beside the daemon, signed where the key is,
# without a network, put, and validated by Kubo and by js-ipns.
. "$(dirname "$0")/lib.sh"
build
build_kubo
S=$WORK/record
rm -rf "$S"
mkdir -p "$S"
cd "$S"
kubo_init "$S/kubo"
kubo_start "$S/kubo"
export IPFS_PATH=$S/kubo

# no network where the kernel lets us: a namespace of its own
away=(unshare -rn)
"${away[@]}" true 2>/dev/null || away=()

say "the key is minted on its own machine; the other has its public half and the journal"
publisher key new --state vault --json >key.json
name=$(json key.json o.ipns_name)
(umask 077; mkdir -p online/keys/main online/registries/main
  cp vault/keys/main/public.json online/keys/main/; cp vault/registries/main/journal online/registries/main/)
follower add is-odd --state online --node kubo --ipfs-api "$(cat kubo/our-api)"
follower run --once --feed none --state online

say "draft, sign, put"
for form in "" --v2-only; do
  publisher record draft --state online $form --output "release$form.draft"
  "${away[@]}" publisher record sign "release$form.draft" --state vault --output "release$form.ipns-record"
  publisher record put "release$form.ipns-record" --state online --verbose
  publisher record verify "$name" "release$form.ipns-record"
  ipfs name inspect --verify="$name" --enc=json "release$form.ipns-record" >inspect.json
  json inspect.json '({valid:o.Validation.Valid,type:o.SignatureType,sequence:o.Entry.Sequence,value:o.Entry.Value})'
  [ "$(json inspect.json o.Validation.Valid)" = true ] || fail "Kubo does not take it"
  ipfs name get "$name" | cmp - "release$form.ipns-record" || fail "Kubo has another record"
  follower add is-even --state online # the next release
  follower run --once --feed none --state online
done

say "js-ipns validates them"
mkdir -p js
(cd js && echo '{"private":true,"type":"module"}' >package.json && npm install --no-audit --no-fund ipns@10 >install.log 2>&1) || { tail js/install.log >&2; fail "no js-ipns"; }
cat >js/check.js <<'JS'
import { readFileSync } from 'node:fs'
import { multihashToIPNSRoutingKey } from 'ipns'
import { ipnsValidator } from 'ipns/validator'
import { CID } from 'multiformats/cid'
import { base36 } from 'multiformats/bases/base36'

const [name, ...files] = process.argv.slice(2)
const key = multihashToIPNSRoutingKey(CID.parse(name, base36).multihash)
for (const file of files) {
  const raw = new Uint8Array(readFileSync(file))
  await ipnsValidator(key, raw)
  raw[raw.length - 1] ^= 1
  let took = true
  await ipnsValidator(key, raw).catch(() => { took = false })
  if (took) throw new Error(`${file}: a changed one is valid`)
  console.log(`${file}: valid`)
}
JS
node js/check.js "$name" "$PWD/release.ipns-record" "$PWD/release--v2-only.ipns-record"
echo "record: ok"
