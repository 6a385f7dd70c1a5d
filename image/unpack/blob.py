"""Reads, verifies and decompresses a blob: gzip, zstd, or what is neither.

Workers load the libraries before they leave the machine's root directory.
"""

from __future__ import annotations

import hashlib
import os
import queue
import re
import threading
import time
from collections.abc import Iterator
from typing import IO, cast

import zstandard
from isal import isal_zlib

from image.unpack.contents import write_all

READ = 128 << 10  # bytes to read of the blob at a time
_CHUNK = 128 << 10  # bytes to decompress at a time: they pass through hashes, file and reader within the caches
_TRIED = 8 << 20  # bytes of a blob after which it is known how fast it comes
_WORTH_SECONDS = 10.0  # that a blob takes to come, if its bytes are to be there for another pull
_AHEAD = 2  # chunks to decompress ahead of the unpacking
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_SKIPPABLE_ZSTD = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")
_ZSTD_WINDOW = 256 << 20  # bytes: `zstd --long=28`, half of a worker's memory limit


class Refused(Exception):
    """The request failed; `kind` is known to the parent."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Blob:
    """Reads, verifies and decompresses a blob in a separate thread, to use a second core."""

    def __init__(
        self,
        descriptor: int,
        size: int,
        digest: str,
        diff_id: str,
        limit: int,
        copy: int | None,
        tar: int | None,
        *,
        keep: bool,
    ) -> None:
        """`copy` is a file for the blob as transferred, which may have its beginning, `tar` one for its content.

        Without `keep`, the copy is given up if the blob comes quickly: to write it would take longer than it is worth.
        """
        self._descriptor = descriptor
        self._limit = limit
        self._copy = copy
        self._came = os.fstat(copy).st_size if copy is not None else 0  # bytes of the copy that were there before
        self._read_back = 0  # bytes of those
        self._undecided = copy is not None and not keep and not self._came
        self._size = size
        self._began = time.monotonic()
        self._tar = tar
        self._left = size
        self._digest = digest
        self._diff_id = diff_id
        self._chunks: queue.Queue[bytes | BaseException] = queue.Queue(_AHEAD)
        self._compressed = hashlib.sha256()
        self._content = hashlib.sha256()
        threading.Thread(target=self._run, daemon=True).start()

    def chunks(self) -> Iterator[bytes]:
        """Yield the content. It ends only if both digests are right."""
        while chunk := self._chunks.get():
            if isinstance(chunk, BaseException):
                raise chunk
            yield chunk

    def _run(self) -> None:
        try:
            size = 0
            for chunk in decompress(self._pieces()):
                size += len(chunk)
                if self._limit and size > self._limit:
                    raise Refused("invalid", f"it unpacks to more than {self._limit} bytes (layer_limit)")
                self._content.update(chunk)
                if self._tar is not None:
                    write_all(self._tar, memoryview(chunk))
                self._chunks.put(chunk)
            self._check()
            self._chunks.put(b"")
        except BaseException as error:
            self._chunks.put(error)

    def _pieces(self) -> Iterator[bytes]:
        while self._copy is not None and self._read_back < self._came:
            piece = os.pread(self._copy, min(READ, self._came - self._read_back), self._read_back)
            self._read_back += len(piece)
            self._left -= len(piece)
            self._compressed.update(piece)
            yield piece
        while self._left:
            piece = os.read(self._descriptor, min(READ, self._left))
            if not piece:
                raise Refused("digest", f"blob ends {self._left} bytes early")
            self._left -= len(piece)
            self._compressed.update(piece)
            if self._copy is not None:
                write_all(self._copy, memoryview(piece))
                if self._undecided and self._size - self._left >= _TRIED:
                    self._decide(self._copy)
            yield piece

    def _decide(self, copy: int) -> None:
        self._undecided = False
        if (time.monotonic() - self._began) * self._size < _WORTH_SECONDS * (self._size - self._left):
            os.ftruncate(copy, 0)
            self._copy = None

    def _check(self) -> None:
        for _ in self._pieces():  # the digest includes data after the compressed stream
            pass
        digest = f"sha256:{self._compressed.hexdigest()}"
        if self._digest and digest != self._digest:
            raise Refused("digest", f"blob has digest {digest}")
        diff_id = f"sha256:{self._content.hexdigest()}"
        if self._diff_id and diff_id != self._diff_id:
            raise Refused("digest", f"content has digest {diff_id}, the image's configuration says {self._diff_id}")


def decompress(pieces: Iterator[bytes]) -> Iterator[bytes]:
    first = next(pieces, b"")
    while len(first) < len(_ZSTD) and (more := next(pieces, b"")):
        first += more
    if first.startswith(_ZSTD) or _SKIPPABLE_ZSTD.match(first):
        yield from _unzstd(first, pieces)
    elif first.startswith(_GZIP):
        try:
            yield from _gunzip(first, pieces)
        except isal_zlib.error as error:  # type: ignore[misc]  # its stub calls the class an instance
            raise Refused("invalid", f"damaged gzip stream: {error}") from None
    else:
        yield from filter(None, (first,))
        yield from pieces


class _Source:
    """Makes chunks readable as a file; each read returns what is available."""

    def __init__(self, first: bytes, pieces: Iterator[bytes]) -> None:
        self._left = first
        self._pieces = pieces

    def read(self, size: int) -> bytes:
        piece = self._left or next(self._pieces, b"")
        self._left = piece[size:]
        return piece[:size]


def _unzstd(first: bytes, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Decompress all frames of a zstd stream (RFC 8878)."""
    source = cast(IO[bytes], _Source(first, pieces))  # only `read` is used
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    try:
        with decompressor.stream_reader(source, READ, read_across_frames=True) as reader:
            while chunk := reader.read(_CHUNK):
                yield chunk
    except zstandard.ZstdError as error:
        raise Refused("invalid", f"damaged zstd stream: {error}") from None


def _gunzip(piece: bytes, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Decompress all members of a gzip stream; zeros may follow the last one."""
    stream = isal_zlib.decompressobj(wbits=31)
    while piece:
        if chunk := stream.decompress(piece, _CHUNK):
            yield chunk
        if stream.eof:
            piece = stream.unused_data.lstrip(b"\0")
            while not piece and (more := next(pieces, b"")):
                piece = more.lstrip(b"\0")
            stream = isal_zlib.decompressobj(wbits=31) if piece else stream
        else:
            piece = stream.unconsumed_tail or next(pieces, b"")
    if not stream.eof:
        raise Refused("invalid", "gzip stream ends early")
