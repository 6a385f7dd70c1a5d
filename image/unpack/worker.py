"""Short-lived processes for work that would block the daemon's interpreter: unpacking layers, removing trees.

`serve` runs in a fresh `python -I -S` with little more than the standard library, which is kept warm. It forks a worker
for each request, and has given up all rights that no worker needs (image.unpack.confinement). A worker reads its
request (JSON) and a layer's blob from descriptors, and has others for what it writes, in the order of its action's
parameters. On another one it answers with a line break, to say that it exists, and then with {"ok": {...}} or
{"error": kind, "message": text}.
"""

from __future__ import annotations

import errno
import gc
import hashlib
import json
import os
import queue
import re
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import IO, Any, NoReturn, cast

import zstandard  # imported now, because a worker's root is the layer
from isal import isal_zlib

from image.erofs.check import check
from image.erofs.index import Index, describe
from image.erofs.layout import Malformed, TooLarge
from image.erofs.mount import INDEX
from image.erofs.notes import Notes
from image.unpack.confinement import (
    COUNTS,
    DATA_LIMIT,
    HAS_DESCRIPTORS,
    LOOKS_BELOW,
    MAKES_A_SKELETON,
    REMOVES,
    SETTLES,
    UNPACKS,
    Rights,
    become_nobody,
    close_in,
    enter,
    enter_skeleton,
    give_up,
    is_full,
)
from image.unpack.contents import Left, Located, write_all
from image.unpack.directories import ONLY_ROOT, parse_unsettled
from image.unpack.inodes import Noted, Real
from image.unpack.layer_root import open_root
from image.unpack.layer_writer import LayerUsage, LayerWriter
from image.unpack.lowers import Lowers, Remembered, TooMuch, note
from image.unpack.overlay import PLAIN_DIRECTORY
from image.unpack.settling import Tree, attributes_to_adopt, settle
from image.unpack.tar import ByteStream, TarReader
from image.unpack.tar_header import TarError
from image.unpack.trees import inodes_below, remove_tree
from linux import syscalls

_READ = 128 << 10  # bytes to read of the blob at a time
_CHUNK = 128 << 10  # bytes to decompress at a time: they pass through hashes, file and reader within the caches
_TRIED = 8 << 20  # bytes of a blob after which it is known how fast it comes
_WORTH_SECONDS = 10.0  # that a blob takes to come, if its bytes are to be there for another pull
_AHEAD = 2  # chunks to decompress ahead of the unpacking
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_SKIPPABLE_ZSTD = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")
_ZSTD_WINDOW = 256 << 20  # bytes: `zstd --long=28`, half of a worker's memory limit
_PROGRAMS, _PROGRAM_LIMIT = 3, 1 << 16  # seccomp filters, and the bytes of one
_DESCRIPTORS = 16  # of one request, at most

_FULL = (errno.ENOSPC, errno.EDQUOT)
# The kernel's errors for entries that no valid archive has.
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
    """The request failed; `kind` is known to the parent."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class _Blob:
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
            for chunk in _decompress(self._pieces()):
                size += len(chunk)
                if self._limit and size > self._limit:
                    raise _Refused("invalid", f"it unpacks to more than {self._limit} bytes (layer_limit)")
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
            piece = os.pread(self._copy, min(_READ, self._came - self._read_back), self._read_back)
            self._read_back += len(piece)
            self._left -= len(piece)
            self._compressed.update(piece)
            yield piece
        while self._left:
            piece = os.read(self._descriptor, min(_READ, self._left))
            if not piece:
                raise _Refused("digest", f"blob ends {self._left} bytes early")
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
            raise _Refused("digest", f"blob has digest {digest}")
        diff_id = f"sha256:{self._content.hexdigest()}"
        if self._diff_id and diff_id != self._diff_id:
            raise _Refused("digest", f"content has digest {diff_id}, the image's configuration says {self._diff_id}")


def _decompress(pieces: Iterator[bytes]) -> Iterator[bytes]:
    first = next(pieces, b"")
    while len(first) < len(_ZSTD) and (more := next(pieces, b"")):
        first += more
    if first.startswith(_ZSTD) or _SKIPPABLE_ZSTD.match(first):
        yield from _unzstd(first, pieces)
    elif first.startswith(_GZIP):
        try:
            yield from _gunzip(first, pieces)
        except isal_zlib.error as error:  # type: ignore[misc]  # its stub calls the class an instance
            raise _Refused("invalid", f"damaged gzip stream: {error}") from None
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
        with decompressor.stream_reader(source, _READ, read_across_frames=True) as reader:
            while chunk := reader.read(_CHUNK):
                yield chunk
    except zstandard.ZstdError as error:
        raise _Refused("invalid", f"damaged zstd stream: {error}") from None


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
        raise _Refused("invalid", "gzip stream ends early")


_Begin = Callable[[Rights], None]


def _unpack(
    request: dict[str, Any], begin: _Begin, descriptor: int, report: int, copy: int | None, files: Sequence[int]
) -> dict[str, Any]:
    """Unpack a layer into its directory, or write its tar and its index into `files`."""
    tar, index = (files[0], Index(files[1])) if files else (None, None)
    root = enter(request["directory"]) if index is None else enter_skeleton()
    begin(UNPACKS if index is None else MAKES_A_SKELETON)
    blob = _Blob(
        *(descriptor, request["size"], request["digest"], request["diff_id"], request["limit"], copy, tar),
        keep=request["keep"],
    )
    stream = ByteStream(blob.chunks())
    try:
        if index is None or tar is None:
            usage = LayerWriter(root, marked=request["marked"]).write(TarReader(stream))
            stream.drain()
        else:
            usage = LayerUsage(0, 0, _noted(root, index, stream, marked=request["marked"]).unsettled)
            index.write(root, tar)
    except TooLarge as error:
        stream.drain()  # the tar is whole from then on, and what its digest says
        return {"unfit": str(error)}
    for file in (copy if request["keep"] else None, tar, index.file if index is not None else None):
        if file is not None:
            usage.size += os.fstat(file).st_blocks * 512
            usage.inodes += 1
    if usage.unsettled != ONLY_ROOT:
        write_all(report, memoryview(usage.unsettled))
    return {"size": usage.size, "inodes": usage.inodes, "adopts_root": usage.unsettled == ONLY_ROOT}


def _noted(root: int, index: Index, stream: ByteStream, *, marked: bool = False) -> LayerUsage:
    """Write all entries of an archive to a tmpfs, and what they say to the index's notes."""
    try:
        usage = LayerWriter(root, Located(index), Noted(index.notes), marked=marked).write(TarReader(stream))
    except OSError as error:
        if error.errno == errno.ENOSPC and is_full(root):
            raise TooLarge("too many inodes") from None
        raise
    stream.drain()
    return usage


def _settle(request: dict[str, Any], begin: _Begin, report: int) -> dict[str, Any]:
    """Finish a layer whose lower layers exist now."""
    with _lowers(request) as lowers:
        layer = os.open(request["directory"], PLAIN_DIRECTORY)
        begin(SETTLES)
        size, inodes = settle(Tree(layer, Real()), lowers, *_unsettled(report))
    return {"size": size, "inodes": inodes}


def _settle_index(request: dict[str, Any], begin: _Begin, report: int) -> dict[str, Any]:
    """Finish an indexed layer by overwriting inodes of its index, if no more is needed; say whether that was so."""
    with _lowers(request) as lowers:
        layer = open_root([request["directory"]], seal=request["seal"])
        begin(LOOKS_BELOW)
        adopted = attributes_to_adopt(Tree(layer, Real()), lowers, *_unsettled(report))
        if adopted:
            describe(os.path.join(request["directory"], INDEX), adopted)
    return {"done": adopted is not None}


def _list_unsettled(_request: dict[str, Any], begin: _Begin, tar: int, report: int) -> dict[str, Any]:
    """Say what of an archive needs the layers below."""
    root = enter_skeleton()
    begin(MAKES_A_SKELETON)
    usage = LayerWriter(root, Left(), Noted(Notes())).write(TarReader(_contents(tar)))
    write_all(report, memoryview(usage.unsettled))
    return {}


def _look_below(request: dict[str, Any], begin: _Begin, report: int, seen: int) -> dict[str, Any]:
    """Write down what the lower layers have where a layer needs them."""
    with _lowers(request) as lowers:
        begin(LOOKS_BELOW)
        implied, whited = _unsettled(report)
        with open(seen, "wb", closefd=False) as file:
            note(lowers, dict.fromkeys((*implied, *whited)), file)
    return {}


def _index_again(_request: dict[str, Any], begin: _Begin, tar: int, file: int, seen: int) -> dict[str, Any]:
    """Write the index of a tar into `file`, where `seen` has what was seen below."""
    root = enter_skeleton()
    begin(MAKES_A_SKELETON)
    index = Index(file)
    usage = _noted(root, index, _contents(tar))
    with open(seen, "rb", closefd=False) as lines:
        lines.seek(0)
        below = Remembered(lines)
    settle(Tree(root, Noted(index.notes)), below, *parse_unsettled(usage.unsettled))
    index.write(root, tar)
    return {"size": os.fstat(file).st_blocks * 512, "inodes": 0}


def _contents(file: int) -> ByteStream:
    os.lseek(file, 0, os.SEEK_SET)
    return ByteStream(iter(lambda: os.read(file, _READ), b""))


def _unsettled(report: int) -> tuple[list[bytes], list[bytes]]:
    with open(report, "rb", closefd=False) as file:
        file.seek(0)
        return parse_unsettled(file.read())


def _check_index(index: int, tar: int) -> dict[str, Any]:
    """Check an index that another worker wrote; return its seal."""
    try:
        return {"seal": check(index, tar).text}
    except Malformed as error:
        raise _Refused("failed", str(error)) from None


def _lowers(request: dict[str, Any]) -> Lowers:
    """Open the lower layers while that is still possible."""
    lowers = Lowers([partial(open_root, below["names"], seal=below["seal"]) for below in request["lowers"]])
    lowers.open_all()
    return lowers


def _inflate(descriptor: int, copy: int) -> dict[str, Any]:
    """Decompress the file at `descriptor` into the file at `copy`."""
    for chunk in _decompress(iter(lambda: os.read(descriptor, _READ), b"")):
        write_all(copy, memoryview(chunk))
    return {}


def _remove(request: dict[str, Any]) -> dict[str, Any]:
    for path in request["paths"]:
        parent = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            remove_tree(parent, os.fsencode(os.path.basename(path)))
        except FileNotFoundError:
            pass
        except NotADirectoryError:
            os.unlink(os.path.basename(path), dir_fd=parent)
        finally:
            os.close(parent)
    return {}


def _survey(request: dict[str, Any]) -> dict[str, Any]:
    """Count a layer's inodes, and find the time of the last change of one."""
    root = os.open(request["directory"], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    inodes = changed = 0
    for there in inodes_below(root):
        inodes += 1
        changed = max(changed, there.st_ctime_ns)
    return {"inodes": inodes, "changed": changed}


def _hash(descriptor: int) -> dict[str, Any]:
    """Return the digest of a file."""
    with open(descriptor, "rb", closefd=False) as file:
        return {"digest": f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"}


_LAYER_ACTIONS: Mapping[str, Callable[..., dict[str, Any]]] = {
    "settle": _settle,
    "settle index": _settle_index,
    "list unsettled": _list_unsettled,
    "look below": _look_below,
    "index again": _index_again,
}
_TREE_ACTIONS = {"remove": (_remove, REMOVES), "survey": (_survey, COUNTS)}
# They have nothing but their descriptors, and need no right to anything else.
_DESCRIPTOR_ACTIONS: Mapping[str, Callable[..., dict[str, Any]]] = {
    "check index": _check_index,
    "inflate": _inflate,
    "hash": _hash,
}


def serve(control: int) -> None:
    """Fork a worker for each message and its descriptors, until the other end is closed."""
    requests = socket.socket(fileno=control)
    programs = [requests.recv(_PROGRAM_LIMIT)[len(b"filter") :] for _ in range(_PROGRAMS)]
    give_up()
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # from a terminal it is meant for the daemon, which ends us
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel collects workers
    os.umask(0)
    gc.freeze()
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, 16, _DESCRIPTORS)
        if not message:
            return
        _fork(requests, programs, *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _fork(
    requests: socket.socket,
    programs: Sequence[bytes],
    request: int,
    blob: int,
    answer: int,
    life: int,
    birth: int,
    *more: int,
) -> None:
    try:
        os.write(answer, b"\n")
        if (worker := os.fork()) == 0:
            syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
            requests.close()
            os.close(birth)
            _work(programs, request, answer, life, (blob, *more))
        _announce(worker, birth)
    except BrokenPipeError:
        pass  # cancelled already
    except OSError as error:
        os.write(answer, f"fork: {error.strerror}".encode())


def _announce(worker: int, birth: int) -> None:
    """Send a worker's pidfd to who asked for it, who kills it by that."""
    with suppress(ProcessLookupError):  # it has ended already
        pidfd = os.pidfd_open(worker)
        try:
            with socket.socket(fileno=os.dup(birth)) as asker:
                socket.send_fds(asker, [b"b"], [pidfd])
        finally:
            os.close(pidfd)


def _work(programs: Sequence[bytes], request: int, answer: int, life: int, descriptors: Sequence[int]) -> NoReturn:
    """Carry out the request and end the process; it also ends when the other end of `life` is closed."""

    def begin(rights: Rights) -> None:
        close_in(rights, programs)  # before other threads exist, to which it would not apply
        threading.Thread(target=_end_with, args=(life,), daemon=True).start()

    try:
        with open(request, "rb") as file:
            reply = _reply(json.loads(file.read()), descriptors, begin)
        text = json.dumps(reply).encode()
    except BaseException:
        text = traceback.format_exc().encode(errors="backslashreplace")
    while text:
        text = text[os.write(answer, text) :]
    os._exit(0)  # the blob's thread may still be running


def _end_with(life: int) -> None:
    os.read(life, 1)
    os._exit(1)


def _reply(request: dict[str, Any], descriptors: Sequence[int], begin: _Begin) -> dict[str, Any]:
    try:
        action = request["do"]
        if action == "unpack":
            blob, report, *files = descriptors
            copy = files.pop() if request["copy"] else None
            return {"ok": _unpack(request, begin, blob, report, copy, files)}
        if action in _LAYER_ACTIONS:
            return {"ok": _LAYER_ACTIONS[action](request, begin, *descriptors)}
        if action in _DESCRIPTOR_ACTIONS:
            become_nobody()
            begin(HAS_DESCRIPTORS)
            return {"ok": _DESCRIPTOR_ACTIONS[action](*descriptors)}
        act, rights = _TREE_ACTIONS[action]
        begin(rights)
        return {"ok": act(request)}
    except _Refused as error:
        kind, message = error.kind, str(error)
    except (TarError, TooLarge, TooMuch) as error:
        kind, message = "invalid", str(error)
    except MemoryError:
        kind, message = "invalid", f"it needs more than a worker's limit of {DATA_LIMIT >> 20} MiB of memory"
    except OSError as error:
        kind = "full" if error.errno in _FULL else "invalid" if error.errno in _INVALID else "failed"
        place = f"entry {str(error.filename)[:200]!r}: " if error.filename else ""
        message = f"{place}{error.strerror}"
    return {"error": kind, "message": message}
