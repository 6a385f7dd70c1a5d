"""A streaming tar reader: ustar, pax and GNU, sparse files of every dialect, names as bytes. Standard library only.

It trusts nothing: sizes, counts and numbers are checked before they are used. It judges no names; who unpacks does.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

BLOCK = 512
EXTENSION_LIMIT = 1 << 20  # bytes of all pax headers and GNU long names that one entry has, kept global ones included
SPARSE_LIMIT = 1 << 16  # segments of one sparse file

REGULAR = b"0"
HARD_LINK = b"1"
SYMLINK = b"2"
CHAR_DEVICE = b"3"
BLOCK_DEVICE = b"4"
DIRECTORY = b"5"
FIFO = b"6"
_CONTIGUOUS = b"7"
_OLD_REGULAR = b"\0"
_GNU_LONG_NAME = b"L"
_GNU_LONG_LINK = b"K"
_GNU_SPARSE = b"S"
_PAX = b"x"
_PAX_GLOBAL = b"g"

_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12x")
_ZEROS = bytes(BLOCK)
_XATTR = b"SCHILY.xattr."
_XATTR_NAMES_LIMIT = 1 << 16  # bytes of the names of one file's attributes: the kernel's XATTR_LIST_MAX
_GNU_SPARSE_KEYS = b"GNU.sparse."
_KEYS = (b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime")  # what is read of pax records, beside prefixes
_PREFIXES = (_XATTR, _GNU_SPARSE_KEYS)


class TarError(ValueError):
    """The stream is not a tar archive this reader understands; the message says where it stopped being one."""


class ByteStream:
    """Exact reads over an iterator of chunks."""

    __slots__ = ("_chunk", "_chunks", "_offset")

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._chunk = memoryview(b"")
        self._offset = 0

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes; fewer only at the end of the stream."""
        end = self._offset + size
        if end <= len(self._chunk):
            piece = bytes(self._chunk[self._offset : end])
            self._offset = end
            return piece
        return b"".join(self.pieces(size))

    def pieces(self, size: int) -> Iterator[memoryview]:
        """`size` bytes as views into the chunks; fewer only at the end of the stream."""
        while size > 0:
            if self._offset == len(self._chunk):
                self._chunk = memoryview(next(self._chunks, b""))
                self._offset = 0
                if not self._chunk:
                    return
            end = min(self._offset + size, len(self._chunk))
            piece = self._chunk[self._offset : end]
            size -= end - self._offset
            self._offset = end
            yield piece

    def drain(self) -> None:
        """Read to the end, so that what produces the chunks sees all of it."""
        for _ in self._chunks:
            pass
        self._chunk, self._offset = memoryview(b""), 0


@dataclass(slots=True)
class Entry:
    """One member of an archive. `size` is the file's; `stored` is how many bytes of it the archive has."""

    name: bytes
    kind: bytes  # REGULAR, HARD_LINK, ...
    mode: int
    uid: int
    gid: int
    mtime: int  # nanoseconds since the epoch
    size: int
    link: bytes
    major: int
    minor: int
    stored: int = 0
    xattrs: dict[bytes, bytes] | None = None
    segments: tuple[tuple[int, int], ...] | None = None  # of a sparse file: (offset, length), ascending


class TarReader:
    """Iterates the entries of a stream. What was not read of an entry's content is skipped."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._unread = 0  # bytes of content of the current entry
        self._padding = 0
        self._globals: dict[bytes, bytes] = {}
        self._kept = 0  # bytes of them
        self._room = EXTENSION_LIMIT  # bytes that headers of the entry to come may still have

    def __iter__(self) -> Iterator[Entry]:
        while (entry := self._next()) is not None:
            yield entry

    def content(self, size: int) -> Iterator[memoryview]:
        """The next `size` bytes of the current entry's stored content. Raises TarError when the stream ends."""
        if size > self._unread:
            raise TarError("content ends early")
        for piece in self._stream.pieces(size):
            self._unread -= len(piece)
            size -= len(piece)
            yield piece
        if size:
            raise TarError("archive ends inside a file")

    def _next(self) -> Entry | None:
        for _ in self.content(self._unread):
            pass
        self._stream.read(self._padding)  # which some writers leave out after the last file
        self._padding = 0
        self._room = EXTENSION_LIMIT - self._kept
        own: list[bytes] = []
        long_name = long_link = None
        while True:
            header = self._stream.read(BLOCK)
            if not header or header == _ZEROS:
                self._end(header)
                return None
            entry = _parse_header(header)
            kind = entry.kind
            if kind == _PAX:
                own.append(self._extension(entry))
            elif kind == _PAX_GLOBAL:
                self._globalise(self._extension(entry))
            elif kind == _GNU_LONG_NAME:
                long_name = self._extension(entry).rstrip(b"\0")
            elif kind == _GNU_LONG_LINK:
                long_link = self._extension(entry).rstrip(b"\0")
            else:
                break
        if long_name is not None:
            entry.name = long_name
        if long_link is not None:
            entry.link = long_link
        records = dict(self._globals)
        for header_records in own:
            _parse_pax(header_records, records)
        if records:
            _apply_pax(entry, records)
        self._locate_content(entry, header, records)
        return entry

    def _end(self, header: bytes) -> None:
        """Two blocks of zeros end an archive; the end of the stream at a block's edge is taken for them."""
        if header and self._stream.read(BLOCK) not in (_ZEROS, b""):
            raise TarError("a block of zeros inside the archive")

    def _globalise(self, header: bytes) -> None:
        """Keep a global header's records. What later ones replace takes no room, so there may be many."""
        _parse_pax(header, self._globals)
        self._kept = sum(len(key) + len(value) for key, value in self._globals.items())
        self._room = EXTENSION_LIMIT - self._kept
        if self._room < 0:
            raise TarError(f"global headers of more than {EXTENSION_LIMIT} bytes")

    def _exactly(self, size: int) -> bytes:
        piece = self._stream.read(size)
        if len(piece) < size:
            raise TarError("archive ends early")
        return piece

    def _extension(self, entry: Entry) -> bytes:
        self._room -= entry.size
        if self._room < 0:
            raise TarError(f"extended headers of more than {EXTENSION_LIMIT} bytes")
        return self._exactly(entry.size + -entry.size % BLOCK)[: entry.size]

    def _locate_content(self, entry: Entry, header: bytes, records: dict[bytes, bytes]) -> None:
        if entry.kind in (_OLD_REGULAR, _CONTIGUOUS):
            entry.kind = REGULAR
        if entry.kind == REGULAR and entry.name.endswith(b"/"):
            entry.kind = DIRECTORY  # version 7 archives have no other way to say so
            entry.stored = entry.size
        elif entry.kind in (REGULAR, _GNU_SPARSE):
            entry.stored = entry.size
        self._padding = -entry.stored % BLOCK
        self._unread = entry.stored
        if entry.kind == _GNU_SPARSE:
            entry.kind = REGULAR
            entry.size = _number(header[483:495])
            self._gnu_segments(entry, header)
        elif entry.kind == REGULAR and any(key.startswith(_GNU_SPARSE_KEYS) for key in records):
            self._pax_segments(entry, records)
        if entry.segments is not None:
            _check_segments(entry)

    def _gnu_segments(self, entry: Entry, header: bytes) -> None:
        numbers = _segment_numbers(header[386:482])
        extended = header[482]
        while extended:
            block = self._exactly(BLOCK)
            numbers += _segment_numbers(block[:504])
            extended = block[504]
            if len(numbers) > 2 * SPARSE_LIMIT:
                raise TarError(f"sparse file of more than {SPARSE_LIMIT} segments")
        entry.segments = _pairs(numbers)

    def _pax_segments(self, entry: Entry, records: dict[bytes, bytes]) -> None:
        entry.name = records.get(b"GNU.sparse.name", entry.name)
        size = records.get(b"GNU.sparse.realsize", records.get(b"GNU.sparse.size"))
        if records.get(b"GNU.sparse.major") == b"1":
            numbers = self._sparse_map_in_content()
            entry.stored = self._unread
        elif (listed := records.get(b"GNU.sparse.map")) is not None:
            numbers = [_decimal(n) for n in listed.split(b",") if n]
        else:
            return
        if size is None:
            raise TarError("sparse file without its size")
        entry.size = _decimal(size)
        entry.segments = _pairs(numbers)

    def _sparse_map_in_content(self) -> list[int]:
        """Pax sparse format 1.0: the map is lines of decimal numbers before the data, filled up to a block."""
        text = b""
        wanted = 1
        while text.count(b"\n") < wanted:
            if len(text) >= EXTENSION_LIMIT:
                raise TarError("sparse map too long")
            text += b"".join(self.content(BLOCK))
            if wanted == 1 and b"\n" in text:
                wanted += 2 * _decimal(text.partition(b"\n")[0])
        return [_decimal(line) for line in text.split(b"\n")[1:wanted]]


def _parse_header(header: bytes) -> Entry:
    if len(header) < BLOCK:
        raise TarError("archive ends inside a header")
    fields = _HEADER.unpack(header)
    name, mode, uid, gid, size, mtime, checksum, kind, link, magic, _, _, _, major, minor, prefix = fields
    if _number(checksum) not in _checksums(header, checksum):
        raise TarError("header checksum is wrong")
    name = name.partition(b"\0")[0]
    if magic == b"ustar\0":
        if header[508:] == b"tar\0":
            prefix = prefix[:131]
        prefix = prefix.partition(b"\0")[0]
        if prefix:
            name = prefix + b"/" + name
    device = kind in (CHAR_DEVICE, BLOCK_DEVICE)
    return Entry(
        name,
        kind,
        _number(mode) & 0o7777,
        _number(uid, signed=True),
        _number(gid, signed=True),
        _number(mtime, signed=True) * 1_000_000_000,
        _number(size),
        link.partition(b"\0")[0],
        _number(major) if device else 0,
        _number(minor) if device else 0,
    )


def _checksums(header: bytes, field: bytes) -> Iterator[int]:
    """What a header may be summed up to: its bytes, its own field counting as eight spaces; old tars took them for
    signed ones, which differs where a name has some over 127."""
    total = sum(header) - sum(field) + 8 * 0x20
    yield total
    yield total - 256 * sum(byte >> 7 for byte in header[:148] + header[156:])


def _number(field: bytes, signed: bool = False) -> int:
    """A numeric header field: octal text, or GNU's big-endian binary when the top bit is set."""
    if field[0] & 0x80:
        sign = 1 << (8 * len(field) - 1)
        value = int.from_bytes(field, "big") - sign
        if field[0] & 0x40:
            value -= sign
        if value < 0 and not signed:
            raise TarError("negative number in a header")
        return value
    text = field.partition(b"\0")[0].strip()
    if not text:
        return 0
    if not text.isdigit():
        raise TarError(f"{text!r} is not an octal number")
    try:
        return int(text, 8)
    except ValueError:
        raise TarError(f"{text!r} is not an octal number") from None


def _decimal(text: bytes) -> int:
    if not text.isdigit() or len(text) > 19:
        raise TarError(f"{text[:32]!r} is not a decimal number")
    return int(text)


def _signed_decimal(text: bytes) -> int:
    return -_decimal(text[1:]) if text.startswith(b"-") else _decimal(text)


def _segment_numbers(fields: bytes) -> list[int]:
    """Offsets and lengths of GNU sparse headers: 12 bytes each; an empty pair ends the list."""
    numbers: list[int] = []
    for at in range(0, len(fields), 24):
        pair = fields[at : at + 24]
        if pair[0] == 0 or pair[12] == 0:
            break
        numbers += (_number(pair[:12]), _number(pair[12:]))
    return numbers


def _pairs(numbers: list[int]) -> tuple[tuple[int, int], ...]:
    if len(numbers) % 2 or len(numbers) > 2 * SPARSE_LIMIT:
        raise TarError("sparse map of odd or excessive length")
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))


def _check_segments(entry: Entry) -> None:
    """Segments must ascend, not overlap, stay inside the file, and hold exactly what is stored."""
    end = total = 0
    for offset, length in entry.segments or ():
        if offset < end:
            raise TarError("sparse segments overlap")
        end = offset + length
        total += length
    if end > entry.size or total != entry.stored:
        raise TarError("sparse map does not fit the file")


def _parse_pax(data: bytes, records: dict[bytes, bytes]) -> None:
    """Add the "<length> <key>=<value>\\n" records of a pax header. An empty value deletes the key."""
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 20)
        length = _decimal(data[at:space]) if space > at else 0
        record = data[space + 1 : at + length]
        key, equals, value = record.partition(b"=")
        if space < 0 or at + length > len(data) or not equals or not value.endswith(b"\n") or not key:
            raise TarError("malformed pax record")
        value = value[:-1]
        at += length
        if key not in _KEYS and not key.startswith(_PREFIXES):
            continue
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):  # format 0.0 repeats them, one pair a segment
            records[b"GNU.sparse.map"] = records.get(b"GNU.sparse.map", b"") + value + b","
        elif value:
            records[key] = value
        else:
            records.pop(key, None)


def _apply_pax(entry: Entry, records: dict[bytes, bytes]) -> None:
    entry.name = records.get(b"path", entry.name)
    entry.link = records.get(b"linkpath", entry.link)
    if (value := records.get(b"size")) is not None:
        entry.size = _decimal(value)
    if (value := records.get(b"uid")) is not None:
        entry.uid = _signed_decimal(value)
    if (value := records.get(b"gid")) is not None:
        entry.gid = _signed_decimal(value)
    if (value := records.get(b"mtime")) is not None:
        entry.mtime = _pax_time(value)
    xattrs = {key[len(_XATTR) :]: value for key, value in records.items() if key.startswith(_XATTR)}
    if sum(map(len, xattrs)) + len(xattrs) > _XATTR_NAMES_LIMIT:
        raise TarError(f"extended attributes with names of more than {_XATTR_NAMES_LIMIT} bytes")
    if xattrs:
        entry.xattrs = xattrs


def _pax_time(text: bytes) -> int:
    """Decimal seconds, maybe negative, maybe with a fraction, to nanoseconds."""
    whole, _, fraction = text.partition(b".")
    negative = whole.startswith(b"-")
    seconds = _decimal(whole.removeprefix(b"-") or b"0")
    nanoseconds = seconds * 1_000_000_000 + (_decimal(fraction[:9].ljust(9, b"0")) if fraction else 0)
    return -nanoseconds if negative else nanoseconds
