"""Writes the index of a layer: each inode with its attributes and names, and the place of its content in the tar."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from image.erofs.layout import (
    BLOCK,
    BLOCKS_LIMIT,
    CHUNKED,
    DIRECTORY_TYPE,
    ENTRY_TYPES,
    HEADER_BLOCKS,
    HOLE,
    INLINE,
    INODE_SIZE,
    PAGE_BLOCKS,
    PLAIN,
    SIZE_LIMIT,
    SLOT,
    TAR_BLOCK,
    Attributes,
    TooLarge,
    chunks,
    described,
    device_number,
    directory_blocks,
    extended_attributes,
    header,
    inode,
    inodes_of,
    parse_header,
    with_blocks,
)
from image.erofs.notes import Notes

_INLINE_LIMIT = BLOCK - SLOT  # bytes after an inode that always fit in a block with it
_CHUNKS = 1024  # of a sparse file, if it has few segments
_CHUNKS_A_SEGMENT = 4
_PIECE = 1 << 20  # bytes copied at a time
ROOT = 1  # the inode number of the root: readdir(3) skips number 0

Content = Iterable[memoryview]


@dataclass(frozen=True, slots=True)
class Sparse:
    """The places of a sparse file's chunks."""

    bits: int
    addresses: bytes


@dataclass(slots=True)
class _Directory:
    """A directory during the walk. Its inode is placed before its children's, but written after its names are known."""

    number: int
    at: int
    about: Attributes
    xattrs: bytes
    pending: list[tuple[bytes, bool]]  # names, the first at the end, and whether they are directories
    names: list[tuple[bytes, int, int]]
    links: int = 2


@dataclass(slots=True)
class Index:
    """Writes an index into `file`, which is open and empty. Raises TooLarge, OSError.

    `place` and `expand` name an inode by its number in the tree that `write` walks, and so do the `notes`, which have
    what the tree does not tell.
    """

    file: int
    notes: Notes = field(default_factory=Notes)
    _plain: dict[int, int] = field(default_factory=dict)
    _sparse: dict[int, Sparse] = field(default_factory=dict)
    _next: int = HEADER_BLOCKS
    _inodes: bytearray = field(default_factory=lambda: bytearray(SLOT * ROOT))
    _numbers: dict[int, int] = field(default_factory=dict)  # of files with hard links
    _count: int = 0
    _last: tuple[int, int, int] = (0, 0, 0)  # inode, offset and size of the last content of the tar

    def place(self, ino: int, offset: int, size: int) -> None:
        """Note that the inode's content, `size` bytes, is at `offset` of the tar. Call it in the order of the tar."""
        block, odd = divmod(offset, BLOCK)
        if odd or TAR_BLOCK + block >= BLOCKS_LIMIT:
            raise TooLarge(f"content at {offset} of the archive")
        self._plain[ino] = TAR_BLOCK + block
        self._last = ino, offset, size

    def expand(self, ino: int, size: int, segments: Sequence[tuple[int, int]], read: Callable[[int], Content]) -> None:
        """Copy a sparse file's segments, which `read` yields one after another, into the index.

        In the archive they need not begin at a block. Holes of the file are holes in the index.
        """
        if size >= SIZE_LIMIT:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        limit = max(_CHUNKS, _CHUNKS_A_SEGMENT * len(segments))
        bits = max(3, (max(size - 1, 0) // BLOCK // limit).bit_length())
        chunk = BLOCK << bits
        addresses = [HOLE] * -(-size // chunk)
        for start, length in segments:
            at = start
            for piece in read(length):
                while piece:
                    number, within = divmod(at, chunk)
                    if addresses[number] == HOLE:
                        addresses[number] = self._take(1 << bits)
                    part = piece[: chunk - within]
                    _write_at(self.file, part, addresses[number] * BLOCK + within)
                    at += len(part)
                    piece = piece[len(part) :]
        table = b"".join(address.to_bytes(4, "little") for address in addresses)
        self._sparse[ino] = Sparse(bits, table)

    def write(self, root: int, tar: int) -> None:
        """Write the index of the tree below the open directory `root`, over the open file `tar`.

        Changes the working directory.
        """
        tar_size = os.fstat(tar).st_size
        self._keep_cut_off(tar, tar_size)
        os.fchdir(root)
        self._walk()
        at = self._take(0)
        inodes = bytes(self._inodes)
        self._take(-(-len(inodes) // BLOCK))
        self._take(-self._next % PAGE_BLOCKS)
        _write_at(self.file, memoryview(inodes), at * BLOCK)
        os.ftruncate(self.file, self._next * BLOCK)
        identity = hashlib.sha256(inodes).digest()[:16]
        tar_blocks = -(-tar_size // BLOCK)
        described = header(
            blocks=self._next, inodes_at=at, root=ROOT, inodes=self._count, tar_blocks=tar_blocks, identity=identity
        )
        _write_at(self.file, memoryview(described), 0)

    def _keep_cut_off(self, tar: int, tar_size: int) -> None:
        """Copy the last file into the index if the tar ends within a block: the kernel reads whole blocks only."""
        ino, offset, size = self._last
        if offset + size <= tar_size - tar_size % BLOCK:
            return
        place = self._plain[ino] = self._take(-(-size // BLOCK))
        for at in range(0, size, _PIECE):
            piece = os.pread(tar, min(_PIECE, size - at), offset + at)
            _write_at(self.file, memoryview(piece), place * BLOCK + at)

    def _walk(self) -> None:
        path = [self._enter(b".", None)]
        while path:
            here = path[-1]
            if not here.pending:
                self._finish(path.pop())
                if path:
                    os.chdir(b"..")
                continue
            name, is_directory = here.pending.pop()
            if is_directory:
                os.chdir(name)
                below = self._enter(name, here)
                path.append(below)
            else:
                there = os.lstat(name)
                number = self._numbers.get(there.st_ino) or self._leaf(name, there)
                here.names.append((name, number, ENTRY_TYPES[self.notes.device(there)[0]]))

    def _enter(self, name: bytes, parent: _Directory | None) -> _Directory:
        """Reserve an inode for the working directory; `_finish` writes it when the names are known."""
        there = os.lstat(b".")
        xattrs = extended_attributes(self.notes.xattrs(there.st_ino))
        number, at = self._append(bytes(INODE_SIZE), xattrs)
        if parent is not None:
            parent.names.append((name, number, DIRECTORY_TYPE))
            parent.links += 1
        with os.scandir(b".") as scan:
            # Not the entries themselves, which keep what they were asked: a directory may have very many.
            found = sorted(((entry.name, entry.is_dir(follow_symlinks=False)) for entry in scan), reverse=True)
        names = [(b".", number, DIRECTORY_TYPE), (b"..", parent.number if parent else number, DIRECTORY_TYPE)]
        return _Directory(number, at, self._attributes(there, stat.S_IFDIR), xattrs, found, names)

    def _finish(self, it: _Directory) -> None:
        it.names.sort()  # some names sort before "."
        content = directory_blocks(it.names)
        place = self._data(content)
        said = inode(it.about, it.number, PLAIN, place, size=len(content), links=it.links, xattrs=it.xattrs)
        self._inodes[it.at : it.at + INODE_SIZE] = said

    def _leaf(self, name: bytes, there: os.stat_result) -> int:
        size, layout, place, behind = 0, PLAIN, 0, b""
        kind, device = self.notes.device(there)
        if kind == stat.S_IFREG:
            size = there.st_size
            if (sparse := self._sparse.get(there.st_ino)) is not None:
                layout, place, behind = CHUNKED, chunks(sparse.bits), sparse.addresses
            else:
                place = self._plain.get(there.st_ino, 0)
        elif kind == stat.S_IFLNK:
            target = os.readlink(name)
            size = len(target)
            if size <= _INLINE_LIMIT:
                layout, behind = INLINE, target
            else:
                place = self._data(target)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            place = device_number(os.major(device), os.minor(device))
        xattrs = extended_attributes(self.notes.xattrs(there.st_ino))
        number, at = self._append(bytes(INODE_SIZE), xattrs, behind, whole=layout == INLINE)
        about = self._attributes(there, kind)
        said = inode(about, number, layout, place, size=size, links=there.st_nlink, xattrs=xattrs)
        self._inodes[at : at + INODE_SIZE] = said
        if there.st_nlink > 1:
            self._numbers[there.st_ino] = number
        return number

    def _attributes(self, there: os.stat_result, kind: int) -> Attributes:
        owned = self.notes.owned(there)
        return Attributes(kind | owned.mode, owned.uid, owned.gid, there.st_mtime_ns)

    def _append(self, said: bytes, xattrs: bytes, behind: bytes = b"", *, whole: bool = False) -> tuple[int, int]:
        """Append an inode; return its number and offset. `whole`: keep the inode and `behind` in one block."""
        at = len(self._inodes) + -len(self._inodes) % SLOT
        while whole and (at + len(said) + len(xattrs)) % BLOCK + len(behind) > BLOCK:
            at += SLOT
        self._inodes += bytes(at - len(self._inodes)) + said + xattrs + behind
        self._count += 1
        return at // SLOT, at

    def _data(self, content: bytes) -> int:
        place = self._take(-(-len(content) // BLOCK))
        _write_at(self.file, memoryview(content), place * BLOCK)
        return place

    def _take(self, blocks: int) -> int:
        """Reserve so many blocks, and return the first."""
        place = self._next
        self._next += blocks
        if self._next > TAR_BLOCK:
            raise TooLarge(f"an index of more than {TAR_BLOCK * BLOCK} bytes")
        return place


def describe(path: str | os.PathLike[str], directories: Iterable[tuple[int, Attributes]]) -> None:
    """Set the attributes of `directories`, by inode number, in a written index. Raises OSError."""
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        begin = inodes_of(os.pread(file, HEADER_BLOCKS * BLOCK, 0))
        for number, about in directories:
            at = begin + number * SLOT
            said = described(os.pread(file, INODE_SIZE, at), about)
            _write_at(file, memoryview(said), at)
    finally:
        os.close(file)


def is_short(path: str | os.PathLike[str]) -> bool:
    """Return whether an index ends within a page, as those of an earlier crisp do. Raises OSError."""
    return os.stat(path).st_size % (PAGE_BLOCKS * BLOCK) != 0


def lengthen(path: str | os.PathLike[str]) -> None:
    """Make an index end with a page; it may be mounted. After an interruption it can be done again.

    Raises Malformed, OSError.
    """
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        said = os.pread(file, HEADER_BLOCKS * BLOCK, 0)
        parse_header(said)
        blocks = -(-os.fstat(file).st_size // BLOCK)
        blocks += -blocks % PAGE_BLOCKS
        os.ftruncate(file, blocks * BLOCK)
        _write_at(file, memoryview(with_blocks(said, blocks)), 0)
        os.fsync(file)
    finally:
        os.close(file)


def _write_at(file: int, piece: memoryview, offset: int) -> None:
    while piece:
        written = os.pwrite(file, piece, offset)
        piece, offset = piece[written:], offset + written
