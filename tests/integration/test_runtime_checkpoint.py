"""crisp-oci's `checkpoint` and `restore`. The guest tries them with systemd, and on a kernel that tracks memory."""

from __future__ import annotations

import array
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import counting
from tests.counting import MIB, wait_until
from tests.criu import on_path
from tests.oci import PARENT, REPOSITORY, Bundle, cgroup_file


@pytest.fixture(autouse=True)
def _criu() -> Iterator[None]:
    with on_path():
        yield


def _has_cgroup() -> bool:
    return any(Path("/sys/fs/cgroup").glob(f"*{PARENT}/one"))


def test_a_container_is_checkpointed_and_goes_on_where_it_was(bundle: Bundle) -> None:
    counting.configure(bundle, "sh", "-c", counting.SCRIPT)
    counting.start(bundle)
    mounts = counting.mounts(bundle)
    bundle.call("checkpoint", "--image-path", "../images", "one")
    assert not (bundle.root / "one").exists()
    assert not _has_cgroup()
    counted = counting.lines(bundle)[-1]

    pid_file = bundle.directory.parent / "restored"
    counting.restore(bundle, "--image-path", "../images", "--pid-file", str(pid_file))
    state = bundle.state()
    assert (state["status"], state["pid"]) == ("running", int(pid_file.read_text()))
    assert counting.count(bundle) >= counted
    assert counting.inside(bundle, "hostname") == "alone"
    assert counting.inside(bundle, "cat", "/data/file", "/etc/one") == "the host's\nthe host's"
    assert counting.mounts(bundle) == mounts
    assert cgroup_file("memory.limit_in_bytes") == str(64 * MIB)
    # Nothing was written twice or lost: the file that was its output is so again.
    wait_until(lambda: counting.lines(bundle)[-1] > counted + 2)
    lines = counting.lines(bundle)
    assert lines == list(range(1, len(lines) + 1))


def test_a_container_runs_on_and_is_also_what_comes_of_its_images(bundle: Bundle) -> None:
    counting.configure(bundle, "sh", "-c", counting.SCRIPT)
    counting.start(bundle)
    bundle.call("checkpoint", "--leave-running", "--image-path", "../images", "one")
    assert bundle.status() == "running"
    counted = counting.count(bundle)
    wait_until(lambda: counting.count(bundle) > counted)
    bundle.delete()
    ended = counting.lines(bundle)[-1]
    counting.restore(bundle, "--image-path", "../images")
    wait_until(lambda: counting.lines(bundle)[-1] > ended)
    lines = counting.lines(bundle)
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
    script = "echo first; while read line; do echo got $line; done"
    counting.configure(bundle, "sh", "-c", script, process={"terminal": True})
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
        counting.restore(bundle, "--image-path", "../images", "--console-socket", path)
        master = _master(listener)
    os.write(master, b"typed\n")
    _shown(master, b"got typed\r\n")
    os.close(master)


def test_images_that_are_none_and_then_in_the_foreground(bundle: Bundle) -> None:
    """A failed restore leaves nothing but criu's log; one in the foreground ends as the container does."""
    counting.configure(bundle, "sh", "-c", "while [ ! -e /end ]; do echo; sleep 0.05; done; exit 7")
    counting.start(bundle)
    bundle.call("checkpoint", "--image-path", "../images", "one")
    tree = bundle.directory.parent / "images/pstree.img"
    saved = tree.read_bytes()
    tree.write_bytes(b"none of criu's")
    done = bundle.call("restore", "--detach", "--image-path", "../images", "one", check=False)
    assert done.returncode == 1
    assert "criu failed: " in done.stderr
    assert "does not exist" in bundle.call("state", "one", check=False).stderr
    assert not _has_cgroup()

    tree.write_bytes(saved)
    (bundle.rootfs / "end").touch()
    with open(bundle.directory.parent / "output", "ab") as output:
        ended = subprocess.run(
            bundle.command("restore", "--image-path", "../images", "one"),
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=bundle.directory,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        )  # fmt: skip
    assert ended.returncode == 7, bundle.output()
    assert not (bundle.root / "one").exists()
