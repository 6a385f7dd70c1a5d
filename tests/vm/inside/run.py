"""What the guest starts on every boot: installs crisp on the first one, runs that boot's tests, and cuts the power.

Standard output is the results port: one line of JSON for each test. Everything else goes to the console.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

PAYLOAD = Path("/payload")
MACHINE = PAYLOAD / "machine.json"  # what is special about it (tests/vm/machine.py)
BOOTS = PAYLOAD / "boots.json"  # the modules that each boot runs
CONFINED = Path("/sys/fs/selinux").is_dir()  # SELinux is on
BOOTED = Path("/var/lib/crisp-guest-booted")  # how often


def main() -> None:
    number = int(BOOTED.read_text()) if BOOTED.exists() else 0
    mark_booted(number + 1)
    if number == 0:
        install()
    boots = json.loads(BOOTS.read_text())
    run_tests(boots[number])
    if number + 1 < len(boots):
        cut_power()


def mark_booted(times: int) -> None:
    BOOTED.write_text(str(times))
    subprocess.run(["sync", BOOTED, BOOTED.parent], check=True)


def install() -> None:
    """Install the wheel and the unit as deploy/install.sh does, without a network. Leaves crispd stopped."""
    wheel = next(PAYLOAD.glob("*.whl"))
    # Not pip, which takes 20 s under emulation. What was not compiled outside is when it is imported.
    compiling = ["--no-compile-bytecode"]
    if CONFINED:  # crispd may not write there
        compiling = ["--compile-bytecode", "0"]
    installer = [sys.executable, "-m", "installer", *compiling, str(wheel)]
    subprocess.run(installer, check=True, stdout=sys.stderr)
    if (PAYLOAD / "compiled").is_dir():
        shutil.copytree(PAYLOAD / "compiled", sysconfig.get_path("purelib"), dirs_exist_ok=True)
    shutil.copy(PAYLOAD / "deploy/crispd.service", "/etc/systemd/system")
    settings = Path("/etc/crisp/crisp.toml.d/handlers.toml")
    settings.parent.mkdir(parents=True)
    settings.write_text('checkpoint_images = true\n[runtime_handlers.crun]\npath = "/usr/bin/crun"\n')
    if CONFINED:
        subprocess.run(["restorecon", "-RF", sys.prefix], check=True, stdout=sys.stderr)
    subprocess.run(["systemctl", "enable", "--quiet", "crispd.service"], check=True, stdout=sys.stderr)


def run_tests(modules: Sequence[str]) -> None:
    plugins = ("-p", "no:cacheprovider", "-p", "tests.vm.inside.report")
    left_out = [f"--deselect=tests/vm/inside/{name}" for name in json.loads(MACHINE.read_text())["left_out"]]
    arguments = ("-q", *left_out, "--tb=short", *plugins, "-c", os.devnull, "--rootdir", PAYLOAD)
    port = os.dup(1)
    subprocess.run(
        [sys.executable, "-m", "pytest", *arguments, *(PAYLOAD / f"tests/vm/inside/{module}.py" for module in modules)],
        env=os.environ | {"PYTHONPATH": str(PAYLOAD), "CRISP_GUEST_RESULTS": str(port)},
        pass_fds=(port,),
        stdout=sys.stderr,
        check=False,
    )


def cut_power() -> None:
    """Reset the machine with nothing written back but what programs had synced. Does not return."""
    Path("/proc/sysrq-trigger").write_text("b")


if __name__ == "__main__":
    main()
