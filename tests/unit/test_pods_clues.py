"""Clues from the machine: a denied file in layers and volumes, a port in words, kills in the kernel's log."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from linux.tables import OVERLAY_OPAQUE
from pods.clues import denials, files, kernel_log, ports

_USER = 4_000_000  # nobody's


def _document(*mounts: dict[str, Any], **process: Any) -> dict[str, Any]:
    return {"process": {"user": {"uid": _USER, "gid": _USER}, **process}, "mounts": mounts}


def _bind(destination: str, source: Path, **more: Any) -> dict[str, Any]:
    return {"destination": destination, "type": "bind", "source": str(source), **more}


def _made(path: Path, mode: int = 0o755) -> Path:
    path.mkdir(parents=True)
    path.chmod(mode)
    return path


def _told(path: str, document: dict[str, Any], *root: Path, runs: bool = False) -> str:
    return files.denied(f"starting\nsh: 1: open '{path}': Permission denied\nbye", document, root, runs=runs)


def test_the_directory_that_denies_is_named_through_layers_volumes_and_links(tmp_path: Path) -> None:
    upper, lower, volume = _made(tmp_path / "upper"), _made(tmp_path / "lower"), _made(tmp_path / "volume", 0o700)
    _made(lower / "srv/site", 0o700)
    _made(lower / "gone", 0o700)
    _made(lower / "hidden/inner", 0o700)
    _made(lower / "opened", 0o700)
    _made(upper / "opened", 0o777)
    os.mknod(upper / "gone", stat.S_IFCHR)
    os.setxattr(_made(upper / "hidden"), OVERLAY_OPAQUE, b"y")
    (upper / "link").symlink_to("/srv/../mnt")
    (lower / "out").symlink_to("../../../../../../../../../../mnt/x")
    (upper / "loop").symlink_to("loop")
    document = _document(_bind("/mnt", volume), {"destination": "/proc", "type": "proc"},
                         _bind("/mapped", volume, uidMappings=[{}]))  # fmt: skip
    owner = f"belongs to {os.getuid()}:{os.getgid()} and has mode 0700; the container runs as {_USER}:{_USER}"
    mounted = f"`/mnt` (on the node it is `{volume}`)"
    for path, denies in (
        ("/srv/site/index.html", "`/srv/site`"),
        ("/srv/site", "`/srv/site`"),
        ("/mnt/f", mounted),
        ("/mnt", mounted),
        ("/link/f", mounted),
        ("/out", mounted),
    ):
        assert _told(path, document, upper, lower) == f"{denies} {owner}", path
    for path in ("/opened/new", "/hidden/inner/f", "/loop/f", "/no/such/thing", "/gone/x", "relative/path"):
        assert _told(path, document, upper, lower) == "", path
    for path in ("/proc/x", "/mapped/f"):
        with pytest.raises(FileNotFoundError):
            _told(path, document, upper, lower)
    assert "`/srv` belongs to" in _told("/srv/new", document, upper, lower)  # where it would be made


def test_the_file_system_that_is_full_is_found_through_links(tmp_path: Path) -> None:
    upper, volume = _made(tmp_path / "upper"), _made(tmp_path / "volume")
    (upper / "data").symlink_to("/dev/shm/d")
    (volume / "above").symlink_to("../x")
    document = _document({"destination": "/dev", "type": "tmpfs"}, _bind("/dev/shm", Path("/dev/shm"), uidMappings=[1]),
                         _bind("/mnt/v", volume), _bind("/mnt", volume))  # fmt: skip

    def told(path: str) -> str:
        return files.full(f"write {path}: no space left on device", document, [upper])

    memory = os.statvfs("/dev/shm")
    size = memory.f_blocks * memory.f_frsize
    shown = f"{size >> 20} MiB" if size >= 1 << 30 else f"{size >> 10} KiB"
    assert told("/dev/shm/d").startswith(f"the file system of `/dev/shm` has {shown}, of which ")
    assert told("/var/x").startswith("the file system of `/` has ")
    assert told("/mnt/v/x/y").startswith("the file system of `/mnt/v` has ")
    for unknown in ("/dev/x", "/data/x", "/mnt/v/above/x"):  # not that of `/`
        with pytest.raises(FileNotFoundError):
            told(unknown)


def test_an_image_of_many_deep_layers_does_not_use_up_descriptors(tmp_path: Path) -> None:
    layers = [_made(tmp_path / str(number)) for number in range(40)]
    for layer in layers:
        _made(layer / "/".join("d" * 60))
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="too many directories"):
        _told("/" + "d/" * 60 + "f", _document(), *layers)
    assert set(os.listdir("/proc/self/fd")) == before


def test_owner_and_mode_are_told_only_where_they_bind(tmp_path: Path) -> None:
    (tmp_path / "file").touch(0o644)
    tmp_path.chmod(0o755)
    assert "mode 0644" in _told("/file", _document(), tmp_path)
    assert _told("/file", _document(user={"uid": os.getuid(), "gid": 0}), tmp_path) == ""
    groups = _document(user={"uid": _USER, "gid": _USER, "additionalGids": [_USER, 7]})
    assert _told("/file", groups, tmp_path).endswith(f"the container runs as {_USER}:{_USER} and groups 7")
    lost = {"capabilities": {"effective": ["CAP_DAC_OVERRIDE"]}}
    assert "mode 0644" in _told("/file", _document(**lost), tmp_path)
    mighty = {"capabilities": {"ambient": ["CAP_DAC_OVERRIDE"]}}
    assert _told("/file", _document(**mighty), tmp_path) == ""
    assert "mode 0644" in _told("/file", _document(**mighty), tmp_path, runs=True)  # nobody may run it
    assert _told("/file", _document() | {"linux": {"namespaces": [{"type": "user"}]}}, tmp_path) == ""


@pytest.mark.parametrize(
    ("words", "command", "declared"),
    [
        ("listen tcp 0.0.0.0:{}: bind: address already in use", (), ()),
        ("12:05:53 Error: listen EADDRINUSE: address already in use :::{}", (), ()),
        ("OSError: [Errno 98] attempting to bind on address ('0.0.0.0', {}): address already in use", (), ()),
        ("Something is already running: port {} is in use", (), ()),
        ("bind: Address already in use", ("serve", "--workers=4", "--listen=:{}"), ()),
        ("bind: Address already in use", ("PORT={}",), ()),
        ("bind: Address already in use", ("serve", "80x{}"), ("{}",)),
    ],
)
def test_the_port_is_found_in_words_or_command_or_declaration(
    words: str, command: tuple[str, ...], declared: tuple[str, ...]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        numbers = [int(one.format(port)) for one in declared]
        found = ports.holder(words.format(port), [one.format(port) for one in command], numbers, "self", "")
        assert found is not None
        assert (found.port, found.pid) == (port, os.getpid())


def test_nothing_is_said_of_a_port_that_is_not_clear() -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        first, second = one.getsockname()[1], other.getsockname()[1]
        for words, command in (
            ("bind: Address already in use", ()),
            ("bind: Address already in use", (str(first), str(second))),
            ("bind /run/x.sock: address already in use", (str(first),)),
            (f"cannot reach :{first}", ()),
        ):
            assert ports.holder(words, command, (), "self", "") is None, words
        words = f"bind :{first}: address already in use"
        assert ports.holder(words, (), (), "self", "/proc/self/ns/mnt") is None  # the pid is another's by now


_ID = "15d9" * 16
_KILL = "oom-kill:constraint={},nodemask=(null),cpuset=x,mems_allowed=0,{},task_memcg={},task={},pid=9,uid=0"


def _kill(limited: str, group: str, name: str = "tail") -> bytes:
    return b"6,1,10000000,-;%s\n" % _KILL.format("CONSTRAINT_MEMCG", limited, group, name).encode()


def test_killed_processes_are_those_of_the_container() -> None:
    own, other = f"/pods/p/crisp-{_ID}.scope", f"/pods/p/{'ab' * 32}"
    limit, above = f"oom_memcg={own}", "oom_memcg=/pods/p"
    for records, told in (
        ([_kill(limit, own, "ta,il")], "the kernel killed 'ta,il': the container's limit was reached"),
        ([_kill(above, own)], "the kernel killed 'tail': the limit of its pod was reached"),
        ([_kill("oom_memcg=/pods", own)], "the kernel killed 'tail': the limit of the cgroup '/pods' was reached"),
        ([_kill("global_oom", own)], f"the kernel killed 'tail': {kernel_log.NODE_FULL}"),
        ([_kill(limit, own, "sh"), b"6,2,1,-;else\n", b"", _kill(limit, own)],
         "the kernel killed 'sh', 'tail': the container's limit was reached"),
        ([_kill(above, other)], ""),  # another container of the pod
    ):  # fmt: skip
        assert kernel_log.told_by(records, _ID, [_ID]) == told
    assert kernel_log.told_by([_kill(limit, own)], _ID, [_ID], since=60_000_000_000) == ""


def test_a_kill_that_another_container_forges_is_not_told() -> None:
    """One may write to the log, another may make cgroups within its own, with any name."""
    own, other = f"/pods/p/{_ID}", f"/pods/q/{'ab' * 32}"
    written = _kill(f"oom_memcg={own}", own).replace(b"6,", b"14,", 1)
    within = _kill(f"oom_memcg={other}", f"{other}/{_ID}")
    named = _kill(f"oom_memcg={other}", f"{other}/x,oom_memcg={own},task_memcg={own},task=tail,pid=1,uid=0")
    for record in (written, within, named):
        assert kernel_log.told_by([record], _ID, [_ID, "ab" * 32]) == ""
    on_node_in_container = _kill(f"oom_memcg={own}", f"/{'cd' * 32}{own}/x")
    nested = kernel_log.told_by([on_node_in_container], _ID, [_ID])
    assert nested == "the kernel killed 'tail': the container's limit was reached"


def test_a_holder_is_in_the_outermost_known_cgroup() -> None:
    node, own, forged = "cd" * 32, _ID, "ab" * 32
    ids = ports.ids_of(f"0::/docker/{node}/pods/p/{own}/{forged}\n")
    assert ports.first_known(ids, [own, forged]) == own


def test_a_kernel_log_that_cannot_be_read_tells_nothing(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(_kill("global_oom", f"/pods/{_ID}"))  # it is no kernel that tells this
    assert [kernel_log.killed(_ID, [_ID], log=log) for log in (tmp_path, tmp_path / "none", other)] == ["", "", ""]


_LABEL = "system_u:system_r:container_t:s0:c1,c2"


def _denial(about: str, who: str = _LABEL, whom: str = "object_r:var_t:s0", more: str = "0", at: int = 90) -> str:
    told = f"audit({at}.125:7): avc:  denied  {{ read open }} for  pid=7 {about} scontext={who} tcontext={whom}"
    return f"{told} tclass=file permissive={more}"


def test_what_selinux_denied_to_a_label_is_told() -> None:
    named = 'comm="cat" name="data" dev="vda" ino=7'
    told = f"SELinux denied `read open` of a file (`data`) labelled object_r:var_t:s0 to {_LABEL}"
    words = "cat: /v/data: Permission denied"
    for head in ("audit: type=1400 ", "type=AVC msg="):
        assert denials.told_by([head + _denial(named, at=80), head + _denial(named)], _LABEL, 85, words) == told
        transition = _denial("comm=sh", "crio_t:s0", _LABEL).replace("=file", "=process")
        transition = denials.told_by([head + transition], _LABEL, 0, words)
        assert transition.endswith(f"{_LABEL} to crio_t:s0")
        for other in (
            head + _denial(named, who=f"{_LABEL}3"),
            head + _denial(named, more="1"),  # it was let through
            head + _denial(named, at=70),
            head + _denial('comm="cat" name="else"'),
            f"type=USER_AVC msg=audit(90.1:8): pid=9 msg='{head}{_denial(named)}'",  # a program said so
        ):
            assert denials.told_by([other], _LABEL, 85, words) == ""


def test_the_kernel_is_told_from_who_else_writes_to_its_log() -> None:
    records = [b"5,1,9,-;by the kernel\n SUBSYSTEM=x\n", b"13,2,9,-;by a program\n"]
    assert list(kernel_log.texts(records)) == ["by the kernel"]


@pytest.mark.skipif(os.geteuid() != 0, reason="labels take root")
def test_a_label_that_is_not_for_the_container_is_told(tmp_path: Path) -> None:
    own, upper, volume = "u:object_r:container_file_t:s0:c1,c2", tmp_path / "upper", tmp_path / "volume"
    document = {"linux": {"mountLabel": own}, "mounts": [_bind("/v", volume)]}
    for made in (upper / "image", volume / "d"):
        made.mkdir(parents=True)
    (volume / "d/f").write_text("")
    told: dict[str, str] = {}
    for what, labels in {
        "shared": ("container_file_t:s0", "container_file_t:s0:c2", "container_file_t:s0:c1,c2"),
        "type": ("container_file_t:s0", "var_t:s0", "container_file_t:s0"),
        "level": ("container_file_t:s0", "container_file_t:s0", "container_file_t:s0:c1,c3"),
    }.items():
        for path, label in zip((volume, volume / "d", volume / "d/f"), labels, strict=True):
            os.setxattr(path, "security.selinux", f"u:object_r:{label}".encode())
        told[what] = files.foreign("cat: can't open '/v/d/f': Permission denied", document, [upper])
    assert told == {
        "shared": "",
        "type": f"`/v/d` is labelled u:object_r:var_t:s0, and the container's own files {own}",
        "level": f"`/v/d/f` is labelled u:object_r:container_file_t:s0:c1,c3, and the container's own files {own}",
    }
    assert files.foreign("sh: /image: Permission denied", document, [upper]) == ""
    assert files.foreign("sh: /v/d/f: Permission denied", {**document, "linux": {}}, [upper]) == ""
