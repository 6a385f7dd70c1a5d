"""Where logs are: what may be on the way to one, and what is found in its place."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from pods.errors import PodError
from pods.log_place import make_log, trusted
from runtime.logs.place import open_to_append, open_to_read
from runtime.logs.writer import LogFile


def _mkfifo(path: Path) -> None:
    os.mkfifo(path)


def _fifo_with_a_reader(path: Path) -> None:
    os.mkfifo(path)
    os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # for as long as the test's process is there


def _socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(here)


_IN_THE_WAY: dict[str, Callable[[Path, Path], object]] = {
    "a link": lambda place, other: place.symlink_to(other),
    "a link to nothing": lambda place, other: place.symlink_to(other.with_name("new")),
    "a hard link": lambda place, other: os.link(other, place),
    "a pipe": lambda place, _other: _mkfifo(place),
    "a pipe that is read": lambda place, _other: _fifo_with_a_reader(place),
    "a socket": lambda place, _other: _socket(place),
    "a directory": lambda place, _other: place.mkdir(),
    "a link to a directory": lambda place, other: place.symlink_to(other.parent),
}


@pytest.mark.trial("logs-stay-in-place", "a log is written to a file in the pod's own directory, or not at all")
@pytest.mark.parametrize("what", _IN_THE_WAY)
def test_only_a_file_of_one_name_is_a_log(tmp_path: Path, what: str) -> None:
    other, place = tmp_path / "other", tmp_path / "pods/uid/c/0.log"
    other.write_bytes(b"precious\n")
    place.parent.mkdir(parents=True)
    log = LogFile(str(place), str(tmp_path / "pods"))
    log.write(b"one\n")
    place.rename(place.with_suffix(".1"))
    _IN_THE_WAY[what](place, other)
    with pytest.raises(OSError, match="it is a"):
        log.reopen()
    log.write(b"two\n")  # it goes on where it was
    log.close()
    with pytest.raises(OSError, match="it is a"):
        open_to_read(str(place), str(tmp_path / "pods"))
    with pytest.raises(PodError, match="it is a"):
        make_log(str(place), str(tmp_path / "pods/uid"))
    assert place.with_suffix(".1").read_bytes() == b"one\ntwo\n"
    assert other.read_bytes() == b"precious\n"
    assert not other.with_name("new").exists()


@pytest.mark.trial("logs-stay-in-place", "a log is written to a file in the pod's own directory, or not at all")
@pytest.mark.parametrize("below", ["uid", "uid/c", "uid/c/deeper"])
def test_no_directory_from_the_pods_own_on_is_a_link(tmp_path: Path, below: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "c/deeper").mkdir(parents=True)
    pods = tmp_path / "pods"
    link = pods / below
    link.parent.mkdir(parents=True)
    link.symlink_to(elsewhere)
    for path in (pods / "uid/c/deeper/0.log", link / "0.log"):
        with pytest.raises(PodError, match=f"make log '{path}': '{link.name}' on the path is a symbolic link"):
            make_log(str(path), str(pods / "uid"))
        with pytest.raises(OSError, match="on the path is a symbolic link"):
            LogFile(str(path), str(pods))
    assert sorted(elsewhere.rglob("*")) == [elsewhere / "c", elsewhere / "c/deeper"]


def test_the_administrator_has_logs_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "pods").symlink_to(tmp_path / "elsewhere")
    make_log(f"{tmp_path}/pods//uid/./c/0.log", f"{tmp_path}/pods/uid/")
    made = tmp_path / "elsewhere/uid/c/0.log"
    assert (stat.S_IMODE(made.stat().st_mode), made.read_bytes()) == (0o640, b"")
    log = LogFile(str(tmp_path / "pods/uid/c/0.log"), str(tmp_path / "pods"))
    log.write(b"one\n")
    log.close()
    os.close(open_to_append(str(made)))
    with open(open_to_read(str(made)), "rb") as file:
        assert file.read() == b"one\n"


@pytest.mark.parametrize(
    ("directory", "above"),
    [
        ("/var/log/pods/ns_name_uid", "/var/log/pods"),
        ("/var/log/pods//ns_name_uid/", "/var/log/pods"),
        ("//logs", "/"),
        ("/", "/"),
    ],
)
def test_links_are_followed_above_the_pods_own_directory(directory: str, above: str) -> None:
    assert trusted(directory) == above


@pytest.mark.parametrize("path", ["/a/../etc/x.log", "/b/x.log", "/a"])
def test_a_log_is_below_what_is_trusted(path: str) -> None:
    with pytest.raises(OSError, match="not below /a"):
        open_to_append(path, "/a")
