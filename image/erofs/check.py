"""Checks an index before the kernel mounts it: it has nothing that image.erofs.index would not have written.

The kernel gets what a worker wrote that had parsed an image; a worker that an image took over must not reach the kernel
by it. So every byte that the kernel interprets is checked in another process: numbers of blocks and
bytes are within the two files, names are names, each directory is in the tree once, no attribute controls overlayfs.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
from collections import Counter
from dataclasses import dataclass, field

from image.erofs.layout import (
    BLOCK,
    CHUNKED,
    DIRECTORY_TYPE,
    ENTRY_TYPES,
    HEADER_BLOCKS,
    HOLE,
    INLINE,
    INODE_SIZE,
    PLAIN,
    SIZE_LIMIT,
    SLOT,
    TAR_BLOCK,
    Inode,
    Malformed,
    entries_of,
    header,
    parse_header,
    parse_inode,
    parse_xattrs,
)
from image.erofs.seal import Seal
from linux.tables import OVERLAY_ATTRIBUTES, OVERLAY_OPAQUE, USERS_OVERLAY_ATTRIBUTES

_TARGET_LIMIT = 4095  # bytes of a symbolic link
_CHUNK_BITS = range(3, 32)
_KINDS = {kind: mode for mode, kind in ENTRY_TYPES.items()}
_RESERVED = (OVERLAY_ATTRIBUTES.encode(), USERS_OVERLAY_ATTRIBUTES.encode())
_OPAQUE = (OVERLAY_OPAQUE.encode(), b"y")


def check(index: int, tar: int) -> Seal:
    """Check the open index of an open tar, and return its seal. Raises Malformed, OSError."""
    return _Check(index, os.fstat(index).st_size, os.fstat(tar).st_size).run()


@dataclass(slots=True)
class _Check:
    file: int
    size: int
    tar_size: int
    _inodes: mmap.mmap | bytes = b""
    _shift: int = 0  # of the inodes' first byte in `_inodes`
    _length: int = 0
    _at: int = 0  # block
    _contents_end: int = HEADER_BLOCKS
    _names_begin: int = 1 << 32
    _read: int = 0  # bytes of attributes and tables: inodes that overlap must not take for ever
    _links: dict[int, tuple[int, int]] = field(default_factory=dict)  # by inode: its mode and links
    _found: Counter[int] = field(default_factory=Counter)

    def run(self) -> Seal:
        head = os.pread(self.file, HEADER_BLOCKS * BLOCK, 0)
        said = parse_header(head)
        blocks, tar_blocks = self.size // BLOCK, -(-self.tar_size // BLOCK)
        if self.size % BLOCK or not HEADER_BLOCKS < said.inodes_at < blocks <= TAR_BLOCK:
            raise Malformed(f"it has {self.size} bytes, inodes from block {said.inodes_at} on")
        if head != header(
            blocks=blocks, inodes_at=said.inodes_at, root=said.root, inodes=said.inodes, tar_blocks=tar_blocks,
            identity=said.identity,
        ):  # fmt: skip
            raise Malformed("its header is not one of an index of this tar")
        self._at = said.inodes_at
        begin = said.inodes_at * BLOCK
        aligned = begin - begin % mmap.ALLOCATIONGRANULARITY
        self._shift, self._length = begin - aligned, self.size - begin
        with mmap.mmap(self.file, self.size - aligned, prot=mmap.PROT_READ, offset=aligned) as self._inodes:
            self._walk(said.root)
        if len(self._links) != said.inodes:
            raise Malformed(f"it has {len(self._links)} inodes, not {said.inodes}")
        for number, count in self._found.items():
            if self._links[number][1] != count:
                raise Malformed(f"inode {number} has {count} names, not {self._links[number][1]}")
        if self._contents_end > self._names_begin:
            raise Malformed("contents of files overlap directories")
        return Seal.of(self.file, self._names_begin)

    def _walk(self, root: int) -> None:
        waiting = [(root, root)]
        self._inode(root)
        while waiting:
            number, parent = waiting.pop()
            waiting += self._directory(number, parent)

    def _directory(self, number: int, parent: int) -> list[tuple[int, int]]:
        """Check a directory and the inodes that it names; return its directories, with this one as their parent."""
        it = self._parsed(number)
        content = os.pread(self.file, it.size, it.place * BLOCK)
        directories = []
        own = {b".": number, b"..": parent}
        before = b""
        for name, child, kind in entries_of(content):
            if name <= before or len(name) > 255 or b"/" in name:
                raise Malformed(f"directory {number} has a wrong name after {before[:80]!r}")
            before = name
            if (expected := own.pop(name, None)) is not None:
                if (child, kind) != (expected, DIRECTORY_TYPE):
                    raise Malformed(f"directory {number} has a wrong {name.decode()}")
                continue
            known = self._links.get(child)
            if kind == DIRECTORY_TYPE:
                if known is not None:
                    raise Malformed(f"directory {child} has two names")
                directories.append((child, number))
            else:
                self._found[child] += 1
            mode = known[0] if known is not None else self._inode(child)
            if _KINDS.get(kind) != stat.S_IFMT(mode):
                raise Malformed(f"name {name[:80]!r} has type {kind}, its inode mode {mode:o}")
        if own or it.links != 2 + len(directories):
            raise Malformed(f"directory {number} is incomplete")
        return directories

    def _parsed(self, number: int) -> Inode:
        if not 0 < number * SLOT <= self._length - INODE_SIZE:
            raise Malformed(f"inode {number} is out of range")
        it = parse_inode(self._inodes, self._shift + number * SLOT)
        if it.number != number & 0xFFFF_FFFF:
            raise Malformed(f"inode {number} says that it is {it.number}")
        return it

    def _inode(self, number: int) -> int:
        """Check an inode and what follows it; return its mode."""
        it = self._parsed(number)
        kind = stat.S_IFMT(it.mode)
        at = number * SLOT + INODE_SIZE
        behind = at + it.xattrs_size
        if behind > self._length:
            raise Malformed(f"attributes of inode {number} are out of range")
        if it.xattrs_size:
            self._xattrs(number, at, it.xattrs_size)
        if it.mode & ~0o177_777 or not it.links:
            raise Malformed(f"inode {number} has mode {it.mode:o}, {it.links} links")
        if kind == stat.S_IFDIR:
            right = it.layout == PLAIN and it.size and not it.size % BLOCK and self._are_names(it.place, it.size)
        elif kind == stat.S_IFREG:
            right = it.size < SIZE_LIMIT and self._is_file(it, behind)
        elif kind == stat.S_IFLNK:
            right = 0 < it.size <= _TARGET_LIMIT and self._is_link(it, behind)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            right = it.layout == PLAIN and not it.size
        else:
            right = kind == stat.S_IFIFO and it.layout == PLAIN and not it.size and not it.place
        if not right:
            raise Malformed(f"inode {number} of mode {it.mode:o} has {it.size} bytes in {it.layout} at {it.place}")
        self._links[number] = it.mode, it.links
        return it.mode

    def _are_names(self, place: int, size: int) -> bool:
        self._names_begin = min(self._names_begin, place)
        return place >= HEADER_BLOCKS and place + -(-size // BLOCK) <= self._at

    def _is_content(self, place: int, blocks: int) -> bool:
        self._contents_end = max(self._contents_end, place + blocks)
        return place >= HEADER_BLOCKS and place + blocks <= self._at

    def _is_file(self, it: Inode, behind: int) -> bool:
        blocks = -(-it.size // BLOCK)
        if it.layout == PLAIN:
            if it.place >= TAR_BLOCK:  # the kernel reads whole blocks
                return it.size > 0 and it.place + blocks <= TAR_BLOCK + self.tar_size // BLOCK
            return self._is_content(it.place, blocks) if it.size else not it.place
        if it.layout != CHUNKED or it.place not in _CHUNK_BITS:
            return False
        chunk = 1 << it.place
        table = 4 * -(-blocks // chunk)
        if behind + table > self._length:
            return False
        self._spend(table)
        addresses = struct.iter_unpack("<I", self._cut(behind, table))
        return all(address == HOLE or self._is_content(address, chunk) for (address,) in addresses)

    def _is_link(self, it: Inode, behind: int) -> bool:
        if it.layout == INLINE:
            inside = behind % BLOCK + it.size <= BLOCK and behind + it.size <= self._length and not it.place
            return inside and b"\0" not in self._cut(behind, it.size)
        if it.layout != PLAIN or not self._are_names(it.place, it.size):
            return False
        return b"\0" not in os.pread(self.file, it.size, it.place * BLOCK)

    def _xattrs(self, number: int, at: int, size: int) -> None:
        self._spend(size)
        for key, value in parse_xattrs(self._cut(at, size)):
            if key.startswith(_RESERVED) and (key, value) != _OPAQUE:
                raise Malformed(f"inode {number} has the attribute {key!r}")

    def _cut(self, at: int, size: int) -> bytes:
        return bytes(self._inodes[self._shift + at : self._shift + at + size])

    def _spend(self, size: int) -> None:
        self._read += size
        if self._read > self._length:
            raise Malformed("its inodes overlap")
