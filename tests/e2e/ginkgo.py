"""What test programs made with Ginkgo tell of their specs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree


@dataclass(frozen=True, slots=True)
class Outcome:
    """The names of specs by how they ended, failed and skipped ones with why; and the seconds that each took."""

    passed: tuple[str, ...]
    failed: dict[str, str]
    skipped: dict[str, str]
    seconds: dict[str, float]

    def summary(self, name: str) -> str:
        """How many there were of each, and each skipped one with its reason."""
        counts = f"{len(self.passed)} passed, {len(self.failed)} failed, {len(self.skipped)} skipped"
        return "\n".join([f"{name}: {counts}", *(f"  skipped {spec}: {why}" for spec, why in self.skipped.items())])

    def explained(self, reasons: Mapping[str, str]) -> Outcome:
        """The same, with the reason for each skipped spec whose name has the word that the reason is for.

        Ginkgo tells none for specs that its flags leave out.
        """
        skipped = {
            name: next((reason for word, reason in reasons.items() if word in name), why)
            for name, why in self.skipped.items()
        }
        return replace(self, skipped=skipped)


def read(*reports: Path) -> Outcome:
    """The outcome that reports in JUnit's format tell."""
    passed, failed, skipped, seconds = [], {}, {}, {}
    for case in _cases(reports):
        name = case.get("name", "")
        if not name.startswith("[It]"):
            continue
        seconds[name] = float(case.get("time", "0"))
        problem, omitted = case.find("failure"), case.find("skipped")
        problem = case.find("error") if problem is None else problem
        if problem is not None:
            failed[name] = (problem.get("message") or "") + (problem.text or "")
        elif omitted is not None:
            skipped[name] = omitted.get("message") or ""
        else:
            passed.append(name)
    return Outcome(tuple(passed), failed, skipped, seconds)


def _cases(reports: Iterable[Path]) -> Iterable[ElementTree.Element]:
    for report in reports:
        yield from ElementTree.parse(report).iter("testcase")
