"""An entry of a tar archive, and the parsing of its header. Standard library only."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

BLOCK = 512

REGULAR = b"0"
HARD_LINK = b"1"
SYMLINK = b"2"
CHAR_DEVICE = b"3"
BLOCK_DEVICE = b"4"
DIRECTORY = b"5"
FIFO = b"6"

_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12x")


class TarError(ValueError):
    """The stream is no valid tar archive; the message says where it is invalid."""


@dataclass(slots=True)
class Entry:
    """A member of an archive. `size` is the file's; `stored` is how many bytes the archive has of it."""

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


def parse_header(header: bytes) -> Entry:
    if len(header) < BLOCK:
        raise TarError("archive ends inside a header")
    fields = _HEADER.unpack(header)
    name, mode, uid, gid, size, mtime, checksum, kind, link, magic, _, _, _, major, minor, prefix = fields
    if number(checksum) not in _checksums(header, checksum):
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
        number(mode) & 0o7777,
        number(uid, signed=True),
        number(gid, signed=True),
        bounded_time(number(mtime, signed=True) * 1_000_000_000),
        number(size),
        link.partition(b"\0")[0],
        number(major) if device else 0,
        number(minor) if device else 0,
    )


def bounded_time(nanoseconds: int) -> int:
    """Return a time that file systems can hold, 0 for any other, as containerd does: no archive is worth it."""
    return nanoseconds if -(1 << 31) * 1_000_000_000 <= nanoseconds < 1 << 63 else 0


def _checksums(header: bytes, field: bytes) -> Iterator[int]:
    """Yield the valid checksums of a header: the sum of its bytes, with the checksum field as eight spaces.

    Old tars summed signed bytes, which differs for names with bytes over 127.
    """
    total = sum(header) - sum(field) + 8 * 0x20
    yield total
    yield total - 256 * sum(byte >> 7 for byte in header[:148] + header[156:])


def number(field: bytes, signed: bool = False) -> int:
    """Parse a numeric field: octal text, or GNU's big-endian binary if the top bit is set."""
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
