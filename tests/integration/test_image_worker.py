"""The processes that unpack layers: what rights they have, and what a layer can take of their memory and of ours."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import pytest_asyncio

from image.errors import InvalidImage
from image.settings import ImageSettings
from image.store import ImageStore
from image.unpack.workers import Workers
from tests import faulty_registry
from tests.faulty_registry import FaultyRegistry
from tests.images import build_image, entry, layer, write_layout
from tests.waiting import until

CONFINED = pytest.mark.trial(
    "unpack-worker",
    "What unpacks a layer is the first that the OOM killer takes, has bounds and no right but what unpacking takes.",
)
BOUNDED = pytest.mark.trial(
    "layer-memory", "What a small layer takes of the memory of crispd and of its worker is bounded: more is refused."
)
KEPT = (0, 1, 3, 4, 21, 27, 31)  # CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SYS_ADMIN, MKNOD, SETFCAP


@pytest_asyncio.fixture
async def store(tmp_path: Path) -> AsyncIterator[ImageStore]:
    settings = ImageSettings(image_layers="unpacked")  # the worker's root is the layer then
    opened = await ImageStore.open(tmp_path / "image", tmp_path / "registries.conf", settings)
    yield opened
    await opened.close()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs: thousands of files on a disk would measure the disk."""
    mounted = tmp_path / "place"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "layers", mounted], check=True)
    yield mounted
    subprocess.run(["umount", mounted], check=True)


@pytest_asyncio.fixture
async def quick_store(place: Path) -> AsyncIterator[ImageStore]:
    opened = await ImageStore.open(place / "image", place / "registries.conf")
    yield opened
    await opened.close()


def status(process: Path) -> dict[str, str]:
    lines = (process / "status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


@CONFINED
async def test_a_worker_has_only_what_it_needs(store: ImageStore, tmp_path: Path) -> None:
    built = build_image([layer(entry("x", os.urandom(400_000)))])
    (blob,) = (key for key in built.blobs if key != built.id)
    async with FaultyRegistry({"a:1": built}).running() as registry:
        registry.faults[registry.blob_path("a", blob)] = [faulty_registry.endless_wait]
        pull = asyncio.create_task(store.pull(f"{registry.host}/a:1"))
        try:
            await asyncio.to_thread(until, lambda: _working(tmp_path / "image/tmp"), 20)
            worker = _working(tmp_path / "image/tmp")
            assert worker is not None
            ours = status(Path("/proc/self"))
            wanted = sum(1 << number for number in KEPT) & int(ours["CapPrm"], 16)
            for task in (worker / "task").iterdir():
                found = status(task)
                sets = [int(found[f"Cap{name}"], 16) for name in ("Eff", "Prm", "Inh", "Amb")]
                assert sets == [wanted, wanted, 0, 0]
                assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2")
            assert (worker / "oom_score_adj").read_text() == "1000\n"
            for name in ("net", "ipc"):
                assert os.readlink(worker / "ns" / name) != os.readlink(f"/proc/self/ns/{name}")
            limits = (worker / "limits").read_text().splitlines()
            hard = {line[:26].strip(): line[26:].split()[1] for line in limits}
            assert (hard["Max data size"], hard["Max core file size"]) == (str(512 << 20), "0")
            assert int(hard["Max address space"]) <= 4 << 30
            assert int(hard["Max open files"]) <= 4096
        finally:
            pull.cancel()
            await asyncio.wait([pull])


def assert_nobody(worker: Path) -> None:
    for task in (worker / "task").iterdir():
        found = status(task)
        assert [found[f"Cap{name}"] for name in ("Eff", "Prm", "Inh", "Amb")] == ["0" * 16] * 4
        assert found["Uid"].split() == found["Gid"].split() == ["65533"] * 4
        assert (found["Groups"], found["NoNewPrivs"], found["Seccomp"]) == ("", "1", "2")


@CONFINED
async def test_a_worker_that_makes_a_layer_to_be_mounted_is_nobody(tmp_path: Path) -> None:
    built = build_image([layer(entry("x", os.urandom(400_000), uid=7), entry("y", type=tarfile.CHRTYPE, devmajor=1))])
    (blob,) = (key for key in built.blobs if key != built.id)
    place = tmp_path / "image"
    store = await ImageStore.open(place, tmp_path / "registries.conf", ImageSettings(image_layers="erofs"))
    async with FaultyRegistry({"a:1": built}).running() as registry:
        registry.faults[registry.blob_path("a", blob)] = [faulty_registry.endless_wait]
        pull = asyncio.create_task(store.pull(f"{registry.host}/a:1"))
        try:
            await asyncio.to_thread(until, lambda: _writing(place / "tmp/1/tar"), 20)
            (worker,) = _writing(place / "tmp/1/tar")
            assert_nobody(worker)
            assert (worker / "oom_score_adj").read_text() == "1000\n"
            assert set(os.listdir(worker / "root")) <= {"x"}  # a tmpfs
            files = {os.readlink(file) for file in (worker / "fd").iterdir()}
            there = {file for file in files if file.startswith(str(place))}
            assert {str(Path(file).relative_to(place)).partition("#")[0] for file in there} == {
                "tmp/1/tar", "tmp/1/index", "tmp/", "lock"
            }  # fmt: skip
        finally:
            pull.cancel()
            await asyncio.wait([pull])
            await store.close()


@CONFINED
async def test_a_worker_that_only_reads_and_writes_descriptors_is_nobody(tmp_path: Path) -> None:
    """It parses what others packed, too: an archive that is to be imported, or an index."""
    workers = Workers()
    source, sink = os.pipe()
    inflating = asyncio.create_task(workers.inflate(source, tmp_path / "plain"))
    try:
        await asyncio.to_thread(until, lambda: _writing(tmp_path / "plain"), 20)
        (worker,) = _writing(tmp_path / "plain")
        assert_nobody(worker)
    finally:
        os.close(sink)
        await inflating
        os.close(source)
        await workers.close()


def _writing(path: Path) -> list[Path]:
    """The confined processes that have a file open."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and process.name != str(os.getpid()):
            with suppress(OSError):
                files = {os.readlink(file) for file in (process / "fd").iterdir()}
                if str(path) in files and status(process)["Seccomp"] == "2":
                    found.append(process)
    return found


@CONFINED
async def test_a_worker_that_does_not_end_is_killed(store: ImageStore, tmp_path: Path) -> None:
    """It does nothing of its own accord: as one that an image took over might."""
    built = build_image([layer(entry("x", os.urandom(400_000)))])
    (blob,) = (key for key in built.blobs if key != built.id)
    async with FaultyRegistry({"a:1": built}).running() as registry:
        registry.faults[registry.blob_path("a", blob)] = [faulty_registry.endless_wait]
        pull = asyncio.create_task(store.pull(f"{registry.host}/a:1"))
        await asyncio.to_thread(until, lambda: _working(tmp_path / "image/tmp"), 20)
        worker = _working(tmp_path / "image/tmp")
        assert worker is not None
        assert b"PATH=" not in (worker / "environ").read_bytes()  # a proxy's password may be in the daemon's
        pidfd = os.pidfd_open(int(worker.name))
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
            pull.cancel()
            assert (await asyncio.to_thread(select.select, [pidfd], [], [], 60))[0]
        finally:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
            await asyncio.wait([pull])


def _working(directory: Path) -> Path | None:
    """The process, with both of its threads, whose root is a layer that is being made below `directory`."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(process / "cwd").startswith("/") and b"unpack.worker" in (process / "cmdline").read_bytes():
                inside = os.stat(process / "root").st_ino in {path.stat().st_ino for path in directory.iterdir()}
                if inside and len(os.listdir(process / "task")) == 3:
                    return process
        except OSError:
            continue
    return None


TRIES = """
import ctypes, errno, json, os, resource, signal, socket, stat, sys, threading
from image.unpack import confinement
from image.unpack.worker_filter import programs
filters, target, kind = programs(), int(sys.argv[2]), sys.argv[3]
libc = ctypes.CDLL(None, use_errno=True)
confinement.give_up()
root = confinement.enter(sys.argv[1]) if kind == "UNPACKS" else confinement.enter_skeleton()
confinement.close_in(getattr(confinement, kind), filters)
said = {}
def attempt(name, deed, *arguments):
    ctypes.set_errno(0)
    try:
        result = deed(*arguments)
        code = ctypes.get_errno() if result == -1 else 0
    except OSError as error:
        code = error.errno
    except MemoryError:
        code = errno.ENOMEM
    except ValueError:  # resource's word for it
        code = errno.EPERM
    said[name] = errno.errorcode.get(code, "done")
def everything():
    attempt("make a device", os.mknod, "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    attempt("make a disk", os.mknod, "disk", stat.S_IFBLK | 0o666, os.makedev(7, 0))
    if kind == "UNPACKS":
        attempt("open a device", os.open, "null", os.O_RDWR)
        attempt("open a disk", os.open, "disk", os.O_RDONLY)
    attempt("socket", socket.socket, socket.AF_INET)
    attempt("unix socket", socket.socket, socket.AF_UNIX)
    attempt("fork", os.fork)
    attempt("exec", os.execv, "/program", ["program"])
    attempt("signal", os.kill, target, 0)
    attempt("limit of another", resource.prlimit, target, resource.RLIMIT_CORE, (0, 0))
    attempt("raise a limit", resource.setrlimit, resource.RLIMIT_DATA, (1 << 40, 1 << 40))
    attempt("mount", libc.mount, b"none", b"/", b"tmpfs", 0, None)
    attempt("open_tree", libc.syscall, 428, root, b".", 1)
    attempt("unshare", libc.unshare, 0x10000000)
    attempt("setns", libc.setns, target, 0)
    attempt("ptrace", libc.ptrace, 16, target, 0, 0)
    attempt("bpf", libc.syscall, {"x86_64": 321}.get(os.uname().machine, 280), 0, 0, 0)
    attempt("chroot", os.chroot, ".")
    attempt("user", os.setuid, 1)
    attempt("a gigabyte", bytearray, 1 << 30)
    # And what one or the other has to do.
    attempt("a file", lambda: open("file", "w").close())
    attempt("chown", os.chown, "file", 1000, 1000)
    attempt("chmod", os.chmod, "file", 0o6755)
    attempt("trusted", os.setxattr, "file", "trusted.x", b"y")
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    attempt("capability", os.setxattr, "file", "security.capability", capability)
    attempt("link", os.link, "file", "other")
    attempt("whiteout", os.mknod, "white", stat.S_IFCHR, 0)
    attempt("directory", os.mkdir, "directory")
everything()
thread = threading.Thread(target=lambda: attempt("socket in a thread", socket.socket))
thread.start(); thread.join()
print(json.dumps(said))
"""


TREE = {"a file", "chmod", "link", "whiteout", "directory"}
OF_ROOT = TREE | {"make a device", "make a disk", "chown", "trusted", "capability"}


@CONFINED
@pytest.mark.parametrize(
    ("kind", "wanted"), [("UNPACKS", OF_ROOT), ("MAKES_A_SKELETON", TREE), ("HAS_DESCRIPTORS", set())]
)
def test_what_a_taken_over_worker_is_refused(kind: str, wanted: set[str], tmp_path: Path) -> None:
    (tmp_path / "layer").mkdir()
    command = [sys.executable, "-c", TRIES, str(tmp_path / "layer"), str(os.getpid()), kind]
    said = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    done = {name for name, outcome in said.items() if outcome == "done"}
    assert done == wanted
    assert {said[name] for name in said if name.startswith("open a ")} <= {"EACCES"}
    assert said["a gigabyte"] == "ENOMEM"
    assert {said[name] for name in said if name not in done} <= {"EACCES", "EPERM", "ENOMEM", "ENOSYS"}


def _deep(name: str) -> str:
    """A path of almost 4 KiB, in which a name of a directory is `name`."""
    return "/".join(("\x01" * 240,) * 15 + (name,))


def _records(name: str, value: str) -> tuple[tarfile.TarInfo, bytes]:
    info, content = entry("f", b"")
    info.pax_headers = {name: value}
    return info, content


BOMBS = {
    "implied": ([entry(f"{_deep(f'{n:06}' + chr(1) * 200)}/f", b"") for n in range(4400)], "bytes of paths"),
    "whited": ([entry(f"{_deep(f'{n:06}' + chr(1) * 200)}/.wh.f", b"") for n in range(4400)], "bytes of paths"),
    "headers": ([_records("SCHILY.xattr.user.x", "v" * (1 << 20))], "extended headers"),
    "names of attributes": (
        [entry("f", b"", xattrs={f"user.{n:0100}": "v" for n in range(700)})],
        "names of more than",
    ),
}


@BOUNDED
async def test_layers_that_would_take_memory(quick_store: ImageStore, tmp_path: Path) -> None:
    for name, (entries, says) in BOMBS.items():
        archive = write_layout(tmp_path / name, {"": build_image([layer(*entries)])})
        with pytest.raises(InvalidImage, match=says):
            await quick_store.import_archive(archive)
    assert os.listdir(tmp_path / "place/image/tmp") == []


@BOUNDED
async def test_a_great_many_directories_are_no_bomb(quick_store: ImageStore, tmp_path: Path) -> None:
    """What others say of a layer is short, though all of its paths are long: names that paths share are kept once."""
    here = [entry("/".join(("\x01" * 240,) * depth) + "/") for depth in range(1, 16)]
    entries = [*here, *(entry(f"{_deep(f'{n:06}' + chr(1) * 200)}/", mode=0o700) for n in range(4400))]
    layout = write_layout(tmp_path / "layout", {"": build_image([layer(*entries)])})
    (image,) = await quick_store.import_archive(layout)
    assert quick_store.layer_sizes(image)[0]["inodes"] == 4416
    await quick_store.remove(image.id)
    assert os.listdir(tmp_path / "place/image/layers") == ["0"]
