"""crisp-oci where only this machine can try it: criu works on its kernel, and its systemd is PID 1."""

from __future__ import annotations

import array
import os
import socket
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests import leaks
from tests.oci import PARENT, Bundle
from tests.vm.inside.node import left_since, systemctl
from tests.waiting import until

MIB = 1 << 20
_until = partial(until, seconds=30.0, pause=0.05)
COUNTING = "i=0; while :; do i=$((i+1)); echo $i >/tmp/new; mv /tmp/new /tmp/count; echo $i; sleep 0.05; done"
MOUNTS = [
    {"destination": "/proc", "type": "proc", "source": "proc"},
    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
    {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"]},
    {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue"},
    {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
    {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]},
    {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
]
LINUX = {
    "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network", "cgroup")],
    "maskedPaths": ["/proc/kcore", "/sys/firmware"],
    "readonlyPaths": ["/proc/sys"],
    "resources": {"memory": {"limit": 64 * MIB}},
}


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Bundle]:
    before = leaks.Snapshot.take()
    made = Bundle.make(tmp_path)
    (made.rootfs / "bin/mv").symlink_to("busybox")
    yield made
    made.delete()
    assert left_since(before) == []


def _configure(bundle: Bundle, *args: str, process: dict[str, Any] | None = None, **linux: object) -> None:
    volume = bundle.directory.parent / "volume"
    volume.mkdir(exist_ok=True)
    (volume / "file").write_text("the host's\n")
    binds = [
        {"destination": "/data", "type": "bind", "source": str(volume), "options": ["rbind", "ro"]},
        {"destination": "/etc/one", "type": "bind", "source": str(volume / "file"), "options": ["bind"]},
    ]
    bundle.configure(*args, mounts=[*MOUNTS, *binds], linux=LINUX | linux, process=process or {})


def _inside(bundle: Bundle, *command: str) -> str:
    return bundle.call("exec", "one", *command).stdout.strip()


def _count(bundle: Bundle) -> int:
    return int(_inside(bundle, "cat", "/tmp/count"))


def _mounts(bundle: Bundle) -> list[tuple[str, ...]]:
    """Where, what, and whether it can be written to. criu puts some in another order."""
    lines = [line.split() for line in _inside(bundle, "cat", "/proc/mounts").splitlines()]
    return sorted((point, kind, options.split(",")[0]) for _source, point, kind, options, *_rest in lines)


def _started(bundle: Bundle, *flags: str) -> None:
    bundle.create(flags=flags)
    bundle.call("start", "one")
    _until(lambda: bundle.output().count("\n") > 5)


def _restore(bundle: Bundle, *arguments: str, flags: tuple[str, ...] = ()) -> None:
    """With streams that are files, as `create` has them."""
    with open(bundle.directory.parent / "output", "ab") as output:
        command = bundle.command(*flags, "restore", "--detach", *arguments, "one")
        subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=bundle.directory, check=True
        )


def _cgroup(bundle: Bundle, name: str) -> str:
    path = Path(f"/proc/{bundle.state()['pid']}/cgroup").read_text().strip().removeprefix("0::")
    return (Path("/sys/fs/cgroup") / path.lstrip("/") / name).read_text().strip()


def test_a_container_is_checkpointed_and_goes_on_where_it_was(bundle: Bundle) -> None:
    _configure(bundle, "sh", "-c", COUNTING)
    _started(bundle)
    mounts = _mounts(bundle)
    bundle.call("checkpoint", "--image-path", "../images", "one")
    assert not (bundle.root / "one").exists()
    counted = int(bundle.output().splitlines()[-1])
    assert not Path(f"/sys/fs/cgroup{PARENT}/one").exists()

    pid_file = bundle.directory.parent / "restored"
    _restore(bundle, "--image-path", "../images", "--pid-file", str(pid_file))
    state = bundle.state()
    assert (state["status"], state["pid"]) == ("running", int(pid_file.read_text()))
    assert _count(bundle) >= counted
    assert _inside(bundle, "hostname") == "alone"
    assert _inside(bundle, "cat", "/data/file", "/etc/one") == "the host's\nthe host's"
    assert _mounts(bundle) == mounts
    assert _inside(bundle, "cat", "/proc/self/cgroup") == "0::/"
    assert _cgroup(bundle, "memory.max") == str(64 * MIB)
    # Nothing was written twice or lost: the file that was its output is so again.
    _until(lambda: int(bundle.output().splitlines()[-1]) > counted + 2)
    lines = [int(line) for line in bundle.output().splitlines()]
    assert lines == list(range(1, len(lines) + 1))


def test_a_running_container_is_checkpointed_twice(bundle: Bundle) -> None:
    """First its memory alone, then what has changed since; it goes on, and is also what comes of its images."""
    _configure(bundle, "sh", "-c", COUNTING)
    _started(bundle)
    bundle.call("checkpoint", "--pre-dump", "--image-path", "../first", "one")
    assert bundle.status() == "running"
    second = ("--image-path", "../second", "--parent-path", "../first")
    bundle.call("checkpoint", "--leave-running", *second, "one")
    counted = _count(bundle)
    _until(lambda: _count(bundle) > counted)
    bundle.delete()
    ended = int(bundle.output().splitlines()[-1])
    _restore(bundle, "--image-path", "../second")
    _until(lambda: int(bundle.output().splitlines()[-1]) > ended)
    lines = [int(line) for line in bundle.output().splitlines()]
    (again,) = [at for at in range(1, len(lines)) if lines[at] <= lines[at - 1]]  # where the images begin
    assert lines[again - 1] == ended
    assert lines[again:] == list(range(lines[again], lines[-1] + 1))


def _master(listener: socket.socket) -> int:
    with listener.accept()[0] as connection:
        _data, ancillary, _flags, _address = connection.recvmsg(64, socket.CMSG_LEN(4))
    return int(array.array("i", ancillary[0][2])[0])


def _shown(master: int, wanted: bytes) -> None:
    shown = b""
    while wanted not in shown:
        shown += os.read(master, 1000)


def test_a_terminal_is_restored(bundle: Bundle) -> None:
    _configure(bundle, "sh", "-c", "echo first; while read line; do echo got $line; done", process={"terminal": True})
    path = str(bundle.directory / "console")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        bundle.create("--console-socket", path)
        master = _master(listener)
        bundle.call("start", "one")
        _shown(master, b"first\r\n")
        bundle.call("checkpoint", "--image-path", "../images", "one")
        os.close(master)
        _restore(bundle, "--image-path", "../images", "--console-socket", path)
        master = _master(listener)
    os.write(master, b"typed\n")
    _shown(master, b"got typed\r\n")
    os.close(master)


def test_images_that_are_none_and_then_in_the_foreground(bundle: Bundle) -> None:
    """A failed restore leaves nothing but criu's log; one in the foreground ends as the container does."""
    _configure(bundle, "sh", "-c", "while [ ! -e /end ]; do echo; sleep 0.05; done; exit 7")
    _started(bundle)
    bundle.call("checkpoint", "--image-path", "../images", "one")
    tree = bundle.directory.parent / "images/pstree.img"
    saved = tree.read_bytes()
    tree.write_bytes(b"none of criu's")
    done = bundle.call("restore", "--detach", "--image-path", "../images", "one", check=False)
    assert done.returncode == 1
    assert "criu failed: " in done.stderr
    assert "does not exist" in bundle.call("state", "one", check=False).stderr
    assert not Path(f"/sys/fs/cgroup{PARENT}/one").exists()

    tree.write_bytes(saved)
    (bundle.rootfs / "end").touch()
    with open(bundle.directory.parent / "output", "ab") as output:
        command = bundle.command("restore", "--image-path", "../images", "one")
        ended = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=bundle.directory)
    assert ended.returncode == 7, bundle.output()
    assert not (bundle.root / "one").exists()


def test_a_scope_of_this_systemd(bundle: Bundle) -> None:
    """--systemd-cgroup through a container's life, a checkpoint included."""
    flag = "--systemd-cgroup"
    _configure(bundle, "sh", "-c", COUNTING, cgroupsPath="system.slice:crisp:one")
    _started(bundle, flag)
    unit = ("--property=ActiveState,MemoryMax,Slice,Delegate", "--value", "crisp-one.scope")
    assert systemctl("show", *unit).split() == ["system.slice", "yes", str(64 * MIB), "active"]
    bundle.call(flag, "update", "--memory", str(96 * MIB), "one")
    systemctl("daemon-reload")
    assert systemctl("show", "--property=MemoryMax", "--value", "crisp-one.scope") == str(96 * MIB)
    assert _cgroup(bundle, "memory.max") == str(96 * MIB)
    counted = _count(bundle)
    bundle.call("checkpoint", "--image-path", "../images", "one")
    assert systemctl("show", "--property=LoadState", "--value", "crisp-one.scope") == "not-found"
    _restore(bundle, "--image-path", "../images", flags=(flag,))
    assert systemctl("show", *unit).split() == ["system.slice", "yes", str(64 * MIB), "active"]
    assert _count(bundle) >= counted
    bundle.delete()
    assert systemctl("show", "--property=LoadState", "--value", "crisp-one.scope") == "not-found"
