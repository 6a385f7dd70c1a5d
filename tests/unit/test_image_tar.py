"""The tar reader against Python's and GNU's writers, and against damage."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from image.layer import normalised
from image.tar import BLOCK, ByteStream, Entry, TarError, TarReader
from tests.images import entry, layer


def chunks(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


def read(data: bytes, size: int = 1 << 20) -> list[tuple[Entry, bytes]]:
    """All entries with their content, holes filled."""
    reader = TarReader(ByteStream(chunks(data, size)))
    found = []
    for item in reader:
        content = bytearray(item.size if item.segments is not None else 0)
        for offset, length in item.segments or ():
            content[offset : offset + length] = b"".join(reader.content(length))
        if item.segments is None:
            content += b"".join(reader.content(item.stored))
        found.append((item, bytes(content)))
    return found


_NAMES = st.lists(st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=70),
                  min_size=1, max_size=5).map("/".join)  # fmt: skip


@settings(deadline=None)
@given(
    members=st.lists(
        st.tuples(_NAMES, st.binary(max_size=1200), st.integers(0, 2**21 - 1), st.integers(0, 2**33)), max_size=5
    ),
    format=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    size=st.integers(1, 3000),
)
def test_what_python_writes_is_read(members: list[tuple[str, bytes, int, int]], format: int, size: int) -> None:
    entries = [entry(name, content, uid=uid, mtime=mtime) for name, content, uid, mtime in members]
    data = layer(*entries, format=format)
    found = read(data, size)
    assert [(e.name.decode(), content, e.uid, e.mtime) for e, content in found] == [
        (name, content, uid, mtime * 10**9) for name, content, uid, mtime in members
    ]


@pytest.mark.parametrize("format", ["gnu", "oldgnu", "posix", "ustar", "v7"])
def test_what_gnu_tar_writes_is_read(tmp_path: Path, format: str) -> None:
    tree = tmp_path / "tree"
    (tree / "d").mkdir(parents=True)
    (tree / "d" / ("n" * 90)).write_bytes(b"long name")
    (tree / "link").symlink_to("d")
    os.link(tree / "d" / ("n" * 90), tree / "hard")
    os.utime(tree / "d", ns=(5, 1_500_000_000_123_456_789))
    data = subprocess.run(["tar", "-C", tree, f"--format={format}", "-c", "."], check=True, capture_output=True).stdout
    found = {e.name.rstrip(b"/"): (e, content) for e, content in read(data)}
    assert found[b"./link"][0].link == b"d"
    kinds = sorted(found[name][0].kind for name in (b"./hard", b"./d/" + b"n" * 90))
    assert kinds == [b"0", b"1"]
    assert found[b"./d"][0].mtime == 1_500_000_000_123_456_789 // (1 if format == "posix" else 10**9) * (
        1 if format == "posix" else 10**9
    )


@pytest.mark.parametrize("options", ["gnu", "posix --sparse-version=0.0", "posix --sparse-version=0.1",
                                     "posix --sparse-version=1.0"])  # fmt: skip
def test_sparse_files_of_every_dialect(tmp_path: Path, options: str) -> None:
    path = tmp_path / "sparse"
    with open(path, "wb") as file:
        for step in range(40):
            file.seek(step << 20)
            file.write(b"data %d" % step)
        file.truncate(50 << 20)
    command = ["tar", "-C", tmp_path, "--sparse", *f"--format={options}".split(), "-c", "sparse"]
    data = subprocess.run(command, check=True, capture_output=True).stdout
    assert len(data) < 1 << 20
    ((item, content),) = read(data, 700)
    assert (item.name, item.size) == (b"sparse", 50 << 20)
    assert content == path.read_bytes()


def test_global_headers_hold_for_every_entry() -> None:
    buffer = io.BytesIO()
    headers = {"comment": "x", "uid": "7"}
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers=headers) as tar:
        tar.addfile(tarfile.TarInfo("a"))
    ((item, _),) = read(buffer.getvalue())
    assert item.uid == 7


GOOD = layer(entry("a", b"x" * 700), entry("d/"), entry("b" * 120, b"y", mtime=1.5, xattrs={"user.k": "v"}))


def test_a_cut_archive_is_refused_wherever_it_is_cut() -> None:
    names = [e.name for e, _ in read(GOOD)]
    end = GOOD.rstrip(b"\0")
    complete = len(end) + -len(end) % BLOCK
    for length in (*range(1, complete + 2 * BLOCK, 37), *range(BLOCK, complete, BLOCK)):
        try:
            found = [e.name for e, _ in read(GOOD[:length])]
        except TarError:
            continue
        # Only where an entry begins can an archive end without saying so.
        assert length % BLOCK == 0
        assert found == names[: len(found)]
        assert length < complete or found == names


@settings(deadline=None, max_examples=300)
@given(at=st.integers(0, len(GOOD) - 1), byte=st.integers(0, 255), size=st.integers(1, 600))
def test_a_damaged_archive_is_read_or_refused(at: int, byte: int, size: int) -> None:
    data = bytearray(GOOD)
    data[at] = byte
    with contextlib.suppress(TarError):
        read(bytes(data), size)


def with_field(at: int, value: bytes) -> bytes:
    """A header with a field replaced and its checksum made right."""
    header = bytearray(layer(entry("a"))[:BLOCK])
    header[at : at + len(value)] = value
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def test_numbers_of_headers() -> None:
    uid, size, mtime = 108, 124, 136
    assert read(with_field(uid, b"\x80" + b"\xff" * 7))[0][0].uid == 2**56 - 1
    assert read(with_field(mtime, b"\xff" * 12))[0][0].mtime == -(10**9)
    for value in (b"\xff" * 12, b"99999999999\0", b"1_000 \0\0\0\0\0\0", b"-0000000001\0"):
        with pytest.raises(TarError):
            read(with_field(size, value))


_STEPS = st.lists(st.sampled_from([b"..", b".", b"", b"a", b".wh.x"]), max_size=8).map(b"/".join)


@given(st.binary(max_size=60) | _STEPS)
def test_normalised_names_stay_inside(name: bytes) -> None:
    try:
        path = normalised(name)
    except TarError:
        assert b"\0" in name
        return
    components = path.split(b"/") if path else []
    assert not {b"", b".", b".."}.intersection(components)
    assert normalised(path) == path
    assert normalised(b"/../" + name) == path
