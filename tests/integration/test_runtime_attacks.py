"""What images and configurations have tried against runc, tried against crisp-oci (docs/security.md has the list)."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from linux import syscalls
from runtime.errors import RuntimeCoreError
from runtime.process.joining import Program
from runtime.process.labelling import write_labels
from runtime.process.labels import set_labels
from runtime.process.script import BASE, CHANNEL, Runner, Script
from runtime.rootfs.tree import Rootfs
from runtime.seccomp.passage import Passage
from runtime.spec import values as spec
from runtime.wire.reports import Undone, decode, encode
from tests.oci import PARENT, Bundle


def _mounts(bundle: Bundle, *mounts: dict[str, Any]) -> None:
    path = bundle.directory / "config.json"
    config = json.loads(path.read_text())
    config["mounts"] = list(mounts)
    path.write_text(json.dumps(config))


def _refused(bundle: Bundle, *words: str) -> None:
    done = bundle.call("run", "one", check=False)
    assert done.returncode == 1, done.stdout
    assert all(word in done.stderr for word in words), done.stderr


_DESCRIPTORS = range(3, 12)  # more than a start has open
_PROC = {"destination": "/proc", "type": "proc", "source": "proc"}
_DEV = {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]}


@pytest.mark.parametrize(("name", "kind"), [("proc", "proc"), ("sys", "sysfs")])
@pytest.mark.parametrize("target", ["elsewhere", "/elsewhere", "../../../elsewhere"])
def test_proc_and_sys_that_are_links(bundle: Bundle, name: str, kind: str, target: str) -> None:
    """CVE-2019-19921, CVE-2023-27561: with /proc somewhere else, masks and labels go to a directory of the image's."""
    (bundle.rootfs / "elsewhere").mkdir()
    (bundle.rootfs / name).symlink_to(target)
    bundle.configure("true")
    _mounts(bundle, _DEV, {"destination": f"/{name}", "type": kind, "source": kind})
    _refused(bundle, f"mount `{kind}` on `/{name}`", "symbolic links")
    assert not list((bundle.rootfs / "elsewhere").iterdir())


# With such a hook the container's mount namespace is a copy of the host's, where there is something to be reached.
_HOOK = {"createContainer": [{"path": "/bin/true"}]}


@pytest.mark.parametrize("hooks", [{}, _HOOK])
@pytest.mark.parametrize("link", ["{host}", "../../../../../../../../..{host}", "/proc/self/root{host}"])
def test_mount_points_that_are_links(bundle: Bundle, tmp_path: Path, link: str, hooks: dict[str, Any]) -> None:
    """CVE-2021-30465, CVE-2024-45310: a link in a volume makes a mount, or the making of its target, go to the host."""
    host = tmp_path / "host"
    host.mkdir()
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "way").symlink_to(link.format(host=host))
    (tmp_path / "file").write_text("mounted")
    bind = {"type": "bind", "options": ["bind"]}
    bundle.configure("true", hooks=hooks)
    _mounts(
        bundle, _PROC, _DEV,
        bind | {"destination": "/volume", "source": str(volume)},
        bind | {"destination": "/volume/way/made/file", "source": str(tmp_path / "file")},
        {"destination": "/volume/way/tmpfs", "type": "tmpfs", "source": "tmpfs"},
    )  # fmt: skip
    bundle.call("run", "one", check=False)  # there may be such a path inside, or not
    assert not list(host.iterdir())


def test_a_mount_point_that_becomes_a_link_meanwhile(bundle: Bundle, tmp_path: Path) -> None:
    """CVE-2021-30465, CVE-2024-45310, as a race: a container that shares the volume exchanges directory and link."""
    host = tmp_path / "host"
    host.mkdir()
    volume = tmp_path / "volume"
    (volume / "way").mkdir(parents=True)
    (volume / "link").symlink_to(host)
    bind = {"type": "bind", "options": ["bind"]}
    bundle.configure("true", hooks=_HOOK)
    _mounts(
        bundle, _PROC, _DEV,
        bind | {"destination": "/volume", "source": str(volume)},
        *({"destination": f"/volume/way/{n}/deep", "type": "tmpfs", "source": "tmpfs"} for n in range(20)),
    )  # fmt: skip
    with _exchanging(volume / "way", volume / "link") as exchanges:
        for _attempt in range(6):
            bundle.call("run", "one", check=False)
    assert exchanges[0] > 100
    assert not list(host.iterdir())


@contextlib.contextmanager
def _exchanging(one: Path, other: Path) -> Iterator[list[int]]:
    """Two names changed for each other over and over by another thread (renameat2, RENAME_EXCHANGE)."""
    count, stop = [0], threading.Event()

    def exchange() -> None:
        while not stop.is_set():
            syscalls.libc.renameat2(-100, os.fsencode(one), -100, os.fsencode(other), ctypes.c_uint(2))
            count[0] += 1

    thread = threading.Thread(target=exchange)
    thread.start()
    try:
        yield count
    finally:
        stop.set()
        thread.join()


def test_no_inheritable_capabilities(bundle: Bundle) -> None:
    """CVE-2022-29162: files with inheritable capabilities would give them to whom they were never meant for."""
    kept = ["CAP_KILL"]
    bundle.configure("sleep", "100", process={"capabilities": {"bounding": kept, "permitted": kept, "effective": kept}})
    bundle.create()
    status = bundle.call("exec", "--cap", "CAP_NET_RAW", "--user", "0", "one", "cat", "/proc/self/status").stdout
    seen = {line.split(":")[0]: int(line.split()[1], 16) for line in status.splitlines() if line.startswith("Cap")}
    assert seen["CapPrm"] == 1 << 5 | 1 << 13
    assert (seen["CapInh"], seen["CapAmb"]) == (0, 0)


def test_directories_of_the_host_that_are_still_open(bundle: Bundle) -> None:
    """CVE-2024-21626: a directory of the host that somebody left open, as working directory or program."""
    lowest = os.open("/", os.O_RDONLY)
    host = [lowest, *(os.dup(lowest) for _ in range(3))]
    try:
        for number in (*_DESCRIPTORS, *host):
            bundle.configure("ls", process={"cwd": f"/proc/self/fd/{number}"})
            done = bundle.call("run", "one", check=False, pass_fds=host)
            assert (done.returncode, done.stdout) == (1, ""), done.stdout
            assert "working directory" in done.stderr
        bundle.configure("sleep", "100")
        bundle.create()
        for number in (*_DESCRIPTORS, *host):
            done = bundle.call("exec", "--cwd", f"/proc/self/fd/{number}", "one", "ls", check=False, pass_fds=host)
            assert (done.returncode, done.stdout) == (255, ""), done.stdout
        done = bundle.call("exec", "one", f"/proc/self/fd/{lowest}/bin/busybox", "true", check=False, pass_fds=host)
        assert done.returncode == 255, done.stderr
    finally:
        for descriptor in host:
            os.close(descriptor)


def _link_to_core_pattern(path: Path) -> None:
    path.symlink_to("/proc/sys/kernel/core_pattern")


@pytest.mark.parametrize("forge", [_link_to_core_pattern, lambda path: path.write_text("mine"), os.mkfifo])
def test_a_null_device_that_is_none(bundle: Bundle, forge: Callable[[Path], object]) -> None:
    """CVE-2025-31133: what masks a path is bound from the container's /dev/null."""
    (bundle.rootfs / "dev").mkdir()
    forge(bundle.rootfs / "dev/null")
    bundle.configure("true", linux={"maskedPaths": ["/proc/kcore"]})
    _mounts(bundle, _PROC)
    _refused(bundle, "/dev/null")


@pytest.mark.parametrize("name", ["console", "pts/ptmx"])
def test_a_console_that_is_a_link(bundle: Bundle, name: str) -> None:
    """CVE-2025-52565: the terminal is mounted on, or taken from, what the image says, before anything is masked."""
    path = bundle.rootfs / "dev" / name
    path.parent.mkdir(parents=True)
    _link_to_core_pattern(path)
    bundle.configure("true", process={"terminal": True}, linux={"readonlyPaths": ["/proc/sys"]})
    devpts = {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance"]}
    _mounts(bundle, _PROC, *([devpts] if name == "console" else []))
    before = Path("/proc/sys/kernel/core_pattern").read_text()
    _refused(bundle, f"/dev/{name}")
    assert Path("/proc/sys/kernel/core_pattern").read_text() == before


def test_sysctls_do_not_go_to_a_forged_proc(bundle: Bundle, tmp_path: Path) -> None:
    """CVE-2025-52881: a write meant for /proc goes where a volume's links lead."""
    forged = tmp_path / "forged"
    (forged / "sys/net/ipv4").mkdir(parents=True)
    name = "sys/net/ipv4/ip_unprivileged_port_start"
    (forged / name).symlink_to("/proc/sys/kernel/core_pattern")
    before = Path("/proc/sys/kernel/core_pattern").read_text()
    bundle.configure("sleep", "100", linux={"sysctl": {"net.ipv4.ip_unprivileged_port_start": "77"}})
    _mounts(bundle, {"destination": "/proc", "type": "bind", "source": str(forged), "options": ["bind"]}, _DEV)
    pid = bundle.create()
    assert Path("/proc/sys/kernel/core_pattern").read_text() == before
    network = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    try:
        assert _in_child(lambda: _read_in(network, f"/proc/{name}")) == "77\n"
    finally:
        os.close(network)


rooted = pytest.mark.trial("links-of-images", "no link of an image or bundle leads a root, a mount or a mode elsewhere")


@rooted
@pytest.mark.parametrize("way", ["link", "below/rootfs", "below", "{}/link", "sub/../link"])
def test_a_root_that_is_a_link(bundle: Bundle, way: str) -> None:
    """The container would run in another directory of the host, or in the host's root."""
    (bundle.directory / "link").symlink_to("/")
    (bundle.directory / "below").symlink_to(".")
    (bundle.directory / "sub").mkdir()
    bundle.configure("true", root={"path": way.format(bundle.directory)})
    _refused(bundle, "root.path: ", "contains a symbolic link")


@rooted
@pytest.mark.parametrize("way", ["rootfs", "./sub/../rootfs/", "{}/rootfs"])
def test_a_root_by_a_bundle_that_is_a_link(bundle: Bundle, tmp_path: Path, way: str) -> None:
    """Which is as well with runc."""
    (bundle.directory / "sub").mkdir()
    (tmp_path / "way").symlink_to(bundle.directory)
    bundle.configure("true", root={"path": way.format(bundle.directory)})
    assert bundle.call("run", "--bundle", str(tmp_path / "way"), "one").returncode == 0


@rooted
@pytest.mark.parametrize(("mount", "target"), [
    ("dev", "/proc"), ("dev", "proc/sys"), ("run/it", "/proc/sys"), ("run/it", "/sys"), ("run/file", "/proc/cmdline"),
])  # fmt: skip
def test_a_mount_that_a_link_leads_onto_proc(bundle: Bundle, tmp_path: Path, mount: str, target: str) -> None:
    """What is masked below it would not be found any more, and could be uncovered later."""
    place = bundle.rootfs / mount
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(target)
    (tmp_path / "file").touch()
    bundle.configure("true", linux={"maskedPaths": ["/proc/kcore"]})
    sys = {"destination": "/sys", "type": "sysfs", "source": "sysfs"}
    over = {"destination": f"/{mount}", "type": "tmpfs", "source": "tmpfs"}
    if mount == "run/file":
        over = {"destination": f"/{mount}", "type": "bind", "source": str(tmp_path / "file"), "options": ["bind"]}
    _mounts(bundle, _PROC, sys, over)
    _refused(bundle, f"/{mount}", "symbolic links")
    place.unlink()
    (bundle.rootfs / "elsewhere").mkdir()
    place.symlink_to("../elsewhere" if "/" in mount else "elsewhere")
    _mounts(bundle, _PROC, sys, over | {"type": "tmpfs", "source": "tmpfs", "options": []})
    assert bundle.call("run", "one").returncode == 0  # other links lead mounts where they lead in the container


@rooted
def test_the_mode_of_a_device_does_not_go_to_what_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container that shares the root exchanges the node after it was looked at."""
    (tmp_path / "dev").mkdir()
    victim, node = tmp_path / "victim", tmp_path / "dev/null"
    victim.touch(0o600)
    os.mknod(node, 0o020000 | 0o600, os.makedev(1, 3))
    real_stat = os.stat

    def exchanging(name: str, **where: Any) -> os.stat_result:
        found = real_stat(name, **where)
        if name == "null":
            node.unlink()
            node.symlink_to("/victim")
        return found

    rootfs = Rootfs(os.open(tmp_path, os.O_PATH))
    monkeypatch.setattr(os, "stat", exchanging)
    rootfs._make_device(spec.Device(path="/dev/null", type="c", major=1, minor=3, file_mode=0o666))
    monkeypatch.undo()
    os.close(rootfs.root)
    assert victim.stat().st_mode & 0o777 == 0o600
    assert (node.lstat().st_mode, node.lstat().st_rdev) == (0o020666, os.makedev(1, 3))


@rooted
def test_a_device_of_the_images_gets_its_mode(bundle: Bundle) -> None:
    (bundle.rootfs / "dev").mkdir()
    os.mknod(bundle.rootfs / "dev/null", 0o020000, os.makedev(1, 3))
    bundle.configure("sh", "-c", "ls -l /dev/null /dev/zero; umask")
    _mounts(bundle, _PROC)
    lines = bundle.call("run", "one").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["crw-rw-rw-", "crw-rw-rw-", "0022"]


def _read_in(network: int, path: str) -> str:
    syscalls.setns(network, syscalls.CLONE_NEWNET)
    return Path(path).read_text()


def _a_tmpfs(place: str, _pid: int) -> None:
    syscalls.mount("tmpfs", place, "tmpfs", 0)
    Path("/proc/thread-self/attr/apparmor").mkdir(parents=True)
    for name in ("exec", "apparmor/exec"):
        Path("/proc/thread-self/attr", name).touch()
    assert os.stat("/proc").st_ino == 1  # a tmpfs's root, too


def _bound(source: str, target: str) -> Callable[[str, int], None]:
    def cover(place: str, pid: int) -> None:
        syscalls.mount(source, f"{place}/{target.replace('PID', str(pid))}", None, syscalls.MS_BIND)

    return cover


def _linked(_place: str, _pid: int) -> None:
    syscalls.mount("tmpfs", "/mnt", "tmpfs", 0)
    os.symlink("/proc", "/mnt/proc")
    syscalls.mount("/mnt", "/", None, syscalls.MS_BIND)
    os.chroot("/mnt")


_FORGERIES = {
    "another file system": (_a_tmpfs, "/proc is not a proc file system"),
    "a link": (_linked, "Not a directory"),
    "a directory of another process": (_bound("/proc/1", "PID"), "Invalid cross-device link"),
    "another file of it": (_bound("/proc/sys/kernel/core_pattern", "PID/task/PID/attr/exec"), "cross-device"),
    "the very file, mounted": (_bound("/proc/self/attr/current", "PID/task/PID/attr/exec"), "cross-device"),
    "a part of it": (_bound("/proc/sys", ""), "No such file"),
    "none": (lambda _place, _pid: None, "Invalid argument"),  # no security module takes it
}


@pytest.mark.trial("covered-proc", "a label is asked for by a file of a whole proc file system, or not at all")
@pytest.mark.parametrize("way", ["openat2", "openat", "list"])
@pytest.mark.parametrize("forgery", _FORGERIES)
def test_labels_do_not_go_to_a_forged_proc(forgery: str, way: str) -> None:
    """CVE-2019-16884, CVE-2025-52881: the process would run without the label that it was to have."""
    forge, reason = _FORGERIES[forgery]
    if way == "list" and forge is _linked:
        pytest.skip("the link is in the root directory of the process that makes it")
    process = spec.Process("/", ("true",), selinux_label="mine")

    class OfOldKernel(Passage):
        def call(self, name: str, *arguments: Any, about: str = "") -> int:
            if name == "openat2":
                raise OSError(errno.ENOSYS, "as before Linux 5.6")
            return super().call(name, *arguments, about=about)

    def attempt() -> str:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
        if way == "list":
            return _labelled_by_list(process, forge)
        forge("/proc", os.getpid())
        passage = Passage() if way == "openat2" else OfOldKernel()
        try:
            set_labels(process, passage)
        except RuntimeCoreError as error:
            return str(error)
        return "written"

    before = Path("/proc/sys/kernel/core_pattern").read_text()
    assert reason in _in_child(attempt)
    assert Path("/proc/sys/kernel/core_pattern").read_text() == before


def _labelled_by_list(process: spec.Process, forge: Callable[[str, int], None]) -> str:
    """Return why the program of lists did not write the label of a process whose /proc was forged."""
    script = Script()
    script.call("close_range", CHANNEL + 1, 2**32 - 1, 0, about=None)
    write_labels(script, process, CHANNEL + 1)
    script.call("exit_group", 0, about=None)
    script.end()
    script.on_failure()
    script.call("write", CHANNEL, BASE, len(encode(Undone(0, 0))), about=None)
    script.call("exit_group", 1, about=None)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        pid, _pidfd = Runner().spawn((0, 1, 2, theirs.fileno()))
        forge("/proc", pid)
        ours.send(script.finished())
        theirs.close()
        report = decode(ours.recv(100))
    os.waitpid(pid, 0)
    return str(Program(b"", script.names).failure(report)) if isinstance(report, Undone) else "written"


def _in_child(work: Callable[[], str]) -> str:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, work().encode())
        except BaseException as error:
            os.write(writer, repr(error).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        told = file.read()
    os.waitpid(pid, 0)
    return told


def test_a_user_that_is_none_is_not_root(bundle: Bundle) -> None:
    """(uid_t)-1 says "as before" to setresuid(2), and before is root."""
    bundle.configure("id", process={"user": {"uid": 2**32 - 1, "gid": 0}})
    _refused(bundle, "process.user.uid: expected an integer between 0 and 4294967294")
    bundle.configure("sleep", "100")
    bundle.create()
    for user in ("4294967295", "1:4294967295"):
        done = bundle.call("exec", "--user", user, "one", "id", check=False)
        assert (done.returncode, done.stdout) == (255, "")


def test_the_cgroup_of_others_is_not_taken(bundle: Bundle) -> None:
    """What is in a container's cgroup is killed with it."""
    bundle.configure("sleep", "100", linux={"cgroupsPath": f"{PARENT}/shared/below"})
    bundle.create()
    bundle.call("start", "one")
    for path in (f"{PARENT}/shared/below", f"{PARENT}/shared"):
        bundle.configure("true", linux={"cgroupsPath": path})
        done = bundle.call("run", "two", check=False)
        assert f"cgroup is not empty: 1 process(es) found in `{path}`" in done.stderr
        assert bundle.status() == "running"
