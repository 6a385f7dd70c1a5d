"""Watches a directory for changes on the running asyncio loop, also while it does not exist."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from linux import inotify

_INSIDE = (
    inotify.CLOSE_WRITE
    | inotify.MOVED_FROM
    | inotify.MOVED_TO
    | inotify.CREATE
    | inotify.DELETE
    | inotify.DELETE_SELF
    | inotify.MOVE_SELF
    | inotify.ONLYDIR
)
_SETTLE_SECONDS = 0.01  # a file written in place causes several events


class DirectoryWatch:
    """Calls `changed` on the loop after changes in `directory`, once for several events close together.

    While the directory does not exist, its nearest existing ancestor is watched. Raises OSError if the
    kernel has no inotify instance or watch left (fs.inotify.max_user_instances, max_user_watches).
    """

    def __init__(self, directory: Path, changed: Callable[[], None]) -> None:
        self._directory = directory.absolute()
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._settling: asyncio.TimerHandle | None = None
        self._watched: tuple[Path, int] | None = None
        self._inotify = inotify.Inotify()
        try:
            self._follow()
        except OSError:
            self._inotify.close()
            raise
        self._loop.add_reader(self._inotify.fileno(), self._on_events)

    def close(self) -> None:
        self._loop.remove_reader(self._inotify.fileno())
        self._inotify.close()
        if self._settling is not None:
            self._settling.cancel()

    def catch_up(self) -> None:
        """Call `changed` now if there are pending events, for a caller that must not use an outdated configuration."""
        pending = self._inotify.drain()
        if pending or self._settling is not None:
            if self._settling is not None:
                self._settling.cancel()
            self._settled()

    def _on_events(self) -> None:
        if self._inotify.drain() and self._settling is None:
            self._settling = self._loop.call_later(_SETTLE_SECONDS, self._settled)

    def _settled(self) -> None:
        self._settling = None
        self._follow()
        self._changed()

    def _follow(self) -> None:
        """Watch the directory or its nearest existing ancestor. Repeats if that changed while the watch was placed."""
        while True:
            target = self._nearest()
            try:
                watch = self._inotify.add(str(target), _INSIDE)
            except (FileNotFoundError, NotADirectoryError):
                continue
            if self._watched is not None and self._watched[1] != watch:
                self._inotify.remove(self._watched[1])
            self._watched = (target, watch)
            if self._nearest() == target:
                return

    def _nearest(self) -> Path:
        return next(path for path in (self._directory, *self._directory.parents) if path.is_dir())
