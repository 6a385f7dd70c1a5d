"""Users and groups are looked up inside the rootfs, whatever the image put there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.users import Identity, UserNotFound, resolve

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


def test_a_fifo_does_not_hang_and_a_huge_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    os.mkfifo(tmp_path / "etc/passwd")
    root = os.open(tmp_path, os.O_PATH)
    try:
        assert resolve(root, "5", None, (), merge=True).uid == 5
        (tmp_path / "etc/passwd").unlink()
        (tmp_path / "etc/passwd").mkdir()
        before = len(os.listdir("/proc/self/fd"))
        assert resolve(root, "5", None, (), merge=True).uid == 5
        assert len(os.listdir("/proc/self/fd")) == before
        (tmp_path / "etc/passwd").rmdir()
        with (tmp_path / "etc/passwd").open("wb") as file:
            file.truncate(9 << 20)
        with pytest.raises(UserNotFound, match="larger"):
            resolve(root, "5", None, (), merge=True)
    finally:
        os.close(root)


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
