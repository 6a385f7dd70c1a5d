"""The entry point of the network package: attaches a node's pods to their network by CNI."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import weakref
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import msgspec

from linux.tables import DEFAULT_PATH
from network.addresses import put_back
from network.cache import Entry, ResultCache
from network.chain import AroundPlugin, Chain, no_context
from network.conflist import ConfList, parse_conflist, read_conf_dir
from network.errors import InvalidAttachment, NetworkBusy, NetworkError, NetworkNotReady, PluginNotFound
from network.invocation import require_valid
from network.model import Attachment, NetworkResult, NetworkStatus
from network.namespace import is_namespace
from network.readiness import Readiness
from network.watch import DirectoryWatch

NOT_READY = "NetworkPluginNotReady"
_LEASES = "/var/lib/cni/networks"  # host-local's default
PLUGIN_SECONDS = 120.0  # well under the four minutes that kubelet gives a whole RunPodSandbox

_log = logging.getLogger(__name__)


class Network:
    """Attaches pods to the network of the first valid configuration in `conf_dir`, and detaches them.

    The configuration is reloaded when it changes; a pod is detached by the configuration it was attached with.
    Operations on one attachment exclude each other. `plugin_seconds` limits each run of a plugin;
    `around_plugin(command, plugin, sandbox_id)` is a context that is entered for each run.
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
        self._chain = Chain(tuple(bin_dirs), path, plugin_seconds, around_plugin or no_context)
        self._cache = ResultCache(cache_dir)
        self._readiness = Readiness(self._chain)
        self._conflist: ConfList | None = None
        self._problems: list[str] = []
        self._watch: DirectoryWatch | None = None
        self._adding = 0  # ADDs under way
        self._collecting: asyncio.Task[list[NetworkError]] | None = None  # a plugins' GC under way
        self._locks: weakref.WeakValueDictionary[tuple[str, str], asyncio.Lock] = weakref.WeakValueDictionary()

    async def open(self) -> None:
        """Load the configuration and watch its directory on the running loop. Raises NetworkError."""
        self._cache.prepare()
        try:
            self._watch = DirectoryWatch(self._conf_dir, self._load)
        except OSError as error:
            # Nodes do run out of inotify instances. `_current` then reads the directory at each use.
            _log.warning("could not watch %s: %s; it is read at each use instead", self._conf_dir, error.strerror)
        self._load()

    async def close(self) -> None:
        """Stop watching the configuration. Pods keep their network."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        await self._readiness.close()

    def status(self) -> NetworkStatus:
        """Return whether a pod can be added now. The plugins' own STATUS is at most ten seconds old."""
        conflist = self._current()
        if conflist is None:
            why = "; ".join([f"no network configuration in {self._conf_dir}", *self._problems])
            return NetworkStatus(False, NOT_READY, why)
        try:
            self._chain.require_plugins(conflist)
        except PluginNotFound as error:
            return NetworkStatus(False, NOT_READY, str(error))
        if problem := self._readiness.problem():
            return NetworkStatus(False, NOT_READY, problem)
        return NetworkStatus(True)

    def describe(self) -> dict[str, Any]:
        """Describe the current configuration and where it was looked for, for `crisp info`."""
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
        """Run ADD through the list. If it fails or is cancelled, run DEL before returning.

        If DEL fails as well, the attachment stays in `attachments`, to be removed later. Raises NetworkNotReady,
        InvalidAttachment, PluginNotFound, PluginFailed, and NetworkError if the attachment exists already.
        """
        require_valid(attachment)
        async with self._lock(attachment):
            if (conflist := self._current()) is None:
                raise NetworkNotReady(f"add {attachment.sandbox_id} to a network: {self.status().message}")
            if self._cache.load(attachment) is not None:
                raise NetworkError(f"add {attachment.sandbox_id} {attachment.ifname} to a network: already attached")
            verb = self._chain.plan("ADD", conflist, attachment)
            self._chain.require_plugins(conflist)
            entry = Entry(attachment, msgspec.Raw(conflist.raw))
            async with contextlib.AsyncExitStack() as undo:
                undo.push_async_callback(self._undo, entry)
                await self._begin(entry)
                async with self._exclusive_of_gc():
                    result = await self._chain.add(verb, attachment)
                self._cache.complete(attachment, result.raw)
                undo.pop_all()
            return result

    async def remove(self, attachment: Attachment, *, taken_over: bool = False) -> None:
        """Run DEL in reverse through the list that the attachment was added with. May be repeated.

        `taken_over` tells that a sandbox may have taken the addresses off the interface, where plugins look for them.

        An attachment that is not in the cache is removed by the current configuration, if there is one. `netns` may be
        "" or gone. On failure the attachment stays cached, so that the caller can try again. Raises PluginNotFound,
        PluginFailed.
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
                if taken_over and entry.result is not None and is_namespace(attachment.netns):
                    await asyncio.to_thread(put_back, attachment.netns, entry.result, attachment.ifname)
                await self._delete(entry, attachment.netns)

    async def check(self, attachment: Attachment) -> None:
        """Run CHECK, unless the list disables it or is older than 0.4.0. Raises NetworkError."""
        require_valid(attachment)
        async with self._lock(attachment):
            entry = self._cache.load(attachment)
            if entry is None or entry.result is None:
                raise NetworkError(f"check {attachment.sandbox_id} {attachment.ifname}: it is not attached")
            conflist = _cached_conflist(entry)
            if conflist.at_least("0.4.0") and not conflist.disable_check:
                await self._chain.check(self._chain.plan("CHECK", conflist, entry.attachment), entry.result)

    async def gc(self, valid: Iterable[Attachment]) -> None:
        """Remove every cached attachment that is not in `valid`, then run the plugins' GC (from version 1.1.0 on).

        Goes on after a failure. Raises one NetworkError that names all failures, and NetworkBusy, before the plugins'
        GC, while an ADD is under way: plugins need not bear both at once.
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
            if self._adding:
                raise NetworkBusy("garbage-collect the network: pods are being added to it; try again later")
            # What is cached now may have been added since the caller looked.
            stay |= {(one.sandbox_id, one.ifname): one for one in self.attachments()}
            self._collecting = asyncio.create_task(self._chain.gc(conflist, stay.values()), name="CNI GC")
            errors += await self._collecting
        if errors:
            raise NetworkError(f"garbage-collect the network: {'; '.join(map(str, errors))}")

    @contextlib.asynccontextmanager
    async def _exclusive_of_gc(self) -> AsyncIterator[None]:
        while self._collecting is not None and not self._collecting.done():
            await asyncio.wait([self._collecting])
        self._adding += 1
        try:
            yield
        finally:
            self._adding -= 1

    def was_begun(self, attachment: Attachment) -> bool:
        """Return whether a plugin may have been run to add the attachment and it has not been removed since."""
        return self._cache.load(attachment) is not None

    def attachments(self) -> list[Attachment]:
        """Return all attachments that were added and not removed, also by earlier processes."""
        return [entry.attachment for entry in self._cache.entries()]

    def leases(self) -> Iterator[tuple[Path, str]]:
        """Yield the files in which host-local keeps the addresses of the current network, and whose they are.

        That is "" while host-local has made the file and not yet written it, and where it was killed there.
        """
        conflist = self._current()
        for plugin in conflist.plugins if conflist is not None else ():
            ipam = plugin.config.get("ipam")
            if conflist is None or not isinstance(ipam, dict) or ipam.get("type") != "host-local":
                continue
            directory = Path(str(ipam.get("dataDir") or _LEASES)) / conflist.name
            for place in sorted(directory.iterdir()) if directory.is_dir() else ():
                with contextlib.suppress(OSError, ValueError):
                    ip_address(place.name)
                    yield place, next(iter(place.read_text(errors="replace").split()), "")

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
        """Write the entry in a thread, since the disk takes milliseconds. Waits for the write also when cancelled."""
        writing = asyncio.ensure_future(asyncio.to_thread(self._cache.begin, entry))
        try:
            await asyncio.shield(writing)
        finally:
            await asyncio.wait([writing])

    async def _delete(self, entry: Entry, netns: str) -> None:
        attachment = msgspec.structs.replace(entry.attachment, netns=_present(netns))
        await self._chain.delete(self._chain.plan("DEL", _cached_conflist(entry), attachment), entry.result)
        self._cache.forget(attachment)

    async def _undo(self, entry: Entry) -> None:
        try:
            await self._delete(entry, entry.attachment.netns)
        except NetworkError as error:
            fields = {"sandbox": entry.attachment.sandbox_id, "error": error}
            _log.warning("could not undo a failed ADD; garbage collection will try again", extra=fields)


def _cached_conflist(entry: Entry) -> ConfList:
    return parse_conflist(bytes(entry.conflist), f"the network configuration of {entry.attachment.sandbox_id}")


def _present(netns: str) -> str:
    """Return `netns`, or "" if it is gone (after a reboot or unmounted), as plugins expect."""
    return netns if is_namespace(netns) else ""
