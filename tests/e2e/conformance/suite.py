"""The suite: which of its tests run, how they ended, and a table of that."""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.e2e import ginkgo, kubernetes
from tests.e2e.conformance.nodes import TwoNodes

PROGRAMS: Final = ("e2e.test", "ginkgo", "kubectl")
_NOT_CHOSEN: Final = "skipped"  # what a report says of tests that nobody asked for


@dataclass(frozen=True, slots=True)
class Part:
    """Tests that run together: those with the labels, whose names match `focus` and not `skip`.

    What is not done after `timeout` is told as not run. Fewer than `at_least` that passed are a failure, too.
    """

    name: str
    labels: str
    processes: int
    focus: str = ""
    skip: str = ""
    timeout: str = "6h"
    at_least: int = 1


PROCESSES: Final = 6
ALL: Final = (
    Part("parallel", "Conformance && !Serial", PROCESSES),
    Part("serial", "Conformance && Serial", 1),
)
# What tells most of a runtime in a few minutes: no test of the API alone, none that waits for minutes.
QUICK: Final = Part(
    "quick",
    "Conformance && !Serial && !Slow",
    PROCESSES,
    focus="|".join((
        r"\[sig-node\] (Container |Containers|Ephemeral|ImageVolume|InitContainer|Kubelet|Pod InPlace|Pods |PreStop)",
        r"\[sig-node\] (Probing|RuntimeClass should schedule|Security|Sysctls|Variable)",
        r"\[sig-node\] (ConfigMap|Secrets) should be consumable",
        r"\[sig-storage\] (EmptyDir volumes|Projected combined)",
        r"\[sig-storage\] Downward API volume should (update labels|set mode|provide container's)",
        r"\[sig-network\] (DNS should (provide DNS for the|support)|HostPort|Networking Granular)",
        r"\[sig-network\] Services should be able to create",
        r"\[sig-apps\] (Job should run|Deployment RollingUpdate|StatefulSet .* a working scale)",
        r"\[sig-cli\] Kubectl logs",
    )),
    skip="|".join((
        r"should \*not\*", "monotonically", "500 podspec", "never be ready", "GRPC", "cat /tmp/health", "0644", "0666",
        "failing subpath", "writing subpaths", "init containers fail on a RestartAlways", "expected status",
    )),
    timeout="20m",
    at_least=80,
)  # fmt: skip


def run(cluster: TwoNodes, part: Part, output: Path) -> ginkgo.Outcome:
    """Run a part. Its log and its report (JUnit) are in `output`. Raises RuntimeError if there is no report."""
    programs = kubernetes.directory(*PROGRAMS)
    report, log = output / f"{part.name}.xml", output / f"{part.name}.log"
    report.unlink(missing_ok=True)
    choice = [f"--label-filter={part.labels}"]
    choice += [f"--focus={part.focus}"] * bool(part.focus) + [f"--skip={part.skip}"] * bool(part.skip)
    runner: list[str | Path] = [
        programs / "ginkgo", f"--procs={part.processes}", f"--timeout={part.timeout}", "--no-color", *choice,
        f"--output-dir={output}", f"--junit-report={report.name}", "--output-interceptor-mode=none",
    ]  # fmt: skip
    suite: list[str | Path] = [
        programs / "e2e.test", "--", f"--kubeconfig={cluster.kubeconfig}", "--provider=skeleton", "--disable-log-dump",
        f"--kubectl-path={programs / 'kubectl'}", f"--num-nodes={len(cluster.nodes)}", "--allowed-not-ready-nodes=0",
    ]  # fmt: skip
    with log.open("wb") as file:
        done = subprocess.run(
            [*cluster.nodes[0].into, "env", f"--chdir={output}", *runner, *suite], stdin=subprocess.DEVNULL,
            stdout=file, stderr=file, check=False,
            env=os.environ | {"KUBECONFIG": str(cluster.kubeconfig), "PATH": f"{programs}:{os.environ['PATH']}"},
        )  # fmt: skip
    if not report.exists():
        end = log.read_text(errors="replace")[-4000:]
        raise RuntimeError(f"the suite wrote no report (exit status {done.returncode}):\n{end}")
    told = ginkgo.read(report)
    skipped = {name: why for name, why in told.skipped.items() if why != _NOT_CHOSEN}
    return ginkgo.Outcome(told.passed, told.failed, skipped, told.seconds)


def keep_logs(cluster: TwoNodes, output: Path) -> None:
    """Copy what crispd and kubelet said on each node to `output`."""
    for node in cluster.nodes:
        for source in (node.daemon.directory / "crispd.log", node.directory / "kubelet.log"):
            (output / f"{node.name}-{source.name}").write_bytes(source.read_bytes())


def table(outcomes: Mapping[str, ginkgo.Outcome]) -> str:
    """Each part's tests by the group of Kubernetes that owns them, in Markdown; then what failed or was skipped."""
    lines = ["| part | group | passed | failed | skipped | test time, s |", "| --- | --- | --- | --- | --- | --- |"]
    for part, outcome in outcomes.items():
        kinds = {"passed": outcome.passed, "failed": outcome.failed, "skipped": outcome.skipped}
        counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for kind, names in kinds.items():
            for name in names:
                counts[_group(name)][kind] += 1
                counts[_group(name)]["seconds"] += round(outcome.seconds[name])
        total = sum(counts.values(), Counter())
        for group, count in [*sorted(counts.items()), ("all", total)]:
            numbers = " | ".join(str(count[kind]) for kind in (*kinds, "seconds"))
            lines.append(f"| {part} | {group} | {numbers} |")
    for outcome in outcomes.values():
        lines += [f"FAILED {name}\n    {_first_lines(why)}" for name, why in outcome.failed.items()]
        lines += [f"skipped: {name}: {why}" for name, why in outcome.skipped.items()]
    return "\n".join(lines)


def _group(name: str) -> str:
    found = re.search(r"\[(sig-[a-z-]+)\]", name)
    return found[1] if found else "?"


def _first_lines(why: str) -> str:
    return "\n    ".join(why.strip().splitlines()[:4])
