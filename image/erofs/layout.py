"""The on-disk format of EROFS, as far as an index over a tar needs it (Linux: Documentation/filesystems/erofs.rst).

Blocks have 512 bytes, as a tar's. The index is the file system's own device. The tar is a second device, whose blocks
have addresses from TAR_BLOCK on. All numbers are little-endian.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

BLOCK: Final = 512  # bytes
SLOT: Final = 32  # bytes: inodes begin at multiples of it; an inode's number is its slot's
TAR_BLOCK: Final = 1 << 30  # the tar's first block
BLOCKS_LIMIT: Final = 1 << 32
SIZE_LIMIT: Final = 1 << 44  # bytes of one file, like the limit of other file systems
HEADER_BLOCKS: Final = 3  # unused bytes, the super block, the device table
PAGE_BLOCKS: Final = 8  # an index has a multiple of them: Linux 7.3 reads the super block with the page that it is in

PLAIN, INLINE, CHUNKED = 0, 2, 4  # an inode's content: in adjacent blocks, after the inode, in chunks
HOLE: Final = 0xFFFF_FFFF  # the address of a chunk without blocks

DIRECTORY_TYPE: Final = 2
ENTRY_TYPES: Final = {
    stat.S_IFREG: 1, stat.S_IFDIR: DIRECTORY_TYPE, stat.S_IFCHR: 3, stat.S_IFBLK: 4, stat.S_IFIFO: 5, stat.S_IFLNK: 7,
}  # fmt: skip

_MAGIC = 0xE0F5E1E2
_BLOCK_BITS = 9
_SUPER_OFFSET, _DEVICE_SLOT = 1024, 128
_BLOCKS_FIELD = 9  # of the super block
_CHUNKS_AND_DEVICES = 0x4 | 0x8  # incompatible features
_SUPER = struct.Struct("<3I2BHQQ4I16s16sI3H2BIQB23x")
_DEVICE = struct.Struct("<64s2I56x")
_INODE = struct.Struct("<4HQ4IqII16x")
_EXTENDED = 1
_UNUSED = 16  # bytes at the end of an inode
_NAME = struct.Struct("<QHBx")
_XATTRS = struct.Struct("<IB7x")
_XATTR = struct.Struct("<BBH")
_XATTRS_LIMIT = 0xFFFF  # of 4 bytes each
_XATTR_LIMIT = 0xFFFF  # bytes of a value
_PREFIXES = (
    (b"user.", 1), (b"trusted.", 4), (b"security.", 6),
    (b"system.posix_acl_access", 2), (b"system.posix_acl_default", 3),
)  # fmt: skip

INODE_SIZE: Final = _INODE.size


class TooLarge(Exception):
    """It does not fit in an index."""


class Malformed(Exception):
    """An index has something that is not written here."""


class Head(NamedTuple):
    """What a header says."""

    root: int
    inodes: int
    inodes_at: int  # block
    identity: bytes


class Inode(NamedTuple):
    """What an encoded inode says, but for owner and time."""

    layout: int
    xattrs_size: int
    mode: int
    size: int
    place: int
    number: int
    links: int


@dataclass(frozen=True, slots=True)
class Attributes:
    """The attributes that inodes of all kinds have."""

    mode: int
    uid: int
    gid: int
    mtime: int  # nanoseconds since the epoch

    @classmethod
    def of(cls, there: os.stat_result) -> Attributes:
        return cls(there.st_mode, there.st_uid, there.st_gid, there.st_mtime_ns)


def inode(
    about: Attributes, number: int, layout: int, place: int, *, size: int, links: int, xattrs: bytes = b""
) -> bytes:
    """Encode an inode, without what follows it. `place` is the first block, the device number, or `chunks`."""
    seconds, nanoseconds = divmod(about.mtime, 1_000_000_000)
    units = (len(xattrs) - _XATTRS.size) // 4 + 1 if xattrs else 0
    return _INODE.pack(
        *(layout << 1 | _EXTENDED, units, about.mode, 0),
        *(size, place, number & 0xFFFF_FFFF, about.uid, about.gid, seconds, nanoseconds, links),
    )


def described(said: bytes, about: Attributes) -> bytes:
    """Return the encoded inode `said` with other attributes."""
    layout, units, _, _, size, place, number, _, _, _, _, links = _INODE.unpack(said)
    seconds, nanoseconds = divmod(about.mtime, 1_000_000_000)
    return _INODE.pack(
        *(layout, units, about.mode, 0, size, place, number, about.uid, about.gid, seconds, nanoseconds, links)
    )


def inodes_of(head: bytes) -> int:
    """Return the offset, in bytes, from which inodes are numbered in an index with this header."""
    return int(_SUPER.unpack_from(head, _SUPER_OFFSET)[10]) * BLOCK


def device_number(major: int, minor: int) -> int:
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


def extended_attributes(pairs: Mapping[bytes, bytes]) -> bytes:
    """Encode the extended attributes that follow an inode. Raises TooLarge."""
    if not pairs:
        return b""
    said = bytearray(_XATTRS.pack(0, 0))
    for key, value in sorted(pairs.items()):
        prefix, index = next(((prefix, index) for prefix, index in _PREFIXES if key.startswith(prefix)), (b"", 0))
        name = key[len(prefix) :]
        if len(value) > _XATTR_LIMIT:
            raise TooLarge(f"an extended attribute of more than {_XATTR_LIMIT} bytes")
        said += _XATTR.pack(len(name), index, len(value)) + name + value
        said += bytes(-len(said) % 4)
    if len(said) // 4 > _XATTRS_LIMIT:
        raise TooLarge(f"extended attributes of more than {4 * _XATTRS_LIMIT} bytes")
    return bytes(said)


def directory_blocks(entries: Iterable[tuple[bytes, int, int]]) -> bytes:
    """Encode a directory: names, sorted as bytes, with the numbers and types of their inodes."""
    blocks = bytearray()
    held: list[tuple[bytes, int, int]] = []
    taken = 0
    for entry in entries:
        cost = _NAME.size + len(entry[0])
        if taken + cost > BLOCK:
            blocks += _directory_block(held)
            held, taken = [], 0
        held.append(entry)
        taken += cost
    return bytes(blocks + _directory_block(held))


def _directory_block(entries: list[tuple[bytes, int, int]]) -> bytes:
    at = _NAME.size * len(entries)
    heads = bytearray()
    for name, number, kind in entries:
        heads += _NAME.pack(number, at, kind)
        at += len(name)
    return (bytes(heads) + b"".join(name for name, _, _ in entries)).ljust(BLOCK, b"\0")


def chunks(bits: int) -> int:
    """Return `place` of a file in chunks of `1 << bits` blocks; a table of their addresses follows the inode."""
    return bits


def header(*, blocks: int, inodes_at: int, root: int, inodes: int, tar_blocks: int, identity: bytes) -> bytes:
    """Encode the first HEADER_BLOCKS of an index with so many blocks, whose inodes begin at block `inodes_at`."""
    super_block = _SUPER.pack(
        *(_MAGIC, 0, 0, _BLOCK_BITS, 0, root, inodes, 0, 0, blocks, inodes_at, 0, identity, b"", _CHUNKS_AND_DEVICES),
        *(0, 1, _SUPER_OFFSET // _DEVICE_SLOT + 1, 0, 0, 0, 0, 0),
    )
    device = _DEVICE.pack(b"", tar_blocks, TAR_BLOCK)
    return (bytes(_SUPER_OFFSET) + super_block + device).ljust(HEADER_BLOCKS * BLOCK, b"\0")


def parse_header(head: bytes) -> Head:
    """Return what a header says. Raises Malformed; whether it says more, only `header` can tell."""
    if len(head) != HEADER_BLOCKS * BLOCK:
        raise Malformed("it has no header")
    said = _SUPER.unpack_from(head, _SUPER_OFFSET)
    return Head(root=said[5], inodes=said[6], inodes_at=said[10], identity=said[12])


def with_blocks(head: bytes, blocks: int) -> bytes:
    """Return a header of an index that has so many blocks."""
    said = list(_SUPER.unpack_from(head, _SUPER_OFFSET))
    said[_BLOCKS_FIELD] = blocks
    return head[:_SUPER_OFFSET] + _SUPER.pack(*said) + head[_SUPER_OFFSET + _SUPER.size :]


def parse_inode(region: bytes | mmap.mmap, at: int) -> Inode:
    """Return what an encoded inode says. Raises Malformed."""
    form, units, mode, reserved, size, place, number, _, _, _, nanoseconds, links = _INODE.unpack_from(region, at)
    layout, extended = form >> 1, form & _EXTENDED
    unused = region[at + INODE_SIZE - _UNUSED : at + INODE_SIZE]
    if not extended or reserved or layout not in (PLAIN, INLINE, CHUNKED) or nanoseconds >= 10**9 or any(unused):
        raise Malformed(f"inode {number} has an unknown form")
    return Inode(layout, _XATTRS.size + 4 * (units - 1) if units else 0, mode, size, place, number, links)


def parse_xattrs(said: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield encoded extended attributes. Raises Malformed."""
    if any(said[: _XATTRS.size]):
        raise Malformed("attributes have an unknown header")
    at, end = _XATTRS.size, len(said)
    while at < end:
        length, index, size = _XATTR.unpack_from(said, at)
        at += _XATTR.size
        name, value = said[at : at + length], said[at + length : at + length + size]
        prefix = next((prefix for prefix, known in _PREFIXES if known == index), b"")
        if not prefix or (prefix.endswith(b".") != bool(name)) or b"\0" in name or len(value) != size:
            raise Malformed(f"an attribute of kind {index} has the name {name!r}")
        yield prefix + name, value
        at += length + size
        at += -at % 4


def entries_of(blocks: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the names of an encoded directory, with the numbers and types of their inodes. Raises Malformed."""
    for start in range(0, len(blocks), BLOCK):
        block = blocks[start : start + BLOCK]
        heads = int.from_bytes(block[8:10], "little")  # the first name follows the heads
        text = block.rstrip(b"\0")
        if len(block) != BLOCK or not heads or heads % _NAME.size or heads >= len(text) or b"\0" in text[heads:]:
            raise Malformed("a block of a directory has a wrong form")
        found = list(_NAME.iter_unpack(block[:heads]))
        ends = [at for _, at, _ in found[1:]] + [len(text)]
        before = heads
        for (number, at, kind), end in zip(found, ends, strict=True):
            if at != before or not at < end <= len(text):
                raise Malformed("a block of a directory has names at wrong places")
            yield text[at:end], number, kind
            before = end
