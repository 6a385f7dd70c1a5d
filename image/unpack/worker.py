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
import signal
import socket
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

from image.erofs.check import check
from image.erofs.index import Index, describe
from image.erofs.layout import Malformed, TooLarge
from image.erofs.mount import INDEX
from image.erofs.notes import Notes
from image.unpack.blob import READ, Blob, Refused, decompress
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
from image.unpack.directories import IMPLIED, ONLY_ROOT, parse_unsettled
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


_Begin = Callable[[Rights], None]


def _unpack(
    request: dict[str, Any], begin: _Begin, descriptor: int, report: int, copy: int | None, files: Sequence[int]
) -> dict[str, Any]:
    """Unpack a layer into its directory, or write its tar and its index into `files`."""
    tar, index = (files[0], Index(files[1])) if files else (None, None)
    root = enter(request["directory"]) if index is None else enter_skeleton()
    begin(UNPACKS if index is None else MAKES_A_SKELETON)
    blob = Blob(
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
    return {
        "size": usage.size,
        "inodes": usage.inodes,
        "adopts_root": usage.unsettled == ONLY_ROOT,
        "hides": any(item[:1] != IMPLIED for item in usage.unsettled.split(b"\0") if item),
    }


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
    return ByteStream(iter(lambda: os.read(file, READ), b""))


def _unsettled(report: int) -> tuple[list[bytes], list[bytes]]:
    with open(report, "rb", closefd=False) as file:
        file.seek(0)
        return parse_unsettled(file.read())


def _check_index(index: int, tar: int) -> dict[str, Any]:
    """Check an index that another worker wrote; return its seal."""
    try:
        return {"seal": check(index, tar).text}
    except Malformed as error:
        raise Refused("failed", str(error)) from None


def _lowers(request: dict[str, Any]) -> Lowers:
    """Open the lower layers while that is still possible."""
    lowers = Lowers([partial(open_root, below["names"], seal=below["seal"]) for below in request["lowers"]])
    lowers.open_all()
    return lowers


def _inflate(descriptor: int, copy: int) -> dict[str, Any]:
    """Decompress the file at `descriptor` into the file at `copy`."""
    for chunk in decompress(iter(lambda: os.read(descriptor, READ), b"")):
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
    except Refused as error:
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
