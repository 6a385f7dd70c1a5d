"""A Debian machine, made on the spot and booted under QEMU's own emulation: no KVM and no network.

It is the machine that users have and a build container is not: cgroup v2 only, systemd as PID 1, AppArmor on, every
capability. Its description has release, kernel and processor (tests/vm/machine.py). `run` boots a throw-away copy of a
disk (tests/vm/base.py) and returns what the payload in it said.

The payload is a directory, seen inside as /payload (read-only). On every boot its `run.py` is started with the
interpreter of the prepared environment (base.ENVIRONMENT); each line of JSON it prints is one result. When it ends, the
machine goes off; when it resets the machine (sysrq b), that is a power cut: what was not synced is lost.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.vm.base import BaseImage, GuestError, disk_from, do, end_of, label
from tests.vm.machine import Machine

MEMORY_MIB = 2048
PAYLOAD_MIB = 220  # most of it for kubelet and critest
MACHINE = ("-smp", "2", "-m", str(MEMORY_MIB), "-no-reboot")


@dataclass(frozen=True, slots=True)
class Ran:
    """The JSON lines that the payload printed, and how many seconds each boot took, the tests included."""

    results: list[dict[str, Any]]
    seconds: list[float]


def run(machine: Machine, image: BaseImage, payload: Path, boots: int, console: Path, timeout: float) -> Ran:
    """Boot a copy of the base disk `boots` times with the payload directory, and return what it printed.

    The console goes to the file `console`. Raises GuestError when the last boot is not over after `timeout` seconds,
    and when the payload printed something else or nothing.
    """
    deadline = time.monotonic() + timeout
    with tempfile.TemporaryDirectory(prefix="crisp-guest-") as name:
        work = Path(name)
        disk, payload_disk, results = work / "disk", work / "payload", work / "results"
        do(work, "cp", "--sparse=always", "--reflink=auto", str(image.disk), str(disk))
        if machine.selinux:
            label(payload)
        disk_from(payload, payload_disk, "payload", PAYLOAD_MIB)
        # A new process each time: a machine that QEMU 7.2 reset was seen to hang for minutes while it loaded modules.
        ends = [time.monotonic()]
        for _ in range(boots):
            command = _qemu(machine, image, disk, payload_disk, console, results)
            _boot(command, console, deadline - time.monotonic())
            ends.append(time.monotonic())
        return Ran(_parsed(results.read_text(), console), [end - begin for begin, end in pairwise(ends)])


def _boot(qemu: list[str], console: Path, seconds: float) -> None:
    try:
        status = subprocess.run(qemu, stdin=subprocess.DEVNULL, timeout=seconds, check=False).returncode
    except subprocess.TimeoutExpired as expired:
        raise GuestError(f"run guest: its time was over\n{end_of(console)}") from expired
    if status:
        raise GuestError(f"run guest: qemu exited with {status}\n{end_of(console)}")


def _parsed(text: str, console: Path) -> list[dict[str, Any]]:
    try:
        results = [json.loads(line) for line in text.splitlines() if line.strip()]
    except json.JSONDecodeError as error:
        raise GuestError(f"read results of guest: {error}: {text[-1000:]}\n{end_of(console)}") from error
    if not results:
        raise GuestError(f"run guest: its payload reported nothing\n{end_of(console)}")
    return results


def _qemu(machine: Machine, image: BaseImage, disk: Path, payload: Path, console: Path, results: Path) -> list[str]:
    return [
        *("setpriv", "--pdeathsig", "KILL"),
        *machine.architecture.qemu,
        *MACHINE,
        *("-display", "none", "-nodefaults", "-no-user-config"),
        *("-kernel", str(image.kernel), "-initrd", str(image.initrd)),
        *("-append", machine.command_line),
        *("-drive", f"file={disk},format=raw,if=virtio,cache=unsafe"),
        *("-drive", f"file={payload},format=raw,if=virtio,readonly=on"),
        *("-chardev", f"file,id=console,path={console},append=on", "-serial", "chardev:console"),
        *("-chardev", f"file,id=results,path={results},append=on"),
        *("-device", "virtio-serial-pci", "-device", "virtserialport,chardev=results,name=results"),
        *("-object", "rng-builtin,id=entropy", "-device", "virtio-rng-pci,rng=entropy"),
    ]
