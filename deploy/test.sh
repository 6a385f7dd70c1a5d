#!/bin/bash
# Installs and runs everything that must pass before a change is merged:   sudo ./deploy/test.sh [--no-vm]
#
# Runs three things in parallel: lint, types, import rules, unit and integration tests (in namespaces of their own:
# tests/box.py); kubelet and a cluster on crisp, critest, a part of Kubernetes' conformance tests (docs/conformance.md); and
# the main path in a Debian guest under QEMU, which --no-vm skips.
# /var/cache/crisp-tests keeps the Kubernetes programs and runsc (built once, some 30 minutes) and the guest's disk.
# A failed step stops only the steps that need it. The end lists each step's result, duration and processor time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

guest=yes
case ${1:-} in
    --no-vm) guest=no ;;
    "") ;;
    *) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
if [ "$(id -u)" != 0 ]; then
    echo "test.sh: integration tests need root: run sudo ./deploy/test.sh" >&2
    exit 1
fi

begun=$SECONDS
deploy/install-deps.sh --tests
export PATH="$PWD/.venv/bin:$PATH"
unset PYTHONDONTWRITEBYTECODE  # with it, hundreds of processes would each compile every import
work=$(mktemp -d /tmp/crisp-test.XXXXXX)
beside=""

# Runs a command and records its result. Keeps pytest's lines about failed tests, to repeat them at the end.
step() {
    local from=$SECONDS verdict=passed said="$work/said.$BASHPID" used TIMEFORMAT='%U %S'
    printf '\n== %s\n' "$*"
    { time "$@" </dev/null >&3 2>&1 3>&-; } 3>&1 2>"$said.used" | tee "$said" || verdict=FAILED
    grep -E '^(FAILED|ERROR) ' "$said" >>"$work/failures" || true
    used=$(awk 'END { print int($1 + $2) }' "$said.used")
    printf '%s %d %d %s\n' "$verdict" $((SECONDS - from)) "$used" "$*" >>"$work/steps"
    [ $verdict = passed ]
}

# These need one core, and wait a lot.
checks() {
    step ruff check . || true
    step mypy || true
    step lint-imports || true
    step tests/criu.sh || true
    step tests/e2e/build-runsc.sh || true
    step tests/programs.sh || true
    # A test that hangs fails with its stacks, and the others go on.
    # Many wait most of their time.
    step timeout --foreground 4800 pytest -q tests/unit tests/integration --boxes 2 --timeout 600 --durations 10 || true
}

# The steps that need Kubernetes programs. The guest takes one core for longer than all others of them.
nodes() {
    step tests/e2e/build-kubernetes.sh etcd kubelet kube-apiserver kube-controller-manager kube-scheduler || return 0
    if step tests/e2e/build-critest.sh; then
        [ $guest = no ] || { in_guest >"$work/guest" 2>&1 & }
        step timeout --foreground 1800 pytest -q tests/e2e || true
    fi
    step timeout --foreground 3000 python -m tests.e2e.conformance --part quick --build &&
        step timeout --foreground 1800 python -m tests.e2e.conformance --part quick || true
    wait
    [ $guest = no ] || cat "$work/guest"
}

in_guest() {
    step timeout --foreground 3600 pytest -q tests/vm || true
}

on_exit() {
    [ -z "$beside" ] || kill -TERM -- "-$beside" 2>/dev/null || true
    rm -rf "$work"
}
trap on_exit EXIT
trap 'exit 130' INT TERM

set -m  # its own process group, to be killed as a whole
nodes >"$work/nodes" 2>&1 </dev/null &
beside=$!
set +m
checks
tail -n +1 -f --pid="$beside" "$work/nodes"
wait "$beside" || echo "FAILED 0 0 the steps in parallel to the checks were killed" >>"$work/steps"
beside=""

printf '\n'
minutes() { printf '%d:%02d' $(($1 / 60)) $(($1 % 60)); }
all=0
while read -r verdict seconds used command; do
    all=$((all + used))
    printf '%s %6s %6s  %s\n' "$verdict" "$(minutes "$seconds")" "$(minutes "$used")" "$command"
done <"$work/steps"
cat "$work/failures"
printf 'test.sh took %s; of processors, %s.\n' "$(minutes $((SECONDS - begun)))" "$(minutes "$all")"
! grep -q ^FAILED "$work/steps"
