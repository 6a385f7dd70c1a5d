"""Runs the unpacking worker: one fresh process for a layer, fed through a pipe or from an open file."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from io import FileIO
from pathlib import Path
from typing import Any

import msgspec

from image.errors import DigestMismatch, ImageError, InvalidImage, StorageFull
from image.manifest import Blob

_PIPE_SIZE = 1 << 20  # bytes
_START = "import sys; sys.path.append(sys.argv.pop()); from image.unpack_worker import main; main()"
_PACKAGES = str(Path(__file__).resolve().parent.parent)
_ERRORS: Mapping[str, type[ImageError]] = {"digest": DigestMismatch, "invalid": InvalidImage, "full": StorageFull}


class Unpacked(msgspec.Struct, frozen=True):
    """What a layer takes on disk, and the paths of its directories that no entry of its archive described."""

    size: int  # bytes
    inodes: int
    implied: tuple[str, ...]


class _Answer(msgspec.Struct, frozen=True):
    ok: dict[str, Any] | None = None
    error: str = ""
    message: str = ""


async def unpack(source: AsyncIterator[bytes] | int, blob: Blob, directory: Path, inherited: Sequence[int]) -> Unpacked:
    """Unpack `blob` into the empty `directory`. `source` gives its bytes, or is an open file at its beginning.

    `inherited` descriptors stay open in the worker. Raises DigestMismatch, InvalidImage, StorageFull, ImageError, and
    what `source` raises; the directory's content is then of no use. The worker does not survive a cancellation.
    """
    name = blob.digest or blob.diff_id
    request = {
        "do": "unpack",
        "directory": os.fspath(directory),
        "size": blob.size,
        "digest": blob.digest,
        "diff_id": blob.diff_id,
    }
    answer = await _run(request, source, inherited, f"unpack layer {name}", directory.parent)
    return msgspec.convert(answer, Unpacked)


async def remove_trees(paths: Sequence[Path], inherited: Sequence[int] = ()) -> None:
    """Remove directories with all in them; missing ones do not matter. Raises ImageError."""
    if paths:
        request = {"do": "remove", "paths": [os.fspath(path) for path in paths]}
        await _run(request, asyncio.subprocess.DEVNULL, inherited, f"remove {paths[0]}", paths[0].parent)


async def _run(
    request: Mapping[str, Any], source: AsyncIterator[bytes] | int, inherited: Sequence[int], what: str, place: Path
) -> dict[str, Any]:
    with ExitStack() as ends:
        stdin: Any = source
        sink = None
        if not isinstance(source, int):
            read_end, write_end = os.pipe2(os.O_CLOEXEC)
            stdin = ends.enter_context(FileIO(read_end, "r"))
            sink = ends.enter_context(FileIO(write_end, "w"))
        worker = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", "-c", _START, msgspec.json.encode(request).decode(), _PACKAGES),
            stdin=stdin,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=tuple(inherited),
        )
        try:
            if sink is not None and not isinstance(source, int):
                stdin.close()
                await _feed(sink, source)
            stdout, stderr = await worker.communicate()
        finally:
            if worker.returncode is None:
                with suppress(ProcessLookupError):
                    worker.kill()
                await worker.wait()
    return _result(stdout, stderr, worker.returncode, what, place)


async def _feed(sink: FileIO, source: AsyncIterator[bytes]) -> None:
    """Write `source` into the pipe. A worker that has already given up closes it: its answer says why."""
    descriptor = sink.fileno()
    os.set_blocking(descriptor, False)
    with suppress(OSError):  # an unprivileged daemon may be past its share of pipe pages
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
    with sink, suppress(BrokenPipeError):
        async for piece in source:
            await _write(descriptor, piece)


async def _write(sink: int, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        try:
            view = view[os.write(sink, view) :]
        except BlockingIOError:
            await _writable(sink)


async def _writable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_writer(descriptor, _resolve, ready)
    try:
        await ready
    finally:
        loop.remove_writer(descriptor)


def _resolve(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def _result(stdout: bytes, stderr: bytes, status: int | None, what: str, place: Path) -> dict[str, Any]:
    try:
        answer = msgspec.json.decode(stdout, type=_Answer)
    except msgspec.DecodeError:
        last = stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise ImageError(f"{what}: worker ended with status {status}{': ' + last if last else ''}") from None
    if answer.ok is not None:
        return answer.ok
    if answer.error == "full":
        raise StorageFull(f"{what}: no space left below {place}: {answer.message}")
    raise _ERRORS.get(answer.error, ImageError)(f"{what}: {answer.message}")
