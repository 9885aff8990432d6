#!/usr/bin/env bash
# The service of deploy/systemd/user, run by a user's own systemd: it starts, answers, comes
# again after kill -9, stays away after a mistake in its configuration, stops, and with the
# sandbox that is a comment there writes nothing but its state. The manager runs as nobody in
# namespaces of its own, with a cgroup2 that it owns, so that no systemd need have booted the
# machine. Root is needed for them, and the npm registry for three packages.
. "$(dirname "$0")/lib.sh"
skip() { echo "service: SKIPPED, $*"; exit 0; }
[ "$(id -u)" = 0 ] || skip "namespaces with a cgroup2 in them need root"
[ -x /lib/systemd/systemd ] || skip "there is no systemd here"
for tool in systemctl dbus-daemon setpriv nsenter; do command -v $tool >/dev/null || skip "there is no $tool here"; done
alone() { unshare --mount --pid --fork --mount-proc --cgroup --kill-child "$@"; }
CGROUP=/sys/fs/cgroup/registry-mirror-service.$$ # of the kernel, whatever namespace makes it
alone sh -c "mount --make-rprivate / && mount -t cgroup2 none /sys/fs/cgroup && mkdir $CGROUP" 2>/dev/null ||
  skip "this kernel, or what this runs in, gives no cgroup2"
leave() {
  alone sh -c "mount --make-rprivate / && mount -t cgroup2 none /sys/fs/cgroup && find $CGROUP -depth -type d -exec rmdir {} +" || true
  cleanup
}
trap leave EXIT
build
S=$WORK/service
rm -rf "$S"
mkdir -p "$S/home/go/bin"
cd "$S"
export REGMIRROR_STATE=$S/pub

say "a registry to serve"
start up.log sh -c "exec registry-mirror up left-pad is-odd --listen 127.0.0.1:0 --json >up.json"
until_ok 120 has_json up.json || { cat up.log >&2; fail "up did not start"; }
name=$(json up.json o.name) peer=$(json up.json 'o.peers[0]')
unset REGMIRROR_STATE

cat >manager.sh <<'MANAGER'
. "$ROOT/test/e2e/lib.sh"
mount --make-rprivate /
mount -t cgroup2 none /sys/fs/cgroup
mount -t tmpfs none /run
mkdir -p /run/systemd/{system,unit-root} # as a machine that systemd booted has them
chown nobody "$CGROUP" "$CGROUP"/cgroup.{procs,subtree_control,threads}
mount -t tmpfs none /home
H=/home/someone R=/run/user port=$(free_port)
install -d -o nobody -m 700 "$R" $H
mount --bind "$S/home" $H
unit=$H/.config/systemd/user/registry-mirror.service
install -D -m 644 -t "${unit%/*}" "$ROOT/deploy/systemd/user/registry-mirror.service"
cp "$WORK/bin/registry-mirror" "$H/go/bin"
mkdir -p "$H/.config/registry-mirror"
echo "REGMIRROR_LISTEN=127.0.0.1:$port" >"$H/.config/registry-mirror/daemon.env"
chown -R nobody "$H"
chmod 711 "$WORK" "$S"
as_user() { (cd "$H" && exec setpriv --reuid nobody --regid nogroup --clear-groups env -i PATH="$PATH" HOME="$H" XDG_RUNTIME_DIR=$R DBUS_SESSION_BUS_ADDRESS=unix:path=$R/bus "$@"); }
ctl() { as_user systemctl --user "$@"; }
show() { ctl show registry-mirror -P "$1"; }
is() { [ "$(show "$1")" = "$2" ]; }
expect() { until_ok 30 is "$1" "$2" || { ctl status registry-mirror --no-pager >&2 || true; fail "$1 is $(show "$1"), not $2"; }; }
answers() { until_ok 60 curl -sf -o /dev/null "http://127.0.0.1:$port/left-pad" || { ctl status registry-mirror --no-pager >&2 || true; tail -n 20 "$S/manager.log" >&2; fail "$1: it does not answer"; }; }

start "$S/bus.log" as_user dbus-daemon --session --address=unix:path=$R/bus --nofork --nopidfile
until_ok 10 test -S $R/bus || fail "no bus"
echo $$ >"$CGROUP/cgroup.procs" # whoever starts it gives the manager its cgroup
start "$S/manager.log" as_user /lib/systemd/systemd --user --log-target=console
echo $$ >/sys/fs/cgroup/cgroup.procs
until_ok 20 ctl is-system-running || { cat "$S/manager.log" >&2; fail "no manager"; }
until_ok 20 ctl list-units || { cat "$S/manager.log" >&2; fail "no manager"; }

say "as the unit says: add, daemon-reload, enable --now"
as_user registry-mirror add npm "$name" --network local --peer "$peer"
ctl daemon-reload
ctl enable --now registry-mirror
expect ActiveState active
answers "started"
as_user registry-mirror status
pid=$(show MainPID)
for want in 'NoNewPrivs:	1' 'Seccomp:	2' 'Uid:	65534'; do
  grep -q "^$want" "/proc/$pid/status" || fail "process $pid has not $want"
done

say "kill -9: it comes again"
kill -9 "$pid"
expect NRestarts 1
expect ActiveState active
answers "after kill -9"
[ "$(show MainPID)" != "$pid" ] || fail "it is the process that was killed"

say "stop: it ends by itself, with 0"
ctl stop registry-mirror
expect ActiveState inactive
expect ExecMainStatus 0
expect Result success
! curl -s "http://127.0.0.1:$port/" || fail "something answers still"

say "a mistake in its configuration: once, and no more"
for mistake in REGMIRROR_LISTEN=nowhere:at:all REGMIRROR_NO_SUCH_FLAG=1; do
  echo "REGMIRROR_LISTEN=127.0.0.1:$port
$mistake" >"$H/.config/registry-mirror/daemon.env"
  ctl start registry-mirror
  expect ActiveState failed
  expect ExecMainStatus 64
  expect NRestarts 0
  ctl reset-failed registry-mirror
done
echo "REGMIRROR_LISTEN=127.0.0.1:$port" >"$H/.config/registry-mirror/daemon.env"

say "with the sandbox: nothing is written but the state"
sed -i -E 's/^#(ProtectSystem|ProtectHome|ReadWritePaths|PrivateTmp|PrivateUsers)=/\1=/' "$unit"
ctl daemon-reload
ctl start registry-mirror || { ctl status registry-mirror --no-pager >&2 || true; tail -n 20 "$S/manager.log" >&2; fail "it does not start in the sandbox"; }
expect ActiveState active
answers "in the sandbox"
pid=$(show MainPID)
inside() { nsenter -t "$pid" -m -- "$@"; }
for place in "$H" "$H/.config/registry-mirror" /etc /usr "$S"; do
  inside touch "$place/written" 2>/dev/null && fail "the service may write to $place"
done
inside touch "$H/.local/share/registry-mirror/written" || fail "the service may not write its state"
echo written >/tmp/seen.$$ && inside test -e "/tmp/seen.$$" && fail "it sees /tmp of others"
rm -f "/tmp/seen.$$"
as_user registry-mirror status >/dev/null || fail "its socket is out of reach"
ctl stop registry-mirror
expect Result success
MANAGER
export ROOT WORK S CGROUP name peer
alone bash manager.sh
echo "service: ok"
