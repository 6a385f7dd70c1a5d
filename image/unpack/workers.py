"""Runs the unpacking workers: one process per layer, which reads from a pipe or an open file."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import msgspec

from image.erofs.mount import INDEX, TAR
from image.errors import DigestMismatch, ImageError, InvalidImage, StorageFull
from image.manifest import Blob
from image.unpack.forker import Forker, Job

_log = logging.getLogger(__name__)

_LINGER_SECONDS = 1.0  # until the idle warm process is ended
_TRIES = 2
Place = Callable[[int], Awaitable[None]]
_ERRORS: Mapping[str, type[ImageError]] = {"digest": DigestMismatch, "invalid": InvalidImage, "full": StorageFull}


class _Usage(msgspec.Struct, frozen=True):
    size: int  # bytes
    inodes: int
    adopts_root: bool = False
    hides: bool = False


class _Unfit(msgspec.Struct, frozen=True):
    unfit: str = ""  # why the layer does not fit in an index; its tar is there


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A layer's disk use, and what is left to do when the layers below it exist.

    `adopts_root`: its root takes its attributes from the layer below. `unsettled`, if there is more to do, is an
    unnamed file for `Workers.settle`, which the caller must close; the lowest layer needs that only if it `hides`
    something (it has whiteouts). `indexed`: it is a tar with an index.
    """

    size: int  # bytes
    inodes: int
    adopts_root: bool
    unsettled: IO[bytes] | None
    hides: bool = False
    indexed: bool = False


@dataclass(frozen=True, slots=True)
class Below:
    """A layer below a new one: the paths that its directory may have, and its index's seal, None if it is unpacked."""

    names: Sequence[Path]
    seal: str | None

    @property
    def said(self) -> dict[str, Any]:
        """The form for a worker's request."""
        return {"names": [os.fspath(name) for name in self.names], "seal": self.seal}


@dataclass(frozen=True, slots=True)
class LayerForm:
    """How new layers are stored. `blobs`: keep them also as transferred. `indexed`: as tars with an index."""

    blobs: bool = False
    indexed: bool = False


class Survey(msgspec.Struct, frozen=True):
    """The present state of an unpacked layer."""

    inodes: int
    changed: int  # last change of an inode, nanoseconds since the epoch


class _Answer(msgspec.Struct, frozen=True):
    ok: dict[str, Any] | None = None
    error: str = ""
    message: str = ""


class Workers:
    """Unpacks layers and removes trees, each in a process of its own, forked in a millisecond from a warm one.

    The warm process is started on demand and ends after an idle time. `inherited` descriptors stay open in every
    worker. Use it on one event loop only.
    """

    def __init__(self, inherited: Sequence[int] = (), layer_limit: int = 0, place: Place | None = None) -> None:
        """`layer_limit` is how many bytes a layer may decompress to, 0 for no limit.

        `place` moves each new warm process, by its pid, to where workers belong, before it forks the first.
        """
        self._inherited = tuple(inherited)
        self._layer_limit = layer_limit
        self._place = place
        self._forker: Forker | None = None
        self._left: Forker | None = None  # the last one that was told to end
        self._starting = asyncio.Lock()
        self._busy = 0
        self._ending: asyncio.TimerHandle | None = None

    async def close(self) -> None:
        """End the warm process. No work may be in progress."""
        if self._ending is not None:
            self._ending.cancel()
        forkers, self._forker, self._left = (self._forker, self._left), None, None
        for forker in forkers:
            if forker is not None:
                await forker.end()

    async def unpack(
        self,
        source: AsyncIterator[bytes] | int,
        blob: Blob,
        directory: Path,
        keep: Path | None = None,
        *,
        so_far: int | None = None,
        marked: bool = False,
        indexed: bool = False,
    ) -> Unpacked:
        """Unpack `blob` into the empty `directory`. `source` yields its bytes, or is an open file at its beginning.

        The blob is also written to the new file `keep`, if given. `so_far` is an open file that has the blob's first
        bytes, so that `source` has the others only; they are appended to it, and it takes the place of `keep`, which
        then tells only whether it stays. For `marked` see LayerWriter. With `indexed` the
        directory gets the layer's tar and an index over it, which the kernel mounts; or the layer's files, if the index
        has no room for it.

        Raises DigestMismatch, InvalidImage, StorageFull, ImageError, and what `source` raises; the directory is then
        useless. A cancellation ends the worker.

        What has to wait for the lower layers is kept in a file, not in the daemon's memory: a small layer may have much
        of it.
        """
        name = blob.digest or blob.diff_id
        request = {
            "do": "unpack",
            "directory": os.fspath(directory),
            "size": blob.size,
            "digest": blob.digest,
            "diff_id": blob.diff_id,
            "limit": self._layer_limit,
            "copy": keep is not None or so_far is not None,
            "keep": keep is not None,
            "marked": marked,
        }
        what = f"layer {name}" if name else f"archive into {directory}"
        with ExitStack() as undo, ExitStack() as files:
            try:
                report = undo.enter_context(TemporaryFile(dir=directory.parent, buffering=0))
                more = [report.fileno()]
                if indexed:
                    more += (_new_file(directory / name, files) for name in (TAR, INDEX))
                if so_far is None and keep is not None:
                    so_far = _new_file(keep, files)
                if so_far is not None:
                    more.append(so_far)
                own = directory.stat().st_blocks * 512 if indexed else 0
            except OSError as error:
                raise _not_made(f"unpack {what}", directory.parent, error) from error
            answer = await self._run(request, source, f"unpack {what}", directory.parent, more)
            if unfit := msgspec.convert(answer, _Unfit).unfit:
                _log.warning("layer is unpacked: it does not fit in an index", extra={"layer": name, "reason": unfit})
                return await self._unpack_kept_tar(blob, directory, so_far if keep is not None else None)
            usage = msgspec.convert(answer, _Usage)
            left = os.fstat(report.fileno()).st_size > 0
            if left:
                undo.pop_all()
        size, inodes = usage.size + own, usage.inodes + int(indexed)
        return Unpacked(size, inodes, usage.adopts_root, report if left else None, usage.hides, indexed)

    async def _unpack_kept_tar(self, blob: Blob, directory: Path, kept: int | None) -> Unpacked:
        """Unpack the tar that is in `directory` into a new directory in its place; `kept` is the blob, if it stays."""
        place = directory.with_name(f"{directory.name}.tar")
        os.rename(directory, place)
        directory.mkdir()
        directory.chmod(0o755)
        tar = os.open(place / TAR, os.O_RDONLY | os.O_CLOEXEC)
        try:
            whole = Blob("", os.fstat(tar).st_size, blob.diff_id)
            unpacked = await self.unpack(tar, whole, directory)
        finally:
            os.close(tar)
            await self.remove_trees([place])
        if kept is None:
            return unpacked
        return replace(unpacked, size=unpacked.size + os.fstat(kept).st_blocks * 512, inodes=unpacked.inodes + 1)

    async def settle(self, directory: Path, lowers: Sequence[Below], unsettled: IO[bytes]) -> tuple[int, int]:
        """Finish an unpacked layer now that its `lowers`, topmost first, exist.

        Returns the bytes and inodes removed. Raises ImageError, StorageFull.
        """
        request = {"do": "settle", "directory": os.fspath(directory), "lowers": [below.said for below in lowers]}
        answer = await self._run(request, unsettled.fileno(), f"unpack layer into {directory}", directory.parent)
        removed = msgspec.convert(answer, _Usage)
        return removed.size, removed.inodes

    async def settle_index(self, directory: Path, lowers: Sequence[Below], unsettled: IO[bytes]) -> bool:
        """Finish an indexed layer like `settle`, if only attributes of directories change.

        Returns whether that was so; if not, `index_again` is needed. Raises ImageError, StorageFull.
        """
        own = Below([directory], await self.check_index(directory))  # the kernel reads it meanwhile
        request = {
            "do": "settle index",
            "directory": os.fspath(directory),
            "seal": own.seal,
            "lowers": [below.said for below in lowers],
        }
        answer = await self._run(request, unsettled.fileno(), f"index layer in {directory}", directory.parent)
        return bool(answer["done"])

    async def index_again(self, directory: Path, lowers: Sequence[Below], unsettled: IO[bytes] | None = None) -> int:
        """Write a layer's index again now that its `lowers`, topmost first, exist.

        The new file replaces the old one, which may be mounted or missing. Returns by how many bytes it is smaller.
        `unsettled` is what the first indexing left, if that is known. Raises ImageError, StorageFull.
        """
        written = directory.with_name(f"{directory.name}.index")
        what = f"index layer in {directory}"
        before = 0
        with ExitStack() as files:
            tar = _opened(directory / TAR, what, files)
            files.callback(written.unlink, missing_ok=True)
            try:
                with suppress(FileNotFoundError):
                    before = (directory / INDEX).stat().st_blocks * 512
                written.unlink(missing_ok=True)
                seen = files.enter_context(TemporaryFile(dir=directory.parent, buffering=0))
                if unsettled is None:
                    unsettled = files.enter_context(TemporaryFile(dir=directory.parent, buffering=0))
                    await self._run({"do": "list unsettled"}, tar, what, directory.parent, (unsettled.fileno(),))
                # Only root sees all of the layers below, and it must not read the tar.
                request = {"do": "look below", "lowers": [below.said for below in lowers]}
                await self._run(request, unsettled.fileno(), what, directory.parent, (seen.fileno(),))
                file = _new_file(written, files)
                more = (file, seen.fileno())
                answer = await self._run({"do": "index again"}, tar, what, directory.parent, more)
                size = msgspec.convert(answer, _Usage).size
                os.rename(written, directory / INDEX)
            except OSError as error:
                raise ImageError(f"{what}: {error.strerror}") from error
        return before - size

    async def check_index(self, directory: Path) -> str:
        """Check a layer's index, in another process than the one that wrote it; return its seal. Raises ImageError."""
        what = f"check index of layer in {directory}"
        with ExitStack() as files:
            index, tar = (_opened(directory / name, what, files) for name in (INDEX, TAR))
            return str((await self._run({"do": "check index"}, index, what, directory, (tar,)))["seal"])

    async def inflate(self, source: int, path: Path) -> None:
        """Decompress the open file `source`, gzip or zstd, into the new file `path`.

        Raises InvalidImage, StorageFull, ImageError; the written data is then useless.
        """
        what = "decompress archive"
        with ExitStack() as files:
            try:
                copy = _new_file(path, files)
            except OSError as error:
                raise _not_made(what, path.parent, error) from error
            await self._run({"do": "inflate"}, source, what, path.parent, (copy,))

    async def survey(self, directory: Path) -> Survey:
        """Inspect every inode of an unpacked layer. Raises ImageError."""
        request = {"do": "survey", "directory": os.fspath(directory)}
        return msgspec.convert(await self._run(request, None, f"look at {directory}", directory), Survey)

    async def digest(self, path: Path) -> str:
        """Return the sha256 digest of a file. Raises ImageError."""
        what = f"read {path}"
        with ExitStack() as files:
            return str((await self._run({"do": "hash"}, _opened(path, what, files), what, path))["digest"])

    async def remove_trees(self, paths: Sequence[Path]) -> None:
        """Remove files and directory trees; missing ones are no error. Raises ImageError."""
        if paths:
            request = {"do": "remove", "paths": [os.fspath(path) for path in paths]}
            await self._run(request, None, f"remove {paths[0]}", paths[0].parent)

    async def _run(
        self,
        request: Mapping[str, Any],
        source: AsyncIterator[bytes] | int | None,
        what: str,
        place: Path,
        more: Sequence[int] = (),
    ) -> dict[str, Any]:
        self._busy += 1
        try:
            for _ in range(_TRIES):
                # The standard library's JSON: a path may have bytes that are not UTF-8, and msgspec refuses them.
                job = Job(await self._warm(), json.dumps(request).encode(), more)
                said = await job.run(source)
                if said:
                    return _result(said, what, place)
                self._forker = None  # it died before it could fork
            raise ImageError(f"{what}: no worker could be started")
        finally:
            self._busy -= 1
            self._rest()

    async def _warm(self) -> Forker:
        async with self._starting:
            if self._forker is None or self._forker.ended:
                forker = await Forker.start(self._inherited)
                if self._place is not None:
                    try:
                        await self._place(forker.pid)  # while the interpreter starts
                    except BaseException:
                        forker.let_go()
                        raise
                self._forker = forker
            return self._forker

    def _rest(self) -> None:
        if self._ending is not None:
            self._ending.cancel()
        self._ending = asyncio.get_running_loop().call_later(_LINGER_SECONDS, self._end_if_idle)

    def _end_if_idle(self) -> None:
        self._ending = None
        if not self._busy and self._forker is not None:
            self._left, self._forker = self._forker, None
            self._left.let_go()


def _new_file(path: Path, files: ExitStack) -> int:
    """Make a file for a worker, which `files` closes. Raises OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    files.callback(os.close, descriptor)
    return descriptor


def _not_made(what: str, place: Path, error: OSError) -> ImageError:
    kind = StorageFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else ImageError
    return kind(f"{what}: make a file in {place}: {error.strerror}")


def _opened(path: Path, what: str, files: ExitStack) -> int:
    """Open a file for a worker to read; `files` closes it. Raises ImageError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ImageError(f"{what}: open {path.name}: {error.strerror}") from error
    files.callback(os.close, descriptor)
    return descriptor


def _result(said: bytes, what: str, place: Path) -> dict[str, Any]:
    try:
        answer = msgspec.convert(json.loads(said), _Answer)
    except (ValueError, RecursionError, msgspec.ValidationError):
        raise ImageError(f"{what}: its worker was killed or crashed: {_last_line(said)}") from None
    if answer.ok is not None:
        return answer.ok
    if answer.error == "full":
        raise StorageFull(f"{what}: no space left below {place}{_room(place)}: {answer.message}")
    raise _ERRORS.get(answer.error, ImageError)(f"{what}: {answer.message}")


def _room(place: Path) -> str:
    """Return how much room there is, now that a layer had none."""
    try:
        there = os.statvfs(place)
    except OSError:
        return ""
    if there.f_files and not there.f_favail:
        return f" (none of {there.f_files} inodes is free)"
    free, size = (blocks * there.f_frsize >> 20 for blocks in (there.f_bavail, there.f_blocks))
    return f" ({free} of {size} MiB are free)"


def _last_line(said: bytes) -> str:
    return said.decode(errors="replace").strip().rpartition("\n")[2] or (
        "it left no message; the kernel's log says whether memory was short (pull_memory_limit)"
    )
