#!/bin/bash
# Sets up and runs everything that must pass before a change lands:   sudo ./deploy/test.sh [--no-vm]
#
# Lint, types, the contract of imports, unit tests and integration tests (in namespaces of their own: tests/box.py);
# beside them kubelet and a cluster on crisp, critest, and the main path inside a Debian guest under QEMU, which --no-vm
# leaves out. What is of Kubernetes (built once, some 8 minutes) and the guest's disk are kept in /var/cache/crisp-tests.
# A step that fails stops none but what needs it; how each went, and how long it took, is told at the end.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

guest=yes
case ${1:-} in
    --no-vm) guest=no ;;
    "") ;;
    *) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
if [ "$(id -u)" != 0 ]; then
    echo "test.sh: integration tests take root: sudo ./deploy/test.sh" >&2
    exit 1
fi

begun=$SECONDS
deploy/install-deps.sh --tests
export PATH="$PWD/.venv/bin:$PATH"
unset PYTHONDONTWRITEBYTECODE  # or each of hundreds of processes would compile all that it imports
work=$(mktemp -d /tmp/crisp-test.XXXXXX)
beside=""

# Runs a command, and writes down how it went; what pytest says of a test that failed is said again at the end.
step() {
    local from=$SECONDS verdict=passed said="$work/said.$BASHPID"
    printf '\n== %s\n' "$*"
    "$@" </dev/null 2>&1 | tee "$said" || verdict=FAILED
    grep -E '^(FAILED|ERROR) ' "$said" >>"$work/failures" || true
    printf '%s %d %s\n' "$verdict" $((SECONDS - from)) "$*" >>"$work/steps"
    [ $verdict = passed ]
}

# One core's worth of work and much waiting.
checks() {
    step ruff check . || true
    step mypy || true
    step lint-imports || true
    step tests/criu.sh || true
    step timeout --foreground 3600 pytest -q tests/unit tests/integration || true
}

# The rest, which needs programs of Kubernetes: one thing after the other, since the guest's emulation takes two cores.
nodes() {
    step tests/e2e/build-kubernetes.sh etcd kubelet kube-apiserver kube-controller-manager kube-scheduler || return 0
    step tests/e2e/build-critest.sh && step timeout --foreground 1800 pytest -q tests/e2e || true
    [ $guest = no ] || step timeout --foreground 3600 pytest -q tests/vm || true
}

on_exit() {
    [ -z "$beside" ] || kill -TERM -- "-$beside" 2>/dev/null || true
    rm -rf "$work"
}
trap on_exit EXIT
trap 'exit 130' INT TERM

set -m  # a process group of its own, to be ended as one
nodes >"$work/nodes" 2>&1 </dev/null &
beside=$!
set +m
checks
tail -n +1 -f --pid="$beside" "$work/nodes"
wait "$beside" || echo "FAILED 0 what runs beside the checks was ended" >>"$work/steps"
beside=""

printf '\n'
while read -r verdict seconds command; do
    printf '%s  %2d:%02d  %s\n' "$verdict" $((seconds / 60)) $((seconds % 60)) "$command"
done <"$work/steps"
cat "$work/failures"
total=$((SECONDS - begun))
printf 'test.sh took %d:%02d.\n' $((total / 60)) $((total % 60))
! grep -q ^FAILED "$work/steps"
