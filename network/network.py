"""The door of the network room: a node's pod network, by CNI."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from linux.tables import DEFAULT_PATH
from network.cache import Entry, ResultCache
from network.chain import AroundPlugin, Chain, unseen
from network.conflist import ConfList, parse_conflist, read_conf_dir
from network.errors import InvalidAttachment, NetworkError, NetworkNotReady, PluginNotFound
from network.invocation import require_valid
from network.model import Attachment, NetworkResult, NetworkStatus
from network.namespace import is_namespace
from network.readiness import Readiness
from network.watch import DirectoryWatch

NOT_READY = "NetworkPluginNotReady"
PLUGIN_SECONDS = 120.0  # well under the four minutes that kubelet gives a whole RunPodSandbox

_log = logging.getLogger(__name__)


class Network:
    """Joins pods to the network that the first valid configuration in `conf_dir` describes, and takes them off it.

    The configuration is followed as it changes; a pod leaves the network by the configuration it joined with.
    Operations on one attachment exclude each other. `plugin_seconds` bounds each run of a plugin; `around_plugin`, with
    its command and name, is entered for each.
    """

    def __init__(
        self,
        conf_dir: Path,
        bin_dirs: Sequence[Path],
        cache_dir: Path,
        *,
        plugin_seconds: float = PLUGIN_SECONDS,
        around_plugin: AroundPlugin | None = None,
    ) -> None:
        path = os.environ.get("PATH") or DEFAULT_PATH
        self._conf_dir = conf_dir
        self._chain = Chain(tuple(bin_dirs), path, plugin_seconds, around_plugin or unseen)
        self._cache = ResultCache(cache_dir)
        self._readiness = Readiness(self._chain)
        self._conflist: ConfList | None = None
        self._problems: list[str] = []
        self._watch: DirectoryWatch | None = None
        self._locks: weakref.WeakValueDictionary[tuple[str, str], asyncio.Lock] = weakref.WeakValueDictionary()

    async def open(self) -> None:
        """Load the configuration and follow its directory on the running loop. Raises NetworkError."""
        self._cache.prepare()
        try:
            self._watch = DirectoryWatch(self._conf_dir, self._load)
        except OSError as error:
            # Nodes do run out of inotify instances; status and add then look for themselves.
            _log.warning("watch %s: %s; it is read at each use instead", self._conf_dir, error.strerror)
        self._load()

    async def close(self) -> None:
        """Stop following the configuration. Pods keep their network."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        await self._readiness.close()

    def status(self) -> NetworkStatus:
        """Whether a pod can be added now. What the plugins say of themselves (STATUS) is at most ten seconds old."""
        conflist = self._current()
        if conflist is None:
            why = "; ".join([f"no network configuration in {self._conf_dir}", *self._problems])
            return NetworkStatus(False, NOT_READY, why)
        try:
            self._chain.require_plugins(conflist)
        except PluginNotFound as error:
            return NetworkStatus(False, NOT_READY, str(error))
        if complaint := self._readiness.complaint():
            return NetworkStatus(False, NOT_READY, complaint)
        return NetworkStatus(True)

    def describe(self) -> dict[str, Any]:
        """The configuration in force and where it was looked for, for people."""
        conflist = self._current()
        return {
            "confDir": str(self._conf_dir),
            "binDirs": [str(directory) for directory in self._chain.bin_dirs],
            "problems": list(self._problems),
            "network": None if conflist is None else {
                "file": conflist.source,
                "name": conflist.name,
                "cniVersion": conflist.version,
                "plugins": [plugin.type for plugin in conflist.plugins],
            },
        }

    async def add(self, attachment: Attachment) -> NetworkResult:
        """Run ADD through the list. What fails, or is cancelled, is undone by DEL before this returns.

        What the undoing leaves stays among `attachments`, to be removed later. Raises NetworkNotReady,
        InvalidAttachment, PluginNotFound, PluginFailed, and NetworkError for an attachment that is there already.
        """
        require_valid(attachment)
        async with self._lock(attachment):
            if (conflist := self._current()) is None:
                raise NetworkNotReady(f"add {attachment.sandbox_id} to a network: {self.status().message}")
            if self._cache.load(attachment) is not None:
                raise NetworkError(f"add {attachment.sandbox_id} {attachment.ifname} to a network: it has been added")
            verb = self._chain.plan("ADD", conflist, attachment)
            self._chain.require_plugins(conflist)
            entry = Entry(attachment, msgspec.Raw(conflist.raw))
            async with contextlib.AsyncExitStack() as undo:
                undo.push_async_callback(self._undo, entry)
                await self._begin(entry)
                result = await self._chain.add(verb, attachment)
                self._cache.complete(attachment, result.raw)
                undo.pop_all()
            return result

    async def remove(self, attachment: Attachment) -> None:
        """Run DEL backwards through the list the attachment was added with; succeeds again when repeated.

        One that is not in the cache is taken off the present network, if there is one. `netns` may be "" or gone.
        On failure the attachment stays cached, for another try. Raises PluginNotFound, PluginFailed.
        """
        try:
            require_valid(attachment)
        except InvalidAttachment:
            return  # `add` refused it as well
        async with self._lock(attachment):
            entry = self._cache.load(attachment)
            if entry is None and (conflist := self._current()) is not None:
                entry = Entry(attachment, msgspec.Raw(conflist.raw))
            if entry is not None:
                await self._take_off(entry, attachment.netns)

    async def check(self, attachment: Attachment) -> None:
        """Run CHECK; lists that forbid it, or are older than 0.4.0, are not asked. Raises NetworkError."""
        require_valid(attachment)
        async with self._lock(attachment):
            entry = self._cache.load(attachment)
            if entry is None or entry.result is None:
                raise NetworkError(f"check {attachment.sandbox_id} {attachment.ifname}: it has not been added")
            conflist = _cached_conflist(entry)
            if conflist.at_least("0.4.0") and not conflist.disable_check:
                await self._chain.check(self._chain.plan("CHECK", conflist, entry.attachment), entry.result)

    async def gc(self, valid: Iterable[Attachment]) -> None:
        """Remove every cached attachment that is not among `valid`, then have the plugins do likewise (GC, from 1.1.0).

        Everything is tried. Raises NetworkError that names all that failed.
        """
        stay = {(attachment.sandbox_id, attachment.ifname): attachment for attachment in valid}
        errors: list[NetworkError] = []
        for attachment in self.attachments():
            if (attachment.sandbox_id, attachment.ifname) not in stay:
                try:
                    await self.remove(attachment)
                except NetworkError as error:
                    errors.append(error)
        conflist = self._current()
        if conflist is not None and conflist.at_least("1.1.0") and not conflist.disable_gc:
            errors += await self._chain.gc(conflist, stay.values())
        if errors:
            raise NetworkError(f"collect garbage of the network: {'; '.join(map(str, errors))}")

    def was_begun(self, attachment: Attachment) -> bool:
        """Whether a plugin may have been run to add it, and it has not been removed since."""
        return self._cache.load(attachment) is not None

    def attachments(self) -> list[Attachment]:
        """What has been added and not removed, whatever happened to the process that added it."""
        return [entry.attachment for entry in self._cache.entries()]

    def _current(self) -> ConfList | None:
        if self._watch is None:
            self._load()
        else:
            self._watch.catch_up()
        return self._conflist

    def _load(self) -> None:
        conflist, problems = read_conf_dir(self._conf_dir)
        for problem in problems:
            if problem not in self._problems:
                _log.warning("%s", problem)
        self._problems = problems
        if conflist != self._conflist:
            _log.info("network configuration: %s", conflist.source if conflist else "none")
            self._conflist = conflist
            self._readiness.follow(conflist)

    def _lock(self, attachment: Attachment) -> asyncio.Lock:
        key = (attachment.sandbox_id, attachment.ifname)
        if (lock := self._locks.get(key)) is None:
            lock = self._locks[key] = asyncio.Lock()
        return lock

    async def _begin(self, entry: Entry) -> None:
        """Write the entry off the loop, since the disk takes milliseconds; also when cancelled the write has ended."""
        writing = asyncio.ensure_future(asyncio.to_thread(self._cache.begin, entry))
        try:
            await asyncio.shield(writing)
        finally:
            await asyncio.wait([writing])

    async def _take_off(self, entry: Entry, netns: str) -> None:
        attachment = msgspec.structs.replace(entry.attachment, netns=_present(netns))
        await self._chain.delete(self._chain.plan("DEL", _cached_conflist(entry), attachment), entry.result)
        self._cache.forget(attachment)

    async def _undo(self, entry: Entry) -> None:
        try:
            await self._take_off(entry, entry.attachment.netns)
        except NetworkError as error:
            fields = {"sandbox": entry.attachment.sandbox_id, "error": error}
            _log.warning("could not undo a failed ADD", extra=fields)


def _cached_conflist(entry: Entry) -> ConfList:
    return parse_conflist(bytes(entry.conflist), f"the network configuration of {entry.attachment.sandbox_id}")


def _present(netns: str) -> str:
    """`netns`, or "" by which plugins are told that it is gone (after a reboot, or unmounted by somebody)."""
    return netns if is_namespace(netns) else ""
