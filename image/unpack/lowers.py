"""What the layers below one show of a directory: asked of the layers themselves, or of what somebody else has noted.

Only root may look into layers, and it must not read what is packed into another one meanwhile. So `note` writes down
what that one's worker will ask, and `Remembered` answers.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Protocol

from image.erofs.layout import Attributes
from image.unpack.overlay import PLAIN_DIRECTORY, RESERVED_XATTRS, is_opaque

_NOTES_LIMIT = 64 << 20  # bytes


class TooMuch(Exception):
    """There is more to note than a layer is worth."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A directory of the layers below, as an overlay of them shows it, without what controls the overlay."""

    about: Attributes
    xattrs: Mapping[bytes, bytes]

    @classmethod
    def of(cls, directory: int) -> Seen:
        """Raises OSError."""
        keys = [key for key in map(os.fsencode, os.listxattr(directory)) if not key.startswith(RESERVED_XATTRS)]
        return cls(Attributes.of(os.fstat(directory)), {key: os.getxattr(directory, key) for key in keys})


class Below(Protocol):
    """The layers below one."""

    def visible(self, path: bytes) -> Seen | None:
        """Return the directory that they show at `path`; None if there is none. Raises OSError."""
        ...


class Lowers:
    """The layers themselves, topmost first. Each is opened at its first use."""

    def __init__(self, openers: Sequence[Callable[[], int]]) -> None:
        self._openers = openers
        self._opened: list[int] = []

    def _each(self) -> Iterator[int]:
        for number, opener in enumerate(self._openers):
            if number == len(self._opened):
                self._opened.append(opener())
            yield self._opened[number]

    def open_all(self) -> None:
        """Open all now, because it may be impossible later. Raises OSError."""
        for _ in self._each():
            pass

    def __enter__(self) -> Lowers:
        return self

    def __exit__(self, *exc: object) -> None:
        for descriptor in self._opened:
            os.close(descriptor)

    def visible(self, path: bytes) -> Seen | None:
        for lower in self._each():
            descriptor = os.dup(lower)
            opaque = False
            try:
                for name in path.split(b"/") if path else ():
                    opaque = opaque or is_opaque(descriptor)
                    child = os.open(name, PLAIN_DIRECTORY, dir_fd=descriptor)
                    os.close(descriptor)
                    descriptor = child
                return Seen.of(descriptor)
            except FileNotFoundError:
                if opaque:
                    return None
            except OSError as error:
                if error.errno in (errno.ENOTDIR, errno.ELOOP):
                    return None
                raise
            finally:
                os.close(descriptor)
        return None


def note(below: Below, paths: Iterable[bytes], file: IO[bytes]) -> None:
    """Write down what `below` shows at `paths`. Raises OSError, TooMuch."""
    for path in paths:
        if (seen := below.visible(path)) is not None:
            xattrs = {_text(key): _text(value) for key, value in seen.xattrs.items()}
            about = (seen.about.mode, seen.about.uid, seen.about.gid, seen.about.mtime)
            file.write(json.dumps([_text(path), about, xattrs]).encode() + b"\n")
            if file.tell() > _NOTES_LIMIT:
                raise TooMuch(f"the layers below have more than {_NOTES_LIMIT} bytes of attributes for its directories")


class Remembered:
    """The layers below as `note` saw them."""

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._seen: dict[bytes, Seen] = {}
        for line in lines:
            path, about, xattrs = json.loads(line)
            said = {_bytes(key): _bytes(value) for key, value in xattrs.items()}
            self._seen[_bytes(path)] = Seen(Attributes(*about), said)

    def visible(self, path: bytes) -> Seen | None:
        return self._seen.get(path)


def _text(said: bytes) -> str:
    return said.decode("latin-1")


def _bytes(said: str) -> bytes:
    return said.encode("latin-1")
