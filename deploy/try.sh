#!/bin/bash
# Runs a pod through CRI on this machine, shows it, and removes it:   sudo ./deploy/try.sh
#
# Installs the packages that crisp needs, and a virtual environment in .venv; both stay. Everything else (the daemon, its
# data, the network, the pod) lives in a directory under /tmp and is removed at the end, also when a step fails.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ "$(id -u)" != 0 ]; then
    echo "try.sh: running containers needs root: run sudo ./deploy/try.sh" >&2
    exit 1
fi

bridge=crisptry0
work="" daemon="" pod="" container="" ports="" forwarding="" log_root=""

bold="" dim="" plain=""
if [ -t 1 ]; then
    bold=$'\033[1m' dim=$'\033[2m' plain=$'\033[0m'
fi

step() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
# Prints the command as you would type it.
print_command() {
    local word line='$'
    for word in "$@"; do
        [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word=${word@Q}
        line+=" $word"
    done
    printf '%s%s%s\n' "$dim" "$line${redirected:+ $redirected}" "$plain"
}
run() { print_command "$@"; "$@"; }
# Fetches the pod's page. $work/page gets the printed command, too.
fetch() {
    local print='print(urlopen("http://%s/", timeout=5).read().decode(), end="")'
    run python -c "from urllib.request import urlopen; $(printf "$print" "$address")" | tee "$work/page"
    [ "$(tail -n 1 "$work/page")" = "Hello from a pod" ] || fail "the page is not the one that the pod serves: see $work/page"
}
fail() { echo "try.sh: $*" >&2; exit 1; }

has_link() { ip link show "$1" >/dev/null 2>&1; }

# Prints one value of the JSON on standard input.
value() { python -c "import json, sys; print(json.load(sys.stdin)$1)"; }

# Prints a /24 of 10.88-10.99 that this machine has no route to.
free_network() {
    local second
    for second in {88..99}; do
        if [ -z "$(ip -4 route show to match "10.$second.7.1" | grep -v '^default' || true)" ]; then
            echo "10.$second.7"
            return
        fi
    done
    fail "no free network for pods: this machine has routes to all of 10.88.7.0/24 to 10.99.7.0/24"
}

start_daemon() {
    echo 'nri_socket = ""' >"$work/crisp.toml"
    # In its own session: Ctrl-C must stop this script only, which still needs the daemon for the clean-up.
    local command=(setsid crispd --config "$work/crisp.toml" --root "$work/root" --state "$work/state"
        --listen "$CRISP_LISTEN" --cni-conf-dir "$work/cni")
    redirected=">>$work/crispd.log 2>&1 </dev/null &" print_command "${command[@]}"
    "${command[@]}" >>"$work/crispd.log" 2>&1 </dev/null &
    daemon=$!
    local _
    for _ in {1..100}; do
        kill -0 "$daemon" 2>/dev/null || return 1
        if [ -S "$work/crisp.sock" ] && crisp version >/dev/null 2>&1; then
            return
        fi
        sleep 0.1
    done
    return 1
}

# Removes the pods that a failed step left.
remove_pods() {
    kill -0 "$daemon" 2>/dev/null || start_daemon >/dev/null || return 0
    local id
    for id in $(crisp -o json pods | value '["items"]' | grep -oE '[0-9a-f]{64}'); do
        crisp rm --force "$id" >/dev/null
    done
}

stop_daemon() {
    [ -n "$daemon" ] || return 0
    kill -TERM "$daemon" 2>/dev/null || true
    wait "$daemon" 2>/dev/null || true
    daemon=""
}

remove_network() {
    if has_link "$bridge"; then
        ip link delete "$bridge"
    fi
    # The bridge plugin enabled forwarding.
    [ -z "$forwarding" ] || echo "$forwarding" >/proc/sys/net/ipv4/ip_forward
}

# Prints a line for each thing that a pod's removal forgot.
leftovers() {
    grep -F -e "$work" /proc/self/mountinfo | sed 's/^/mount: /' || true
    pgrep -a -f -- "$work" | sed 's/^/process: /' || true
    local port id
    for port in $bridge $ports; do
        ! has_link "$port" || echo "link: $port"
    done
    for id in $pod $container; do
        pgrep -a -f -- "crisp-.* $id" | sed 's/^/process: /' || true
        find /run/netns -name "*$id*" 2>/dev/null | sed 's/^/network namespace: /' || true
        find /sys/fs/cgroup -type d -name "*$id*" | sed 's/^/cgroup: /'
        iptables-save | grep -F "${id:0:12}" | sed 's/^/iptables: /' || true
    done
}

on_exit() {
    local status=$?
    trap - EXIT INT TERM
    [ -n "$work" ] || exit "$status"
    if [ "$status" != 0 ]; then
        echo
        echo "try.sh failed with status $status. The last lines of crispd's log, $work/crispd.log:" >&2
        tail -n 40 "$work/crispd.log" >&2 2>/dev/null || true
        [ -z "$daemon" ] || remove_pods || true
    fi
    stop_daemon
    remove_network
    [ -z "$log_root" ] || rmdir "$log_root" 2>/dev/null || true
    if [ "$status" != 0 ]; then
        leftovers >&2
    fi
    [ "$status" != 0 ] || rm -rf "$work"
    exit "$status"
}

step "1. Packages and a virtual environment"
run deploy/install-deps.sh

started=$SECONDS
! has_link "$bridge" || fail "the link $bridge exists: is another try.sh running? If not, run: ip link delete $bridge"
trap on_exit EXIT
trap 'exit 130' INT TERM
work=$(mktemp -d /tmp/crisp-try.XXXXXX)
export CRISP_LISTEN="unix://$work/crisp.sock" PATH="$PWD/.venv/bin:$PATH"
[ -e /var/log/crisp ] || log_root=/var/log/crisp
forwarding=$(cat /proc/sys/net/ipv4/ip_forward)

network=$(free_network)
step "2. A network for pods: a bridge, and addresses from $network.0/24"
mkdir -p "$work/cni" "$work/www"
cat >"$work/cni/10-try.conflist" <<END
{"cniVersion": "1.0.0", "name": "crisp-try", "plugins": [
  {"type": "bridge", "bridge": "$bridge", "isGateway": true,
   "ipam": {"type": "host-local", "dataDir": "$work/leases", "ranges": [[{"subnet": "$network.0/24"}]]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}
]}
END
run cat "$work/cni/10-try.conflist"

step "3. A daemon with its own data, state and socket"
start_daemon || fail "crispd does not answer: see its log"
run crisp version

step "4. An image made from this machine's busybox, imported without a registry"
run deploy/busybox-image.py "$work/busybox"
run crisp image import "$work/busybox"
run crisp images

step "5. A pod with a web server"
echo "Hello from a pod" >"$work/www/index.html"
run crisp run --detach --name web --memory 64m --volume "$work/www:/www:ro" localhost/busybox:latest \
    httpd -f -v -p 80 -h /www | tee "$work/container"
container=$(tail -n 1 "$work/container")
run crisp pods
run crisp ps
pod=$(crisp -o json pods | value '["items"][0]["id"]')
ports=$(ip -o link show master "$bridge" | sed 's/^[0-9]*: \([^@:]*\).*/\1/')

step "6. The page, over the pod network"
address=$(crisp -o json inspect "$pod" | value '["status"]["network"]["ip"]')
fetch

step "7. A command in the container, and the server's log"
run crisp exec "${container:0:13}" ps
run crisp logs "${container:0:13}"

step "8. The daemon is killed; the pod still serves"
run kill -KILL "$daemon"
wait "$daemon" 2>/dev/null || true
fetch
start_daemon || fail "crispd does not answer: see its log"
run crisp ps

step "9. Clean up"
run crisp rm --force "${pod:0:13}"
run crisp rmi localhost/busybox:latest
stop_daemon
remove_network
left=$(leftovers)
[ -z "$left" ] || fail "the clean-up left this behind:"$'\n'"$left"
echo "No mount, process, link, network namespace, cgroup or iptables rule is left. That took $((SECONDS - started)) s."
