"""Tells whether an index is the one that was checked, by digests of what the kernel interprets, and of the rest."""

from __future__ import annotations

import errno
import hashlib
import os
from dataclasses import dataclass

from image.erofs.layout import BLOCK, HEADER_BLOCKS

_PAGE = 4096  # bytes
_ZEROS = bytes(_PAGE)
_PIECE = 1 << 20  # bytes read at a time


class Changed(OSError):
    """The index is not the one that was checked."""


@dataclass(frozen=True, slots=True)
class Seal:
    """The digests of an index whose directories, links and inodes begin at block `begin`.

    Before that block are contents of files. They may be large, with holes, and the kernel only copies them: they are
    not read again for each mount.
    """

    begin: int
    said: str  # the digest of the header and of all from `begin` on
    contents: str

    @classmethod
    def of(cls, index: int, begin: int) -> Seal:
        """Make the seal of an open index. Raises OSError."""
        return cls(begin, _said(index, begin), _contents(index, begin))

    @classmethod
    def parse(cls, text: str) -> Seal:
        """Return the seal that has this `text`. Raises ValueError."""
        begin, said, contents = text.split(":")
        return cls(int(begin), said, contents)

    @property
    def text(self) -> str:
        return f"{self.begin}:{self.said}:{self.contents}"

    def require(self, index: int) -> None:
        """Raise Changed if the kernel would interpret an open index as another one than this. Raises OSError."""
        if _said(index, self.begin) != self.said:
            raise Changed(errno.EUCLEAN, "its index was changed: run crisp image verify --repair")

    def is_of(self, index: int) -> bool:
        """Return whether all of an open index is as it was. Raises OSError."""
        return Seal.of(index, self.begin) == self


def _said(index: int, begin: int) -> str:
    found = hashlib.sha256(os.pread(index, HEADER_BLOCKS * BLOCK, 0))
    at = begin * BLOCK
    while piece := os.pread(index, _PIECE, at):
        found.update(piece)
        at += len(piece)
    return found.hexdigest()


def _contents(index: int, begin: int) -> str:
    """Return the digest of the pages up to `begin` that are not all zeros: a copy of a file may have other holes."""
    found = hashlib.sha256()
    at, end = 0, -(-begin * BLOCK // _PAGE) * _PAGE
    while at < end:
        try:
            at = max(at, os.lseek(index, at, os.SEEK_DATA) // _PAGE * _PAGE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole follows
                break
            raise
        piece = os.pread(index, min(_PIECE, end - at), at)
        for start in range(0, len(piece), _PAGE):
            page = piece[start : start + _PAGE]
            if page != _ZEROS[: len(page)]:
                found.update(b"%d:" % (at + start) + page)
        at += max(len(piece), _PAGE)
    return found.hexdigest()
