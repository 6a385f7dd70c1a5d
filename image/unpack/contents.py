"""Puts the contents of a layer's files into the files, or notes their places for an index."""

from __future__ import annotations

import os
from typing import Protocol

from image.erofs.index import Index
from image.unpack.tar import TarReader
from image.unpack.tar_header import Entry


class Contents(Protocol):
    def put(self, descriptor: int, entry: Entry, reader: TarReader) -> None:
        """Take the content of the new and empty file `descriptor`. Raises TarError, OSError."""
        ...


class Written:
    """Writes contents into the files."""

    def put(self, descriptor: int, entry: Entry, reader: TarReader) -> None:
        if entry.segments is None:
            for piece in reader.content(entry.stored):
                write_all(descriptor, piece)
            return
        for offset, length in entry.segments:
            os.lseek(descriptor, offset, os.SEEK_SET)
            for piece in reader.content(length):
                write_all(descriptor, piece)
        os.ftruncate(descriptor, entry.size)


class Located:
    """Leaves contents in the tar and reports their positions to `index`; the files only get their sizes."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def put(self, descriptor: int, entry: Entry, reader: TarReader) -> None:
        if not entry.size:
            return
        ino = os.fstat(descriptor).st_ino
        if entry.segments is None:
            self._index.place(ino, reader.position, entry.stored)
            for _ in reader.content(entry.stored):
                pass
        else:
            self._index.expand(ino, entry.size, entry.segments, reader.content)
        os.ftruncate(descriptor, entry.size)


class Left:
    """Leaves contents where they are, and files empty: only names and attributes are asked for."""

    def put(self, descriptor: int, entry: Entry, reader: TarReader) -> None: ...


def write_all(descriptor: int, piece: memoryview) -> None:
    """Write all of `piece`. Raises OSError."""
    while piece:
        piece = piece[os.write(descriptor, piece) :]
