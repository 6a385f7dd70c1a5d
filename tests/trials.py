"""`python -m tests.trials [WORD...]`: runs the tests of faults that others reported, and prints a table of them.

A test of such a fault has `@pytest.mark.trial("slug", "what is right, in a sentence")`. Words choose trials whose slug
contains one of them. Exit status 1 when one of them does not show what is right.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from tests.matrix.markers import TESTS, markers

ROOT = TESTS.parent


@dataclass(frozen=True, slots=True)
class Trial:
    """One reported fault: its name, what is right, and the tests that show it, each as "directory/file.py::name"."""

    slug: str
    right: str
    tests: tuple[str, ...]


def trials(words: Iterable[str] = ()) -> list[Trial]:
    """Every trial whose slug contains one of `words`, or all of them, by slug. Raises ValueError for a bad marker."""
    right: dict[str, str] = {}
    tests: dict[str, list[str]] = defaultdict(list)
    for marker in markers("trial"):
        if len(marker.arguments) != 2:
            raise ValueError(f"{marker.test}: pytest.mark.trial takes a slug and a sentence, not {marker.arguments!r}")
        slug, sentence = marker.arguments
        if right.setdefault(slug, sentence) != sentence:
            raise ValueError(f"{marker.test}: trial {slug!r} has another sentence elsewhere")
        tests[slug].append(marker.test)
    chosen = [slug for slug in sorted(right) if not (wanted := list(words)) or any(word in slug for word in wanted)]
    return [Trial(slug, right[slug], tuple(tests[slug])) for slug in chosen]


def outcomes(report: Path) -> Mapping[str, str]:
    """The worst outcome of each test, over its parameters, in a JUnit report: failed, skipped or passed."""
    worst: dict[str, str] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        module = case.get("classname", "").removeprefix("tests.").replace(".", "/")
        test = f"{module}.py::{case.get('name', '').partition('[')[0]}"
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        worst[test] = min(outcome, worst.get(test, outcome), key=("failed", "skipped", "passed").index)
    return worst


def verdict(trial: Trial, found: Mapping[str, str]) -> str:
    """failed, not run, skipped or passed."""
    return min(
        (found.get(test, "not run") for test in trial.tests), key=("failed", "not run", "skipped", "passed").index
    )


def main(words: list[str]) -> int:
    """Run and print; returns the exit status."""
    chosen = trials(words)
    if not chosen:
        print(f"tests.trials: no trial has {' or '.join(words)} in its name", file=sys.stderr)
        return 2
    names = sorted({f"tests/{test}" for trial in chosen for test in trial.tests if not test.startswith("vm/")})
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory, "report.xml")
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *names]
        subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, check=False)
        found = outcomes(report)
    width = max(len(trial.slug) for trial in chosen)
    verdicts = {trial.slug: verdict(trial, found) for trial in chosen}
    print()
    for trial in chosen:
        print(f"{verdicts[trial.slug]:8} {trial.slug:{width}}  {trial.right}")
    counts = [f"{list(verdicts.values()).count(kind)} {kind}" for kind in ("passed", "failed", "skipped", "not run")]
    print(f"\n{len(chosen)} trials: {', '.join(counts)}")
    return 1 if "failed" in verdicts.values() else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
