"""Which inits are a list of system calls, and what an interpreter is forked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from linux import syscalls
from runtime.cgroups import Cgroup, Hierarchies
from runtime.light import replace
from runtime.namespaces.user import UserNamespaces
from runtime.process import starting
from runtime.process.assembling import Obstacle
from runtime.process.gate import Gate
from runtime.process.init import Start
from runtime.process.starting import NO_STREAMS, InitList, Starting
from runtime.rootfs.plan import plan_mounts
from runtime.seccomp.passage import Passage
from runtime.spec.parse import parse

_V1 = Hierarchies({"cpu": "/sys/fs/cgroup/cpu"}, "/sys/fs/cgroup/unified", frozenset())
_V2 = Hierarchies({}, "/sys/fs/cgroup", frozenset({"cpu"}))
_LISTENER = 8
_USUAL = [
    {"destination": "/proc", "type": "proc", "source": "proc"},
    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
    {"destination": "/dev/shm", "type": "bind", "source": "/dev/shm"},
    {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
    {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]},
]


@pytest.fixture
def rootfs(tmp_path: Path) -> Iterator[int]:
    """A detached mount, as a container's is before its start, with a link here and there."""
    tree = tmp_path / "rootfs"
    for name in ("dev", "etc", "proc", "run", "volume"):
        (tree / name).mkdir(parents=True)
    (tree / "etc/file").write_text("")
    for name, target in (("to-proc", "proc"), ("to-dev", "dev"), ("to-run", "run"), ("to-nothing", "not/there")):
        (tree / name).symlink_to(target)
    try:
        made = syscalls.open_tree(syscalls.AT_FDCWD, str(tree), syscalls.OPEN_TREE_CLONE)
    except PermissionError:
        pytest.skip("needs root")
    yield made
    os.close(made)


@pytest.fixture
def null() -> Iterator[int]:
    fd = os.open("/dev/null", os.O_RDWR)
    yield fd
    os.close(fd)


def _document(
    process: dict[str, Any] = {},  # noqa: B006
    mounts: tuple[dict[str, Any], ...] = (),
    usual: list[dict[str, Any]] = _USUAL,
    hooks: dict[str, Any] = {},  # noqa: B006
    linux: dict[str, Any] = {},  # noqa: B006
) -> dict[str, Any]:
    default = {"args": ["true"], "cwd": "/", "env": ["PATH=/bin", "HOME=/"], "user": {"uid": 0, "gid": 0}}
    namespaces = [{"type": kind} for kind in ("mount", "pid", "ipc", "uts", "cgroup")]
    return {
        "ociVersion": "1.2.0", "process": default | process, "root": {"path": "rootfs"},
        "mounts": [*usual, *mounts], "hooks": hooks,
        "linux": {"namespaces": namespaces, "cgroupsPath": "/a/b"} | linux,
    }  # fmt: skip


def _start(
    null: int,
    rootfs: int = -1,
    process: dict[str, Any] = {},  # noqa: B006
    mounts: tuple[dict[str, Any], ...] = (),
    usual: list[dict[str, Any]] = _USUAL,
    **members: Any,
) -> Start:
    spec = parse(_document(process, mounts, usual, members.pop("hooks", {}), members.pop("linux", {})))
    assert spec.process is not None
    start = Start(
        container_id="c", spec=spec, process=spec.process, mounts=plan_mounts(spec), rootfs=rootfs,
        empty_mount_namespace=null, cgroup=Cgroup.at(_V1, "/a/b"), in_unified_cgroup=True, stdio=(null, null, null),
    )  # fmt: skip
    return replace(start, **members)


def _joins(kind: str, path: str = "/proc/self/ns/pid") -> dict[str, Any]:
    others = [{"type": other} for other in ("mount", "ipc") if other != kind]
    return {"linux": {"namespaces": [*others, {"type": kind, "path": path}]}}


def test_a_usual_init_is_a_list(null: int, rootfs: int) -> None:
    volume = {"destination": "/run/secrets/deep", "type": "bind", "source": "/etc", "options": ["rbind", "ro"]}
    process = {"oomScoreAdj": 900, "noNewPrivileges": True, "user": {"uid": 1, "gid": 2}, "cwd": "/work"}
    masks = {"maskedPaths": ["/proc/kcore"], "readonlyPaths": ["/proc/sys"]}
    made = Starting.of(_start(null, rootfs, process, (volume,), linux=masks))
    assert made.births == 1
    assert made.list_for(("true",)) is not None
    assert made.list_for(("true", "x" * (1 << 18))) is None  # an interpreter has no such bound


def test_a_list_made_ahead_is_only_that_of_the_same_start(null: int, rootfs: int) -> None:
    program = b"\6\0\0\0\0\0\xff\x7f"
    expected = _start(null, rootfs, filter_program=program, stdio=NO_STREAMS)
    ahead = InitList.of(expected, [0])
    assert ahead.program is not None
    read, write = os.pipe()
    try:
        now = replace(expected, stdio=(null, write, write), trace=True, steps=[("shim received", 1)])
        assert ahead.is_of(now)
        assert not ahead.is_of(replace(now, filter_program=b""))
        assert not ahead.is_of(replace(now, process=replace(now.process, oom_score_adj=1)))
        assert not ahead.is_of(replace(now, stdio=(read, write, write)))
        assert not ahead.is_of(replace(now, users=UserNamespaces(held={"user": 9})))
    finally:
        os.close(read)
        os.close(write)


@pytest.mark.parametrize("privileges", [True, False])
def test_a_program_that_is_born_alone_has_its_filter_and_no_passage(null: int, rootfs: int, privileges: bool) -> None:
    """The kernel skips a filter for calls that it allows by number alone; a passage's are `read` and `write`."""
    program = b"\6\0\0\0\0\0\xff\x7f"
    made = Starting.of(_start(null, rootfs, {"noNewPrivileges": not privileges}, filter_program=program))
    listed = made.list_for(("true",))
    assert listed is not None
    assert program in listed.image
    assert Passage().before(b"")[:32] not in listed.image


HOOK = {"path": "/bin/true"}
STARTS: dict[str, tuple[str, dict[str, Any]]] = {
    "a user namespace": ("user namespace", {"users": UserNamespaces(held={"user": 9})}),
    "no template": ("no mount namespace", {"empty_mount_namespace": -1}),
    "prestart": ("hooks", {"hooks": {"prestart": [HOOK]}}),
    "createRuntime": ("hooks", {"hooks": {"createRuntime": [HOOK]}}),
    "createContainer": ("hooks", {"hooks": {"createContainer": [HOOK]}}),
    "startContainer": ("hooks", {"hooks": {"startContainer": [HOOK]}}),
    "interfaces": ("interfaces", {"links": 9}),
    "trees of the host": ("devices of the host", {"host_trees": {"/sys": 9}}),
    "a time namespace": ("time namespace", _joins("time")),
    "a keyring": ("keyring", {"keyring": False}),
    "a terminal": ("terminal", {"process": {"terminal": True}}),
    "a gate": ("gate", {"gate": Gate(3, 4)}),
    "descriptors": ("descriptors", {"preserved": 1}),
    "limits": ("limits", {"process": {"rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2}]}}),
    "a policy": ("scheduled", {"process": {"scheduler": {"policy": "SCHED_BATCH"}}}),
    "a priority": ("scheduled", {"process": {"ioPriority": {"class": "IOPRIO_CLASS_IDLE", "priority": 1}}}),
    "a personality": ("personality", {"linux": {"personality": {"domain": "LINUX32"}}}),
    "a listener": ("listener", {"filter_flags": _LISTENER}),
    "no HOME": ("HOME", {"process": {"env": ["PATH=/bin"]}}),
    "an odd variable": ("variables", {"process": {"env": ["HOME=/", "odd"]}}),
    "more than crisp has": ("capabilities", {"process": {"capabilities": {"effective": ["CAP_KILL"]}}}),
}


@pytest.mark.parametrize("row", STARTS)
def test_what_a_list_cannot_do_for_an_init(null: int, row: str) -> None:
    reason, members = STARTS[row]
    with pytest.raises(Obstacle, match=reason):
        Starting.of(_start(null, **members))


def test_a_cgroup_that_the_user_owns(null: int) -> None:
    writable = [{"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"}]
    process = {"user": {"uid": 1, "gid": 1}}
    with pytest.raises(Obstacle, match="owns its cgroup"):
        Starting.of(_start(null, process=process, usual=writable, cgroup=Cgroup.at(_V2, "/a/b")))


@pytest.mark.parametrize(
    ("look", "members", "reason"),
    [
        (starting._names_pid_namespaces, _joins("pid"), "proc of another PID namespace"),
        (syscalls.has_mount_setattr, {}, "mount_setattr"),
    ],
)
def test_what_the_kernel_lacks(
    null: int, monkeypatch: pytest.MonkeyPatch, look: Callable[[], bool], members: dict[str, Any], reason: str
) -> None:
    monkeypatch.setitem(starting._known, look, False)
    with pytest.raises(Obstacle, match=reason):
        Starting.of(_start(null, **members))


def _bind(destination: str, source: str = "/etc") -> dict[str, Any]:
    return {"destination": destination, "type": "bind", "source": source, "options": ["rbind"]}


def _tmpfs(destination: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": list(options)}


def _device(path: str, major: int = 1, minor: int = 3) -> dict[str, Any]:
    return {"linux": {"devices": [{"path": path, "type": "c", "major": major, "minor": minor}]}}


TREES: dict[str, tuple[str, tuple[dict[str, Any], ...], dict[str, Any]]] = {
    "on the root": ("mount on /", (_bind("/"),), {"usual": []}),
    "a disk": ("has a source", ({"destination": "/disk", "type": "ext4", "source": "/dev/vda"},), {}),
    "a copy": ("mount on /run", (_tmpfs("/run", "tmpcopyup"),), {}),
    "id-mapped": (
        "mount on /run",
        (
            _bind("/run")
            | {name: [{"containerID": 0, "hostID": 1000, "size": 1}] for name in ("uidMappings", "gidMappings")},
        ),
        {},
    ),
    "twice": ("mounted over", (_bind("/run"), _bind("/run")), {}),
    "over an earlier one": ("mounted over", (_bind("/run/a"), _bind("/run")), {}),
    "in a volume": ("below another mount", (_bind("/volume"), _bind("/volume/inner")), {}),
    "in sysfs": ("file system of the kernel", (_bind("/sys/fs/bpf"),), {}),
    "in proc": ("file system of the kernel", (_tmpfs("/proc/scsi", "mode=700"),), {}),
    "a mode to inherit": ("the mode of", (_tmpfs("/dev/inner"),), {}),
    "a file system on a file": ("is a file", (_tmpfs("/etc/file"),), {}),
    "by a link": ("leads below another mount", (_bind("/to-dev/inner"),), {}),
    "onto one by a link": ("leads below another mount", (_bind("/to-dev"),), {}),
    "before one by a link": ("mounted over", (_bind("/to-run/a"), _bind("/run")), {}),
    "a link to nothing": ("link to nothing", (_bind("/to-nothing"),), {}),
    "below a file": ("cannot be looked up", (_bind("/etc/file/below"),), {}),
    "a device on a mount": ("below another mount", (_bind("/dev/null", "/dev/zero"),), {}),
    "a device elsewhere": ("not below /dev", (), _device("/elsewhere")),
    "a device twice": (
        "listed twice",
        (),
        {"linux": {"devices": 2 * [{"path": "/dev/x", "type": "c", "major": 1, "minor": 3}]}},
    ),
    "a number too large": ("number of a device", (), _device("/dev/x", 1 << 12)),
    "another null": ("number of a device", (), _device("/dev/null", 1, 5)),
    "a working directory in a volume": ("in a volume", (_bind("/volume"),), {"process": {"cwd": "/volume/x"}}),
    "one that a link leads there": ("leads to a mount", (_bind("/run"),), {"process": {"cwd": "/to-run/x"}}),
    "one that is a link to what is missing": (
        "leads to a mount",
        (_bind("/not/there"),),
        {"process": {"cwd": "/to-nothing"}},
    ),
}


@pytest.mark.parametrize("row", TREES)
def test_what_a_list_cannot_mount(null: int, rootfs: int, row: str) -> None:
    reason, mounts, members = TREES[row]
    with pytest.raises(Obstacle, match=reason):
        Starting.of(_start(null, rootfs, mounts=mounts, **members))


@pytest.mark.parametrize("usual", [_USUAL[:1], [_bind("/dev", "/dev")]])
def test_a_dev_that_is_not_new(null: int, rootfs: int, usual: list[dict[str, Any]]) -> None:
    with pytest.raises(Obstacle, match="not a new file system"):
        Starting.of(_start(null, rootfs, usual=usual))


def test_a_proc_that_is_a_link(null: int, rootfs: int) -> None:
    with pytest.raises(Obstacle, match="is a link"):
        Starting.of(_start(null, rootfs, usual=[{"destination": "/to-run", "type": "proc", "source": "proc"}]))


def test_a_dev_that_is_a_link(null: int, rootfs: int, tmp_path: Path) -> None:
    (tmp_path / "rootfs/dev").rmdir()
    (tmp_path / "rootfs/dev").symlink_to("run")
    with pytest.raises(Obstacle, match="not a new file system"):
        Starting.of(_start(null, rootfs, usual=_USUAL[:2]))


def test_the_lookup_changes_nothing_but_what_is_missing(null: int, rootfs: int, tmp_path: Path) -> None:
    """Mount points are made if it is known what they are."""
    tree = tmp_path / "rootfs"
    before = {*tree.rglob("*")}
    mounts = (
        *(_bind(f"/a/{name}/x") for name in ("directory", "file", "unknown")),
        {"destination": "/b/tmpfs", "type": "tmpfs", "source": "tmpfs"},  # would take its mode from what it covers
        {"destination": "/b/queue", "type": "mqueue", "source": "mqueue"},
    )
    directories = {"/a/directory/x": True, "/a/file/x": False}
    Starting.of(_start(null, rootfs, mounts=mounts, directories=directories, process={"cwd": "/work/here"}))
    made = {str(path.relative_to(tree)): path.is_dir() for path in {*tree.rglob("*")} - before}
    assert made == {
        "sys": True, "a": True, "a/directory": True, "a/directory/x": True, "a/file": True, "a/file/x": False,
        "a/unknown": True, "b": True, "b/queue": True, "work": True, "work/here": True,
    }  # fmt: skip


def test_arguments_that_are_no_text(null: int, rootfs: int) -> None:
    assert Starting.of(_start(null, rootfs)).list_for(("a\0b",)) is None
