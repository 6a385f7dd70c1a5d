"""The table of reported faults: its markers are well formed, and its verdicts are the worst of a trial's tests."""

from __future__ import annotations

from pathlib import Path

from tests.trials import Trial, outcomes, trials, verdict

REPORT = """<testsuites><testsuite>
<testcase classname="tests.unit.test_a" name="test_one[x]"/>
<testcase classname="tests.unit.test_a" name="test_one[y]"><failure/></testcase>
<testcase classname="tests.unit.test_a" name="test_two"/>
<testcase classname="tests.unit.test_a" name="test_three"><skipped/></testcase>
</testsuite></testsuites>"""


def test_every_marker_is_well_formed() -> None:
    trials()


def test_a_verdict_is_that_of_the_worst_test(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(REPORT)
    found = outcomes(report)
    tests = {name: f"unit/test_a.py::test_{name}" for name in ("one", "two", "three", "four")}

    def of(*names: str) -> str:
        return verdict(Trial("slug", "right", tuple(tests[name] for name in names)), found)

    assert of("two") == "passed"
    assert of("two", "three") == "skipped"
    assert of("two", "four") == "not run"
    assert of("four", "one", "two") == "failed"
