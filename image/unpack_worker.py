"""The short-lived process that does what would keep the daemon's interpreter busy: unpacking a layer, removing trees.

It is a fresh `python -I -S` with only the standard library. argv[1] is the request as JSON, standard input a layer's
blob, standard output the answer: {"ok": {...}} or {"error": kind, "message": text}.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import queue
import signal
import sys
import threading
import zlib
from collections.abc import Iterator
from typing import Any, NoReturn

from image.layer import LayerWriter, remove_tree
from image.tar import ByteStream, TarError, TarReader

_READ = 256 << 10  # bytes read of the blob at a time
_CHUNK = 1 << 20  # bytes decompressed at a time
_AHEAD = 8  # chunks decompressed before they are unpacked
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_PR_SET_PDEATHSIG = 1

_FULL = (errno.ENOSPC, errno.EDQUOT)
# What the kernel says of an entry that no correct archive has.
_INVALID = (
    errno.EEXIST,
    errno.EFBIG,
    errno.EINVAL,
    errno.EISDIR,
    errno.ELOOP,
    errno.EMLINK,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.E2BIG,
    errno.ERANGE,
    errno.EXDEV,
)


class _Refused(Exception):
    """The request cannot be done: `kind` is one the parent knows."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class _Blob:
    """Reads, checks and decompresses a blob in a thread of its own, so that a second core helps."""

    def __init__(self, descriptor: int, size: int, digest: str, diff_id: str) -> None:
        self._descriptor = descriptor
        self._left = size
        self._digest = digest
        self._diff_id = diff_id
        self._chunks: queue.Queue[bytes | BaseException] = queue.Queue(_AHEAD)
        self._compressed = hashlib.sha256()
        self._content = hashlib.sha256()
        threading.Thread(target=self._run, daemon=True).start()

    def chunks(self) -> Iterator[bytes]:
        """The content; ends only when both digests were right."""
        while chunk := self._chunks.get():
            if isinstance(chunk, BaseException):
                raise chunk
            yield chunk

    def _run(self) -> None:
        try:
            for chunk in _decompress(self._pieces()):
                self._content.update(chunk)
                self._chunks.put(chunk)
            self._check()
            self._chunks.put(b"")
        except BaseException as error:
            self._chunks.put(error)

    def _pieces(self) -> Iterator[bytes]:
        while self._left:
            piece = os.read(self._descriptor, min(_READ, self._left))
            if not piece:
                raise _Refused("digest", f"blob ends {self._left} bytes early")
            self._left -= len(piece)
            self._compressed.update(piece)
            yield piece

    def _check(self) -> None:
        for _ in self._pieces():  # what follows the compressed stream counts for the digest too
            pass
        digest = f"sha256:{self._compressed.hexdigest()}"
        if self._digest and digest != self._digest:
            raise _Refused("digest", f"blob has digest {digest}")
        diff_id = f"sha256:{self._content.hexdigest()}"
        if diff_id != self._diff_id:
            raise _Refused("digest", f"content has digest {diff_id}, the image's configuration says {self._diff_id}")


def _decompress(pieces: Iterator[bytes]) -> Iterator[bytes]:
    first = next(pieces, b"")
    while len(first) < len(_ZSTD) and (more := next(pieces, b"")):
        first += more
    if first.startswith(_ZSTD):
        raise _Refused("invalid", "zstd compression is not supported")
    if not first.startswith(_GZIP):
        yield from filter(None, (first,))
        yield from pieces
        return
    try:
        yield from _gunzip(first, pieces)
    except zlib.error as error:
        raise _Refused("invalid", f"damaged gzip stream: {error}") from None


def _gunzip(piece: bytes, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """All members of a gzip stream; zeros may follow the last."""
    stream = zlib.decompressobj(wbits=31)
    while piece:
        if chunk := stream.decompress(piece, _CHUNK):
            yield chunk
        if stream.eof:
            piece = stream.unused_data.lstrip(b"\0")
            while not piece and (more := next(pieces, b"")):
                piece = more.lstrip(b"\0")
            stream = zlib.decompressobj(wbits=31) if piece else stream
        else:
            piece = stream.unconsumed_tail or next(pieces, b"")
    if not stream.eof:
        raise _Refused("invalid", "gzip stream ends early")


def _unpack(request: dict[str, Any]) -> dict[str, Any]:
    root = os.open(request["directory"], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    # All is done below descriptors anyway; should a way out be found, it ends in the same directory.
    os.fchdir(root)
    os.chroot(".")
    blob = _Blob(0, request["size"], request["digest"], request["diff_id"])
    stream = ByteStream(blob.chunks())
    usage = LayerWriter(root).write(TarReader(stream))
    stream.drain()
    return {"size": usage.size, "inodes": usage.inodes, "implied": [os.fsdecode(path) for path in usage.implied]}


def _remove(request: dict[str, Any]) -> dict[str, Any]:
    for path in request["paths"]:
        parent = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            remove_tree(parent, os.fsencode(os.path.basename(path)))
        except FileNotFoundError:
            pass
        finally:
            os.close(parent)
    return {}


def _answer(answer: dict[str, Any]) -> NoReturn:
    text = json.dumps(answer).encode()
    while text:
        text = text[os.write(1, text) :]
    os._exit(0)  # the blob's thread may still be at work


def main() -> None:
    """Do the one request of argv[1] and end the process."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.umask(0)
    request = json.loads(sys.argv[1])
    try:
        _answer({"ok": _unpack(request) if request["do"] == "unpack" else _remove(request)})
    except _Refused as error:
        kind, message = error.kind, str(error)
    except TarError as error:
        kind, message = "invalid", str(error)
    except OSError as error:
        kind = "full" if error.errno in _FULL else "invalid" if error.errno in _INVALID else "failed"
        place = f"entry {str(error.filename)[:200]!r}: " if error.filename else ""
        message = f"{place}{error.strerror}"
    _answer({"error": kind, "message": message})
