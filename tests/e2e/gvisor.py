"""`python -m tests.e2e.gvisor [WORD...]`: critest's specs with pods in gVisor's sandboxes, as a table. Takes root.

A WORD picks the specs with it in their names. Exit status 1 if any fails.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests import box, gvisor
from tests.daemon import Daemon
from tests.e2e import critest
from tests.registry import Registry

SKIPPED = {
    **critest.SKIPPED,
    "AppArmor": "the host's profiles are not for what runs in a sandbox of its own",
    "NRI": "it is no property of a handler: tests/e2e runs it with crisp's own",
}


def main(words: list[str]) -> int:
    if os.geteuid() != 0:
        print("tests.e2e.gvisor: pods need root", file=sys.stderr)
        return 2
    gvisor.runsc()  # both are built outside the box, which has no network
    critest.programs()
    if not box.inside():
        return box.run([sys.executable, "-m", "tests.e2e.gvisor", *words])
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "crisp.toml").write_text(gvisor.settings())
        (directory / "registry").mkdir()
        with Daemon.running(f"--config={directory}/crisp.toml") as daemon, Registry(directory / "registry") as registry:
            critest.fill(registry)
            daemon.registries_conf.write_text(critest.registries(registry))
            focus = [f"-ginkgo.focus={word}" for word in words]
            handler = f"-runtime-handler={gvisor.HANDLER}"
            outcome = critest.run(daemon, directory / "nri.sock", handler, *focus, skip=tuple(SKIPPED))
            print(_table(outcome.explained({} if words else SKIPPED)))
            return int(bool(outcome.failed))


def _table(outcome: critest.Outcome) -> str:
    """What passed and failed, by critest's subjects, then each failure and each skipped spec with its reason."""
    passed, failed = Counter(map(_subject, outcome.passed)), Counter(map(_subject, outcome.failed))
    rows = [f"{'critest with gVisor':<44}{'passed':>8}{'failed':>8}"]
    rows += [f"{name:<44}{passed[name]:>8}{failed[name]:>8}" for name in sorted(passed | failed)]
    rows.append(f"{'all':<44}{passed.total():>8}{failed.total():>8}")
    for name, why in sorted(outcome.failed.items()):
        rows.append(f"FAILED {name.removeprefix('[It] [k8s.io] ')}\n    {' '.join(why.split())[:300]}")
    reasons = ((name, why) for name, why in sorted(outcome.skipped.items()) if why)  # others were not picked
    rows += [f"skipped {name.removeprefix('[It] [k8s.io] ')}: {why}" for name, why in reasons]
    return "\n".join(rows)


def _subject(name: str) -> str:
    """A spec's subject: the words before the first that say what is expected."""
    return " ".join(name.removeprefix("[It] [k8s.io] ").split(" runtime should ")[0].split()[:3])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
