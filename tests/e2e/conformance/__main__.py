"""`python -m tests.e2e.conformance`: Kubernetes' conformance tests on two nodes of crisp. Takes root."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests import box
from tests.e2e import kubernetes
from tests.e2e.conformance import flannel, images, suite
from tests.e2e.conformance.nodes import TwoNodes

FLANNEL, ROUTES = "flannel", "routes"
RESULTS = Path(__file__).parents[3] / "conformance-results"


def main() -> int:
    """Run the suite, print the table, and leave nothing but the results: exit status 0, or 1 if a test failed."""
    arguments = _parser().parse_args()
    if not arguments.network:
        arguments.network = ROUTES if arguments.part == suite.QUICK.name else FLANNEL
    if os.geteuid() != 0:
        print("conformance: nodes take root: run as root", file=sys.stderr)
        return 1
    if not box.inside():  # where there is a network
        prepare()
        if arguments.network == FLANNEL:
            flannel.program()
        return 0 if arguments.build else box.run([sys.executable, "-m", "tests.e2e.conformance", *sys.argv[1:]])
    output = arguments.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="c", dir="/tmp"))
    try:
        return _run(arguments, directory, output)
    finally:
        shutil.rmtree(directory)


def prepare() -> Path:
    """Build what is missing, programs and images. Returns the images."""
    kubernetes.directory(*suite.PROGRAMS, *images.PROGRAMS, "kubelet", "kube-proxy", "kube-apiserver",
                         "kube-controller-manager", "kube-scheduler")  # fmt: skip
    return images.prepare()


def _run(arguments: argparse.Namespace, directory: Path, output: Path) -> int:
    parts = [part for part in (suite.QUICK, *suite.ALL) if part.name == arguments.part] or suite.ALL
    outcomes, fewer = {}, []
    with TwoNodes.running(directory, images.prepare(), by_flannel=arguments.network == FLANNEL) as cluster:
        for part in (_changed(part, arguments) for part in parts):
            begun = time.monotonic()
            print(f"{part.name}: see {output / part.name}.log", flush=True)
            outcomes[part.name] = suite.run(cluster, part, output)
            print(f"{part.name}: {time.monotonic() - begun:.0f} s", flush=True)
            if (passed := len(outcomes[part.name].passed)) < part.at_least:
                fewer.append(f"FAILED {part.name}: {passed} tests passed, and at least {part.at_least} should")
        suite.keep_logs(cluster, output)
    told = "\n".join([suite.table(outcomes), *fewer])
    (output / "table.md").write_text(told + "\n")
    print(told)
    return int(bool(fewer) or any(outcome.failed for outcome in outcomes.values()))


def _changed(part: suite.Part, arguments: argparse.Namespace) -> suite.Part:
    """As the command line wants it."""
    if arguments.processes and part.processes > 1:
        part = dataclasses.replace(part, processes=arguments.processes)
    if arguments.timeout:
        part = dataclasses.replace(part, timeout=arguments.timeout)
    if arguments.focus or arguments.skip:
        part = dataclasses.replace(part, focus=arguments.focus, skip=arguments.skip, at_least=1)
    return part


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.conformance", description=__doc__)
    parser.add_argument(
        "--part", choices=("all", "parallel", "serial", "quick"), default="all",
        help="which tests (%(default)s); quick: those that CI runs",
    )  # fmt: skip
    parser.add_argument(
        "--network", choices=(FLANNEL, ROUTES), help=f"between the nodes ({FLANNEL}; {ROUTES} for quick)"
    )
    parser.add_argument("--focus", metavar="REGEX", default="", help="only tests whose names match")
    parser.add_argument("--skip", metavar="REGEX", default="", help="no tests whose names match")
    parser.add_argument("--processes", type=int, help=f"tests at a time, where they may ({suite.PROCESSES})")
    parser.add_argument("--timeout", metavar="TIME", help="of each part, as 90m (20m for quick, 6h for the others)")
    parser.add_argument("--output", metavar="DIR", type=Path, default=RESULTS, help="logs and reports (%(default)s)")
    parser.add_argument("--build", action="store_true", help="build programs and images, and run nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
