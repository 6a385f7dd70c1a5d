"""Stores containers on disk: one directory each below the root, removed with the container.

    state.json   the container and its init's pid; replaced atomically
    config.json  the configuration it was created with, even if the bundle changes
    filter       its compiled seccomp filter, if it has one
    exec.fifo    where its init waits to be started; has a reader while it waits
    exec.report  where the init reports why the program could not be executed
    notify/      the socket where the program reports that it is ready, if a manager waits for that
    lock         locked by commands that change the container
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat

from runtime.command.record import Record
from runtime.errors import OperationFailed, RuntimeCoreError, failing
from runtime.light import contextlib, json
from runtime.spec.parse import parse
from runtime.spec.values import Spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Final

_ID_CHARACTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+-.")
NOTIFY_DIRECTORY: Final = "notify"
_LONGEST_ID: Final = 1024


class NoContainer(RuntimeCoreError):
    """There is no container with that id. Callers of runc look for this wording."""


class Entry:
    """The directory of one container."""

    def __init__(self, directory: str, id: str) -> None:
        self.directory = directory
        self.id = id

    def path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def save(self, record: Record) -> None:
        """Replace state.json atomically."""
        self.write("state.json", json.dumps(record.to_json()).encode())

    def load(self) -> Record:
        """Read state.json. Raises NoContainer."""
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
                while content:  # a full file system may accept a part before it fails
                    content = content[os.write(fd, content) :]
            finally:
                os.close(fd)
            os.rename(path + ".new", path)

    def read(self, name: str) -> bytes:
        """Return the file's content, b"" if there is no such file."""
        try:
            with open(self.path(name), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return b""

    def config(self) -> dict[str, Any]:
        """Return the configuration that the container was created with. Raises NoContainer."""
        text = self.read("config.json")
        if not text:  # deleted after its state was read
            raise NoContainer(f"container does not exist: {self.id}")
        document: dict[str, Any] = json.loads(text)
        return document

    def spec(self) -> Spec:
        return parse(self.config())

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the container against other commands that change it. Raises NoContainer."""
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
        """Remove the directory. Missing parts are fine."""
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
    """The containers below `root`, which is created with the first one."""

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(root)

    def entry(self, id: str) -> Entry:
        """Return the entry of a container, which need not exist. Raises RuntimeCoreError for an invalid id."""
        if not id or len(id) > _LONGEST_ID or id in (".", "..") or not _ID_CHARACTERS.issuperset(id):
            raise RuntimeCoreError(f"invalid container ID format: {id!r}")
        return Entry(os.path.join(self.root, id), id)

    def existing(self, id: str) -> Entry:
        """Return the entry of an existing container. Raises NoContainer."""
        entry = self.entry(id)
        if not os.path.exists(entry.path("state.json")):
            raise NoContainer(f"container does not exist: {id}")
        return entry

    def reserve(self, id: str) -> Entry:
        """Create the container's directory and lock file. Raises RuntimeCoreError if the id is in use."""
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
        """Return all entries by id. A missing root has none, or raises OperationFailed if it `must_exist`."""
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
