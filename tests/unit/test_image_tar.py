"""The tar reader against Python's and GNU's writers, and against damage."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from image.unpack.directories import Directories, parse_unsettled
from image.unpack.harmless import normalised
from image.unpack.tar import EXTENSION_LIMIT, ByteStream, TarReader
from image.unpack.tar_header import BLOCK, Entry, TarError
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
        # Only where an entry begins, or in the zeros that fill up a file's last block, can it end without saying so.
        assert length % BLOCK == 0 or not GOOD[length : length + -length % BLOCK].strip(b"\0")
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
    # A file system has a place for times from 1901 on; os.utime has none for what 64 bits do not hold.
    for beyond in (b"\x80" + b"\x7f" * 11, b"\xff\x80" + b"\0" * 10, b"\xff" * 7 + b"\x7f" + b"\xff" * 4):
        assert read(with_field(mtime, beyond))[0][0].mtime == 0
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


# --- what old and foreign programs write, and what would take a lot of memory

ODD_TARS = pytest.mark.trial(
    "odd-tars",
    "What old and foreign tar programs write is unpacked as containerd does, or refused by the entry's name.",
)
BOUNDED = pytest.mark.trial(
    "layer-memory", "What a small layer takes of the memory of crispd and of its worker is bounded: more is refused."
)


def header(
    name: bytes, kind: bytes = b"0", size: int = 0, *, owner: bytes = b"0000000\0", signed: bool = False
) -> bytes:
    block = bytearray(BLOCK)
    fields = ((0, name), (100, b"0000644\0"), (108, owner), (116, owner), (124, b"%011o\0" % size),
              (136, b"00000000000\0"), (148, b" " * 8), (156, kind), (257, b"ustar\x0000"))  # fmt: skip
    for at, value in fields:
        block[at : at + len(value)] = value
    total = sum(byte - 256 if signed and byte > 127 else byte for byte in block)
    block[148:156] = b"%06o\0 " % total
    return bytes(block)


def pax(kind: bytes, *records: tuple[bytes, bytes]) -> bytes:
    text = b""
    for key, value in records:
        length = len(key) + len(value) + 3
        while len(str(length)) + len(key) + len(value) + 3 != length:
            length = len(str(length)) + len(key) + len(value) + 3
        text += b"%d %s=%s\n" % (length, key, value)
    return header(b"pax", kind, len(text)) + text + bytes(-len(text) % BLOCK)


END = bytes(2 * BLOCK)


@ODD_TARS
@pytest.mark.parametrize("name", [b"caf\xe9", b"\xff" * 100, b"plain"])
def test_a_checksum_over_signed_bytes(name: bytes) -> None:
    for signed in (False, True):
        ((item, _),) = read(header(name, signed=signed) + END)
        assert item.name == name
    damaged = bytearray(header(name, signed=True))
    damaged[120] ^= 1
    with pytest.raises(TarError, match="checksum"):
        read(bytes(damaged) + END)


@ODD_TARS
def test_an_archive_that_ends_with_its_last_byte() -> None:
    ((item, content),) = read(header(b"a", size=5) + b"12345")
    assert (item.name, content) == (b"a", b"12345")
    with pytest.raises(TarError, match="inside a file"):
        read(header(b"a", size=5) + b"1234")
    with pytest.raises(TarError):
        read(header(b"long", b"L", 5) + b"12345")


@ODD_TARS
@pytest.mark.parametrize("minus", [-1, -2, -(1 << 31)])
def test_negative_owners(minus: int) -> None:
    ((item, _),) = read(header(b"a", owner=minus.to_bytes(8, "big", signed=True)) + END)
    assert (item.uid, item.gid) == (minus, minus)
    ((item, _),) = read(pax(b"x", (b"uid", b"%d" % minus), (b"gid", b"%d" % minus)) + header(b"a") + END)
    assert (item.uid, item.gid) == (minus, minus)


MEBIBYTE = b"v" * (EXTENSION_LIMIT - 100)
HALF = b"v" * (EXTENSION_LIMIT // 2 + 100)


@BOUNDED
@pytest.mark.parametrize(
    "headers",
    [
        pax(b"g", (b"SCHILY.xattr.user.a", HALF)) + pax(b"g", (b"SCHILY.xattr.user.b", HALF)),
        pax(b"g", (b"SCHILY.xattr.user.a", HALF)) + pax(b"x", (b"SCHILY.xattr.user.b", HALF)),
        pax(b"g", (b"SCHILY.xattr.user.a", HALF)) + header(b"one") + pax(b"g", (b"SCHILY.xattr.user.b", HALF)),
        pax(b"x", (b"SCHILY.xattr.user.a", HALF)) + pax(b"x", (b"SCHILY.xattr.user.b", HALF)),
        pax(b"x", (b"path", HALF)) * 2,
        pax(b"x", (b"nothing.we.know", HALF)) * 2,
        (header(b"long", b"L", len(HALF)) + HALF + bytes(-len(HALF) % BLOCK)) * 2,
        (header(b"long", b"K", len(HALF)) + HALF + bytes(-len(HALF) % BLOCK)) + pax(b"x", (b"linkpath", HALF)),
        pax(b"x", *((b"SCHILY.xattr.user.%05d" % number, b"v") for number in range(7000))),
        pax(b"g", *((b"SCHILY.xattr.user.%05d" % number, b"v") for number in range(7000))),
    ],
)  # fmt: skip
def test_the_headers_of_an_entry_are_bounded_together(headers: bytes) -> None:
    with pytest.raises(TarError, match="more than"):
        read(headers + header(b"a") + END)


@BOUNDED
def test_headers_that_keep_nothing_may_be_many() -> None:
    """git and others write a global header with a comment; archives that were put together have many."""
    globals_ = b"".join(pax(b"g", (b"comment", MEBIBYTE), (b"uid", b"%d" % uid)) for uid in range(5))
    ((item, _),) = read(globals_ + pax(b"x", (b"gid", b"7")) + header(b"a") + END)
    assert (item.uid, item.gid) == (4, 7)
    one = pax(b"x", (b"SCHILY.xattr.user.a", MEBIBYTE)) + header(b"a")
    assert len(read(one * 3 + END)) == 3


@BOUNDED
def test_paths_of_directories_are_bounded() -> None:
    known = Directories()
    for number in range(200_000):
        known.describe(b"d" * 240 + b"%07d" % number, 1)
    with pytest.raises(TarError, match="of memory"):
        _each(lambda path: known.describe(path, 1), (b"d" * 240 + b"%07d" % n for n in range(200_000, 1 << 20)))
    for deed in ("imply", "white"):
        known = Directories()
        for number in range(40_000):  # what is described or has gone does not count
            known.imply(path := b"/".join((b"d" * 250, b"e" * 250, b"%05d" % number)))
            if number % 2:
                known.describe(path, 1)
            else:
                known.forget(path)
        with pytest.raises(TarError, match="bytes of paths"):
            _each(getattr(known, deed), (b"/".join((b"d" * 250, b"e" * 250, b"%05d" % n)) for n in range(40_000)))
    known = Directories()
    with pytest.raises(TarError, match="65536 directories"):
        _each(known.imply, (b"%d" % number for number in range(1 << 17)))


def _each(deed: Callable[[bytes], None], paths: Iterator[bytes]) -> None:
    for path in paths:
        deed(path)


_PATHS = st.lists(st.sampled_from([b"a", b"b", b"c"]), max_size=4)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("diwf"), _PATHS), max_size=30))
def test_directories_are_kept_by_path(steps: list[tuple[str, list[bytes]]]) -> None:
    known = Directories()
    times: dict[bytes, int] = {}
    implied, whited = {b""}, set()
    for number, (what, names) in enumerate(steps):
        path = b"/".join(names)
        if what == "d":
            known.describe(path, number)
            times[path] = number
            implied.discard(path)
        elif what == "i":
            known.imply(path)
            implied.add(path)
            times.setdefault(path, -1)
        elif what == "w":
            known.white(path)
            whited.add(path)
        elif path:
            known.forget(path)
            for kept in (times, implied, whited):
                for gone in [one for one in kept if one == path or one.startswith(path + b"/")]:
                    kept.pop(gone) if isinstance(kept, dict) else kept.discard(gone)
    told_implied, told_whited = parse_unsettled(known.unsettled())
    assert (set(told_implied), set(told_whited)) == (implied, whited)
    assert {path: time for path, time, _ in known if time is not None} == {p: t for p, t in times.items() if t >= 0}
    assert {path for path, _, _ in known} == implied | {p for p, t in times.items() if t >= 0}


@pytest.mark.parametrize("path", [b"..", b"../host", b"a/../../host", b"/host", b"a//b", b"./a"])
def test_a_path_that_leads_out_of_a_layer_is_not_left_for_later(path: bytes) -> None:
    """The worker that settles a layer goes where the report of another says, which an archive may have taken over."""
    assert parse_unsettled(b"ia/b\0w\0b..a") == ([b"a/b", b"..a"], [b"", b"..a"])
    for kind in (b"i", b"w", b"b"):
        with pytest.raises(TarError):
            parse_unsettled(b"ia\0" + kind + path)
