"""A container's init as a list of system calls makes the same container as the forked interpreter."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cri.v1 import api_pb2 as cri
from tests.daemon import Daemon, Pod
from tests.waiting import until

# Two variables are more than a list may have, so an interpreter is forked. The program's environment is not compared.
_TOO_LONG = [cri.KeyValue(key=f"LONG{number}", value=b"x" * 100_000) for number in range(2)]
_LOOK = """
for directory in /proc/[0-9]*; do
    case "$(tr '\\0' ' ' < $directory/cmdline)" in "sleep SECONDS "*) P=${directory#/proc/};; esac
done
sed 's/^[0-9]* [0-9]* [0-9:]* //' /proc/self/mountinfo
ls -laR /dev | grep -v fd
grep -vE '^(Vm|Rss|Hugetlb|vol|nonvol|Pid|Tgid|Ngid|NS|PPid|State|FDSize|SigQ)' /proc/$P/status
cat /proc/$P/limits /proc/$P/oom_score_adj /proc/self/cgroup
ls -l /proc/$P/fd | sed 's/.* //;s/[0-9]*]/N/'
readlink /proc/$P/cwd; hostname; id; umask
ls -l /proc/$P/ns | sed 's/.*-> //' | grep -E 'net|ipc|uts'
for path in /proc/kcore /proc/timer_list /sys/firmware /proc/acpi; do ls -ld $path; wc -c < $path; done
echo a > /proc/sys/kernel/hostname
"""


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with Daemon.running("--trace-start") as daemon:
        daemon.import_busybox()
        with daemon.pod("first"):
            pass  # makes the bridge
        yield daemon


@pytest.fixture
def pod(daemon: Daemon) -> Iterator[Pod]:
    with daemon.pod("listed") as pod:
        yield pod


@pytest.mark.parametrize("pid", ["CONTAINER", "POD"])  # which before Linux 6.18 is forked in both ways
@pytest.mark.parametrize("user", [0, 1234])
def test_a_listed_init_makes_the_same_container(pod: Pod, pid: str, user: int) -> None:
    seen = []
    for way, env in ("listed", []), ("forked", _TOO_LONG):
        security = cri.LinuxContainerSecurityContext(
            namespace_options=cri.NamespaceOption(pid=cri.NamespaceMode.Value(pid)),
            run_as_user=cri.Int64Value(value=user),
            supplemental_groups=[7, 8],
            masked_paths=["/proc/kcore", "/proc/timer_list", "/sys/firmware", "/proc/acpi", "/nothing"],
            readonly_paths=["/proc/sys", "/proc/bus", "/nowhere"],
            no_new_privs=bool(user),
            seccomp=cri.SecurityProfile(profile_type=cri.SecurityProfile.RuntimeDefault),
        )
        seconds = f"8640{len(seen)}"
        container = pod.run(
            "sleep", seconds,
            name=f"{way}-{pid.lower()}-{user}",
            envs=env,
            working_dir="/var/not/there",
            mounts=[
                cri.Mount(container_path="/dev/termination-log", host_path="/etc/hostname"),
                cri.Mount(container_path="/var/run/secrets/deep/er", host_path="/usr/share", readonly=True),
            ],
            linux=cri.LinuxContainerConfig(
                security_context=security, resources=cri.LinuxContainerResources(oom_score_adj=900)
            ),
        )  # fmt: skip
        answer = pod.exec(container, "sh", "-c", _LOOK.replace("SECONDS", seconds))
        text = re.sub(r"[0-9a-f]{64}", "ID", (answer.stdout + answer.stderr).decode())
        seen.append(re.sub(r"(upperdir|workdir)=\S*|lowerdir\S*|/tmp/\S*|\d\d:\d\d", "", text))
    assert "CapEff" in seen[0]
    assert "Max open files" in seen[0]
    assert not list(difflib.unified_diff(*(text.splitlines() for text in seen), n=0))


def test_the_shim_works_ahead_for_a_start(daemon: Daemon, pod: Pod) -> None:
    """It looks up what only the image decides, and makes the working directory, once the container is created."""
    container = pod.create("cat", name="ahead", working_dir="/made/ahead", stdin=True, stdin_once=True)
    made = daemon.root / "containers" / container / "upper/made/ahead"
    until(made.exists)
    assert daemon.status(container).state == cri.CONTAINER_CREATED
    daemon.runtime.StartContainer(cri.StartContainerRequest(container_id=container), timeout=60)
    info = daemon.runtime.ContainerStatus(cri.ContainerStatusRequest(container_id=container, verbose=True), timeout=60)
    process = Path(f"/proc/{json.loads(info.info['info'])['pid']}")
    assert (process / "cwd").readlink() == Path("/made/ahead")
    assert str((process / "fd/0").readlink()).startswith("pipe:")


_OWN = cri.LinuxContainerSecurityContext(namespace_options=cri.NamespaceOption(pid=cri.CONTAINER))


def test_a_score_that_takes_privilege_is_set_or_warned_of(daemon: Daemon, pod: Pod) -> None:
    resources = cri.LinuxContainerResources(oom_score_adj=-501)
    linux = cri.LinuxContainerConfig(security_context=_OWN, resources=resources)
    container = pod.run("sleep", "86400", linux=linux)
    shown = pod.exec(container, "cat", "/proc/1/oom_score_adj").stdout.decode().strip()
    told = f"oom_score_adj -501 needs CAP_SYS_RESOURCE, which crisp does not have: kept at {shown}" in daemon.log()
    may = _capable(24)  # CAP_SYS_RESOURCE
    assert (shown == "-501", told) == (may, not may)


def _capable(number: int) -> bool:
    with open("/proc/self/status") as file:
        return bool(int(next(line.split()[1] for line in file if line.startswith("CapEff")), 16) >> number & 1)


def test_a_listed_init_is_told_of_in_the_steps(daemon: Daemon, pod: Pod) -> None:
    linux = cri.LinuxContainerConfig(security_context=_OWN)
    listed = pod.run("sleep", "86400", name="short", linux=linux)
    forked = pod.run("sleep", "86400", name="long", envs=_TOO_LONG, linux=linux)
    lines = daemon.log().splitlines()
    assert any(listed in line and "list sent" in line for line in lines)
    assert any(forked in line and "mounts made" in line and "list sent" not in line for line in lines)
