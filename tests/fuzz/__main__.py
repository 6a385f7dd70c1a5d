"""`python -m tests.fuzz --seconds N [TARGET...]`: the long run."""

from __future__ import annotations

import argparse
import random
import sys
import time

from tests.fuzz import run
from tests.fuzz.targets import TARGETS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz parsers and wires.")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(target.name for target in TARGETS))
    arguments = parser.parse_args()
    if unknown := set(arguments.targets) - {target.name for target in TARGETS}:
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    print(f"seed {arguments.seed}", flush=True)
    found = 0
    for target in TARGETS:
        if arguments.targets and target.name not in arguments.targets:
            continue
        end = time.monotonic() + arguments.seconds
        outcome = run.run(target, lambda _outcome, end=end: time.monotonic() < end, arguments.seed)
        print(outcome.line(target.name), flush=True)
        for key, data in outcome.found.items():
            print(f"    {key}: {run.save(target, data)}", flush=True)
        found += len(outcome.found)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
