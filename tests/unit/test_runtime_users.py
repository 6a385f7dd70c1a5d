"""Users and groups are looked up inside the rootfs, whatever the image put there."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.process.users import UserNotFound, resolve
from runtime.wire.calls import Identity

_PASSWD = """\
root:x:0:0:root:/root:/bin/sh
broken line
web:x:33:34:web:/srv/www:/bin/false
letters:x:abc:1:::
"""
_GROUP = "root:x:0:\nstaff:x:50:web,other\nlog:x:60:web\nodd:x:letters:web\n"


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(_PASSWD)
    (tmp_path / "etc/group").write_text(_GROUP)
    fd = os.open(tmp_path, os.O_PATH)
    yield fd
    os.close(fd)


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", Identity(0, 0, (0,), "/root")),
        ("web", Identity(33, 34, (34, 50, 60), "/srv/www")),
        ("33", Identity(33, 34, (34, 50, 60), "/srv/www")),
        ("web:log", Identity(33, 60, (60, 50), "/srv/www")),
        ("web:99", Identity(33, 99, (99, 50, 60), "/srv/www")),
        ("4000", Identity(4000, 0, (0,), "/")),
        ("4000:4001", Identity(4000, 4001, (4001,), "/")),
    ],
)
def test_forms_of_user(root: int, user: str, expected: Identity) -> None:
    assert resolve(root, user, None, (), merge=True) == expected


_MISNAMED = """\
root:x:0:0:root:/root:/bin/sh
1000:x:0:0::/root:/bin/sh
+1000:x:0:0::/root:/bin/sh
01000:x:0:0::/root:/bin/sh
-5:x:0:0::/root:/bin/sh
0:x:7:7::/elsewhere:/bin/sh
far:x:4294967296:0::/:
farther:x:99999999999999999999:0::/:
odd:x:²:0::/:
"""
numbers = pytest.mark.trial("numeric-user", "a number in user or group is an id, whatever names the image gives")


@numbers
@pytest.mark.parametrize("own", ["", "user:x:1000:50::/home:/bin/sh\n"])
@pytest.mark.parametrize("user", ["1000", "+1000", "01000", "1000:1000", "1000:"])
def test_a_number_is_never_a_name(tmp_path: Path, user: str, own: str) -> None:
    """CVE-2016-3697: an image with a user or group of that name, whose id is another."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(_MISNAMED + own)
    (tmp_path / "etc/group").write_text("1000:x:0:\nroot:x:0:1000,user\ndisk:x:6:1000,01000,+1000\nstaff:x:50:user\n")
    root = os.open(tmp_path, os.O_PATH)
    try:
        found = resolve(root, user, None, (), merge=True)
        gid = 1000 if user == "1000:1000" else 50 if own else 0
        groups = [gid, 0, 50] if own else [gid]
        assert found == Identity(1000, gid, tuple(dict.fromkeys(groups)), "/home" if own else "/")
        assert resolve(root, "", None, (), merge=True) == Identity(0, 0, (0,), "/root")
        for wrong in ("-5", "far", "farther", "odd", "root:-5", "9" * 5000, "root:" + "9" * 5000):
            with pytest.raises(UserNotFound):
                resolve(root, wrong, None, (), merge=True)
    finally:
        os.close(root)


def test_strict_and_supplemental_groups(root: int) -> None:
    assert resolve(root, "web", 7, (8, 9), merge=False).additional_gids == (7, 8, 9)
    assert resolve(root, "web", 7, (8, 60), merge=True).additional_gids == (7, 8, 60, 50)


@pytest.mark.parametrize("user", ["nobody-here", "web:nogroup", "letters", "4294967295", "99999999999"])
def test_what_is_not_there_is_said(root: int, user: str) -> None:
    with pytest.raises(UserNotFound, match=user.rsplit(":", 1)[-1]):
        resolve(root, user, None, (), merge=True)


def test_the_hosts_files_are_out_of_reach(tmp_path: Path) -> None:
    (tmp_path / "image" / "etc").mkdir(parents=True)
    (tmp_path / "outside").write_text("secret:x:1:1::/:\n")
    (tmp_path / "image/etc/passwd").symlink_to("../../outside")
    (tmp_path / "image/etc/group").symlink_to("/proc/self/environ")
    root = os.open(tmp_path / "image", os.O_PATH)
    try:
        with pytest.raises(UserNotFound):
            resolve(root, "secret", None, (), merge=True)
        assert resolve(root, "", None, (), merge=True).uid == 0  # an image may have neither file
    finally:
        os.close(root)


@pytest.mark.trial("image-files", "of an image's files only regular ones are opened to be read, whatever their names")
@pytest.mark.parametrize("name", ["etc/passwd", "etc/group"])
@pytest.mark.parametrize("linked", [False, True])
def test_only_a_regular_file_is_opened(
    tmp_path: Path, name: str, linked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device acts when it is opened, a FIFO waits for a writer, a terminal becomes the reader's."""
    (tmp_path / "etc").mkdir()
    if name == "etc/group":
        (tmp_path / "etc/passwd").write_text("five:x:5:5::/:\n")
    place = tmp_path / ("real" if linked else name)
    if linked:
        (tmp_path / name).symlink_to("/real")
    regular = {"/proc/self/fd"} if name == "etc/group" else set()
    opened: set[str] = set()
    real_open = os.open

    def watched(path: str, flags: int, *more: int, **fields: int) -> int:
        if not flags & os.O_PATH:
            opened.add(os.path.dirname(path))
        return real_open(path, flags, *more, **fields)

    root = os.open(tmp_path, os.O_PATH)
    try:
        monkeypatch.setattr(os, "open", watched)
        for make in (os.mkfifo, os.mkdir, _device, _socket):
            make(place)
            before = len(os.listdir("/proc/self/fd"))
            assert resolve(root, "5", None, (), merge=True).uid == 5
            assert (opened, len(os.listdir("/proc/self/fd"))) == (regular, before)
            place.rmdir() if place.is_dir() else place.unlink()
        with place.open("wb") as file:
            file.truncate(9 << 20)
        with pytest.raises(UserNotFound, match="larger"):
            resolve(root, "root" if name == "etc/passwd" else "5:none", None, (), merge=True)
    finally:
        os.close(root)


def _device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(10, 130))  # a watchdog's
    except PermissionError:
        os.mkfifo(path)


def _socket(path: Path) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o666)


@given(st.binary(max_size=300), st.text(max_size=12).filter(lambda text: "\0" not in text))
def test_any_file_and_any_user_give_an_identity_or_a_reason(tmp_path_factory, content: bytes, user: str) -> None:  # type: ignore[no-untyped-def]
    directory = tmp_path_factory.mktemp("root")
    (directory / "etc").mkdir()
    (directory / "etc/passwd").write_bytes(content)
    root = os.open(directory, os.O_PATH)
    try:
        identity = resolve(root, user, None, (), merge=True)
        assert 0 <= identity.uid < 2**32
    except UserNotFound:
        pass
    finally:
        os.close(root)
