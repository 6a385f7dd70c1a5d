#!/bin/bash
# Sets up and runs everything that must pass before a change lands:   sudo ./deploy/test.sh [--no-vm]
#
# Lint, types, the contract of imports, unit tests, integration tests (in namespaces of their own: tests/box.py),
# kubelet and a cluster on crisp, and the main path inside a Debian guest under QEMU, which --no-vm leaves out. What is
# of Kubernetes (built once, some 5 minutes) and the guest's disk are kept in /var/cache/crisp-tests.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

guest=yes
case ${1:-} in
    --no-vm) guest=no ;;
    "") ;;
    *) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
if [ "$(id -u)" != 0 ]; then
    echo "test.sh: integration tests take root: sudo ./deploy/test.sh" >&2
    exit 1
fi

deploy/install-deps.sh --tests
export PATH="$PWD/.venv/bin:$PATH"

step() { printf '\n== %s\n' "$*"; "$@"; }

step ruff check .
step mypy
step lint-imports
step timeout 1800 pytest -q tests/unit tests/integration </dev/null
tests/e2e/build-kubernetes.sh etcd kubelet kube-apiserver kube-controller-manager kube-scheduler
tests/e2e/build-critest.sh
step timeout 900 pytest -q tests/e2e </dev/null
if [ "$guest" = yes ]; then
    step timeout 1800 pytest -q tests/vm </dev/null
fi
