"""Containers on disk: one directory each below the root, removed with the container.

    state.json   who the container is and which process is its init; replaced atomically
    config.json  the configuration it was created with, whatever becomes of the bundle
    filter       its compiled seccomp filter, if it has one
    exec.fifo    where its init waits to be started; has a reader as long as it waits
    exec.report  where it says why its program could not be executed
    notify/      the socket where its program says that it is ready, if a manager waits for that
    lock         held by commands that change the container
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator

from runtime.command.record import Record
from runtime.errors import OperationFailed, RuntimeCoreError, failing
from runtime.light import json
from runtime.spec.parse import parse
from runtime.spec.values import Spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

_ID_CHARACTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+-.")
NOTIFY_DIRECTORY: Final = "notify"
_LONGEST_ID: Final = 1024


class NoContainer(RuntimeCoreError):
    """There is no container of that id. The wording is what callers of runc look for."""


class Entry:
    """One container's directory."""

    def __init__(self, directory: str, id: str) -> None:
        self.directory = directory
        self.id = id

    def path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def save(self, record: Record) -> None:
        """Replace state.json; readers see the old or the new one."""
        self.write("state.json", json.dumps(record.to_json()).encode())

    def load(self) -> Record:
        """Raises NoContainer."""
        try:
            with open(self.path("state.json"), "rb") as file:
                return Record.from_json(json.load(file))
        except FileNotFoundError:
            raise NoContainer(f"container does not exist: {self.id}") from None

    def write(self, name: str, content: bytes) -> None:
        path = self.path(name)
        with failing("write", path):
            fd = os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                while content:  # a file system that gets full takes a part, and only then fails
                    content = content[os.write(fd, content) :]
            finally:
                os.close(fd)
            os.rename(path + ".new", path)

    def read(self, name: str) -> bytes:
        """The file's content, nothing if there is no such file."""
        try:
            with open(self.path(name), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return b""

    def config(self) -> dict[str, Any]:
        """The configuration it was created with. Raises NoContainer."""
        text = self.read("config.json")
        if not text:  # deleted since its state was read
            raise NoContainer(f"container does not exist: {self.id}")
        document: dict[str, Any] = json.loads(text)
        return document

    def spec(self) -> Spec:
        return parse(self.config())

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Alone among the commands that change the container. Raises NoContainer."""
        try:
            fd = os.open(self.path("lock"), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NoContainer(f"container does not exist: {self.id}") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if not os.fstat(fd).st_nlink:
                raise NoContainer(f"container does not exist: {self.id}")
            yield
        finally:
            os.close(fd)

    def remove(self) -> None:
        """Remove the directory; a part that is gone is fine."""
        with failing("remove", self.directory), contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self.directory):
                path = self.path(name)
                if stat.S_ISDIR(os.lstat(path).st_mode):
                    for inner in os.listdir(path):
                        os.unlink(os.path.join(path, inner))
                    os.rmdir(path)
                else:
                    os.unlink(path)
            os.rmdir(self.directory)


class Store:
    """The containers below `root`, which is made with the first."""

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(root)

    def entry(self, id: str) -> Entry:
        """The place of a container that may exist or not. Raises RuntimeCoreError for an id that none can have."""
        if not id or len(id) > _LONGEST_ID or id in (".", "..") or not _ID_CHARACTERS.issuperset(id):
            raise RuntimeCoreError(f"invalid container ID format: {id!r}")
        return Entry(os.path.join(self.root, id), id)

    def existing(self, id: str) -> Entry:
        """Raises NoContainer."""
        entry = self.entry(id)
        if not os.path.exists(entry.path("state.json")):
            raise NoContainer(f"container does not exist: {id}")
        return entry

    def reserve(self, id: str) -> Entry:
        """Make the container's directory, with its lock. Raises RuntimeCoreError when the id is taken."""
        entry = self.entry(id)
        with failing("make", entry.directory):
            os.makedirs(self.root, 0o711, exist_ok=True)
            try:
                os.mkdir(entry.directory, 0o711)
            except FileExistsError:
                raise RuntimeCoreError(f"container with given ID already exists: {id}") from None
            os.close(os.open(entry.path("lock"), os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
        return entry

    def all(self, *, must_exist: bool) -> list[Entry]:
        """By id. Where the root is not there, none, or that is told: OperationFailed."""
        try:
            with failing("open", self.root):
                names = sorted(os.listdir(self.root))
        except OperationFailed as error:
            if must_exist or error.errno != errno.ENOENT:
                raise
            return []
        return [Entry(path, name) for name in names if stat.S_ISDIR(_mode(path := os.path.join(self.root, name)))]


def _mode(path: str) -> int:
    try:
        return os.lstat(path).st_mode
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        return 0
