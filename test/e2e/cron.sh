#!/usr/bin/env bash
# A real cron over a real Kubo, for ten minutes: each minute one line publishes and one
# puts again, and in three of the minutes the daemon is stopped. What each run printed and
# ended with is held to docs/commands.md. It needs root, for it installs cron where there
# is none and has a file in /etc/cron.d meanwhile; all.sh leaves it out.
. "$(dirname "$0")/lib.sh"
build
build_kubo
S=$WORK/cron
rm -rf "$S"
mkdir -p "$S/runs"
cd "$S"
command -v cron >/dev/null || { say "cron is installed"; apt-get update -qq && apt-get install -y -qq cron >apt.log; }

PERIODS=10 DOWN=" 3 6 7 "
table=/etc/cron.d/registry-mirror-e2e-$$
trap 'rm -f "$table"; cleanup' EXIT

kubo_init "$S/kubo"
kubo_start "$S/kubo"
export REGMIRROR_STATE=$S/state
publisher key new >/dev/null
publisher key new --name again >/dev/null
follower add is-odd --node kubo --ipfs-api "$(cat kubo/our-api)"
follower run --once --feed none
publisher publish --name again # which the second line then keeps

# cron gives its lines little: no PATH of ours, no terminal. run keeps what it would mail.
cat >run <<RUN
#!/bin/sh
at=$S/runs/\$(date +%s).\$1
shift
"\$@" >"\$at.out" 2>&1
echo \$? >"\$at.code"
RUN
chmod +x run
# A lifetime of five minutes: half is over before every third run. The second line's
# registry is of the same state, and waits for its turn at the ledger.
cat >lines <<LINES
REGMIRROR_STATE=$S/state
REGMIRROR_CONFIG=/dev/null
* * * * * root $S/run publish $WORK/bin/publisher publish --lifetime 5m --metrics $S/main.prom
* * * * * root $S/run republish $WORK/bin/publisher republish --name again --wait 30s --metrics $S/again.prom
LINES

# second N: waits until that second of the clock.
second() { sleep "$(node -p "Math.max(0, $1 - Date.now()/1000)")"; }

# well before the next minute, for that is the first
[ $(($(date +%s) % 60)) -lt 45 ] || sleep 17
first=$(($(date +%s) / 60 * 60 + 60))
install -m 644 lines "$table"
pgrep -x cron >/dev/null || start cron.log cron -f
say "ten minutes from $(date -d @$first +%T)"
up=true
for n in $(seq $PERIODS); do
  second $((first + n * 60 - 60 - 12)) # twelve seconds before this minute's lines
  want=true
  case "$DOWN" in *" $n "*) want=false ;; esac
  if [ $up != $want ]; then
    if $want; then kubo_start "$S/kubo"; else kill "$KUBO_PID" && wait "$KUBO_PID" || true; fi
    up=$want
  fi
done
second $((first + PERIODS * 60 - 10))
rm -f "$table"

say "what cron's runs printed"
wrong=0
for line in publish republish; do
  n=0
  for code in runs/*.$line.code; do
    n=$((n + 1)) out=${code%.code}.out got=$(cat "$code") want=0
    case "$DOWN" in *" $n "*) want=69 ;; esac
    printf '%s  %-9s  exit %-2s  %s\n' "$(date -d "@$(basename "$code" .$line.code)" +%T)" $line "$got" "$([ -s "$out" ] && paste -sd '|' "$out" || echo '(nothing)')"
    [ "$got" = $want ] || { echo "   it should have ended with $want"; wrong=1; }
    if [ $want = 0 ]; then
      [ ! -s "$out" ] || { echo "   success prints nothing"; wrong=1; }
    else
      { [ "$(wc -l <"$out")" = 2 ] && grep -q '^publisher: error: ' "$out" && grep -q '^publisher: hint: start the IPFS node' "$out"; } ||
        { echo "   it should say what is away, and what to do"; wrong=1; }
    fi
  done
  [ $n = $PERIODS ] || { echo "$n runs of $line, not $PERIODS"; wrong=1; }
done
[ $wrong = 0 ] || fail "cron's runs"

say "the record at the end"
publisher status --lifetime 5m
publisher status --json >status.json
publisher status --json --name again >again.json
# Signed at the 1st, the 4th, and the 8th run: the 7th was to, and found no node.
[ "$(json status.json '[o.sequence,o.network_sequence,!!o.confirmed,o.remaining_s>0,o.problem]')" = '[3,3,true,true,null]' ] || fail "the record: $(cat status.json)"
[ "$(json again.json '[o.sequence,!!o.confirmed,o.remaining_s>6*86400]')" = '[1,true,true]' ] || fail "the other record: $(cat again.json)"
name=$(json status.json o.name)
IPFS_PATH=$S/kubo ipfs name get "$name" >record
IPFS_PATH=$S/kubo ipfs name inspect --verify="$name" --enc=json record >inspect.json
[ "$(json inspect.json o.Validation.Valid)" = true ] || fail "Kubo does not take the record"
grep -q '^publisher_last_exit_code{registry="main"} 0$' main.prom && grep -q '^publisher_record_sequence{registry="main"} 3$' main.prom || fail "metrics: $(cat main.prom)"
echo "cron: ok"
