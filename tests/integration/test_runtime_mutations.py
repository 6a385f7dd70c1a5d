"""Configurations gone wrong: whatever is in one, crisp-oci runs it or says why not, and leaves nothing."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests import leaks
from tests.oci import PARENT, Bundle

_HIERARCHIES = [path for path in Path("/sys/fs/cgroup").iterdir() if path.is_dir()]


def _configuration(bundle: Bundle) -> dict[str, Any]:
    bundle.configure(
        "true",
        process={
            "user": {"uid": 1, "gid": 2, "umask": 18, "additionalGids": [3]},
            "capabilities": {name: ["CAP_KILL"] for name in ("bounding", "effective", "permitted")},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 100, "soft": 100}],
            "oomScoreAdj": 100,
            "noNewPrivileges": True,
            "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 6},
            "scheduler": {"policy": "SCHED_BATCH", "nice": 1},
        },
        linux={
            "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network", "time", "cgroup")],
            "timeOffsets": {"boottime": {"secs": 5}},
            "cgroupsPath": f"{PARENT}/one",
            "resources": {
                "memory": {"limit": 64 << 20},
                "pids": {"limit": 50},
                "cpu": {"shares": 512, "quota": 50000, "period": 100000},
                "devices": [{"allow": False, "access": "rwm"}],
            },
            "sysctl": {"net.core.somaxconn": "99"},
            "devices": [{"path": "/dev/mine", "type": "c", "major": 1, "minor": 3}],
            "seccomp": {
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}],
            },
            "maskedPaths": ["/proc/kcore"],
            "readonlyPaths": ["/proc/sys"],
            "rootfsPropagation": "private",
        },
    )
    configuration: dict[str, Any] = json.loads((bundle.directory / "config.json").read_text())
    configuration["mounts"] += [
        {"destination": "/tmp/a", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "size=64k", "tmpcopyup"]},
        {"destination": "/b", "type": "bind", "source": "rootfs/bin", "options": ["rbind", "ro", "rprivate"]},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue"},
    ]
    return configuration


def _run(bundle: Bundle, configuration: dict[str, Any]) -> tuple[int, str]:
    """Its exit status and what it said; nothing of the container is left."""
    (bundle.directory / "config.json").write_text(json.dumps(configuration))
    mounts = Path("/proc/self/mountinfo").read_text().count("\n")
    done = bundle.call("run", "one", check=False)
    assert "Traceback" not in done.stderr
    assert "Error: " not in done.stderr, "an exception of no family"
    assert not (bundle.root / "one").exists()
    assert Path("/proc/self/mountinfo").read_text().count("\n") == mounts
    left = [hierarchy for hierarchy in _HIERARCHIES if (hierarchy / PARENT.strip("/")).exists()]
    assert not left
    return done.returncode, done.stderr


# What may not be random: paths at which something of the host could be, and whom cgroups could belong to.
_FIXED = ("root", "cgroupsPath", "ociVersion")
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**64) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


def _paths(node: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    found = [prefix] if prefix else []
    return found + [path for key, child in items if key not in _FIXED for path in _paths(child, (*prefix, key))]


def test_junk_anywhere_leaves_nothing(bundle: Bundle) -> None:
    configuration = _configuration(bundle)
    assert _run(bundle, configuration) == (0, "")
    paths = [path for path in _paths(configuration) if path[0] not in _FIXED and path != ("linux",)]

    @settings(
        max_examples=50, derandomize=True, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(path=st.sampled_from(paths), junk=_JSON, gone=st.booleans())
    def mutate(path: tuple[Any, ...], junk: Any, gone: bool) -> None:
        mutated = copy.deepcopy(configuration)
        target = mutated
        for key in path[:-1]:
            target = target[key]
        if gone:
            del target[path[-1]]
        else:
            target[path[-1]] = junk
        _run(bundle, mutated)

    mutate()


def _mount(**mount: Any) -> Callable[[dict[str, Any]], None]:
    return lambda configuration: configuration["mounts"].append({"destination": "/m", **mount})


def _process(**members: Any) -> Callable[[dict[str, Any]], None]:
    return lambda configuration: configuration["process"].update(members)


def _linux(**members: Any) -> Callable[[dict[str, Any]], None]:
    return lambda configuration: configuration["linux"].update(members)


def _hook(kind: str) -> Callable[[dict[str, Any]], None]:
    return lambda configuration: configuration.update(hooks={kind: [{"path": "/bin/false"}]})


_KILLING = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["sendto"], "action": "SCMP_ACT_KILL_PROCESS"}]}
_LATE: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "a file system that is none": (_mount(type="nosuchfs", source="x"), "mount `nosuchfs` on `/m`"),
    "an option that is none": (_mount(type="tmpfs", source="tmpfs", options=["x=y"]), "mount `tmpfs` on `/m`"),
    "a source that is not there": (_mount(type="bind", source="/no/such"), "open bind mount source `/no/such`"),
    "a target below a file": (
        _mount(type="tmpfs", source="tmpfs", destination="/bin/busybox/x"), "mount `tmpfs` on `/bin/busybox/x`",
    ),
    "a directory on a file": (
        _mount(type="tmpfs", source="tmpfs", destination="/bin/busybox"), "mount `tmpfs` on `/bin/busybox`",
    ),
    "a sysctl that is not there": (_linux(sysctl={"net.no.such": "1"}), "set sysctl `net.no.such=1`"),
    "a sysctl's value": (_linux(sysctl={"net.core.somaxconn": "many"}), "set sysctl `net.core.somaxconn=many`"),
    "an interface that is not there": (_linux(netDevices={"no0": {}}), "move linux.netDevices `no0`"),
    "a node of memory that is not there": (
        _linux(memoryPolicy={"mode": "MPOL_BIND", "nodes": "63"}), "set memoryPolicy `MPOL_BIND 63`",
    ),
    "a directory that is a file": (_process(cwd="/bin/busybox"), "enter working directory `/bin/busybox`"),
    "a capability that is not permitted": (
        _process(capabilities={"effective": ["CAP_KILL"]}), "add `CAP_KILL` to the effective set",
    ),
    "a program that is not there": (_process(args=["nosuch"]), 'exec: "nosuch"'),
    "a program that is a directory": (_process(args=["/bin"]), 'exec: "/bin": permission denied'),
    "a device in the way": (
        _linux(devices=[{"path": "/bin/busybox", "type": "c", "major": 1, "minor": 3}]), "make device `/bin/busybox`",
    ),
    "a terminal without devpts": (
        lambda configuration: configuration.update(
            process=configuration["process"] | {"terminal": True},
            mounts=[mount for mount in configuration["mounts"] if mount["type"] != "devpts"],
        ),
        "open `/dev/pts/ptmx`",
    ),
    "a filter that kills the init": (_linux(seccomp=_KILLING), "died before its program ran"),
    "memory for nothing": (_linux(resources={"memory": {"limit": 4096}}), ""),
    "a prestart hook": (_hook("prestart"), "prestart hook #0"),
    "a createContainer hook": (_hook("createContainer"), "createContainer hook #0"),
    "a startContainer hook": (_hook("startContainer"), "startContainer hook #0"),
    "a poststart hook": (_hook("poststart"), "poststart hook #0"),
}  # fmt: skip


@pytest.mark.parametrize("what", _LATE)
def test_what_fails_after_the_namespaces_exist_leaves_nothing(bundle: Bundle, what: str) -> None:
    configuration = _configuration(bundle)
    mutate, words = _LATE[what]
    mutate(configuration)
    before = leaks.descriptors_of(os.getpid())
    code, said = _run(bundle, configuration)
    assert (code, words in said) == (1, True), said
    assert leaks.descriptors_of(os.getpid()) == before
