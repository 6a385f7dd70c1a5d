"""Running a list of plugins (CNI specification, section 3): in which order, and with whose result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from network.conflist import ConfList, Plugin
from network.errors import NetworkError, PluginFailed
from network.invocation import Verb, attachment_verb, list_verb
from network.model import Attachment, NetworkResult
from network.plugin import find_plugin, run_plugin
from network.result import parse_result

AroundPlugin = Callable[[str, str], AbstractContextManager[object]]  # command, plugin


def unseen(_command: str, _plugin: str) -> AbstractContextManager[object]:
    """Nothing around a run."""
    return nullcontext()


@dataclass(frozen=True, slots=True)
class Chain:
    """Runs lists with the plugins of `bin_dirs`. `path` is the plugins' PATH, `seconds` bounds each run of one.

    `around` is entered for each run.

    Every operation raises PluginNotFound, PluginFailed or InvalidAttachment, and stops at the first error.
    """

    bin_dirs: Sequence[Path]
    path: str
    seconds: float
    around: AroundPlugin = unseen

    def require_plugins(self, conflist: ConfList) -> None:
        """Raise PluginNotFound unless every plugin of the list can be run."""
        for plugin in conflist.plugins:
            find_plugin(plugin.type, self.bin_dirs)

    def plan(self, command: str, conflist: ConfList, attachment: Attachment) -> Verb:
        """ADD, DEL or CHECK of `attachment`. Raises InvalidAttachment."""
        return attachment_verb(command, conflist, attachment, self.bin_dirs, self.path)

    async def add(self, verb: Verb, attachment: Attachment) -> NetworkResult:
        """ADD: each plugin is given the result of the one before; the last one's is the answer."""
        result: NetworkResult | None = None
        for plugin in verb.conflist.plugins:
            stdout = await self._run(verb, plugin, result.raw if result else None)
            try:
                result = parse_result(stdout, verb.conflist.version, attachment.ifname)
            except ValueError as error:
                raise PluginFailed(plugin.type, verb.command, 0, str(error)) from None
        assert result is not None, "a ConfList has a plugin"
        return result

    async def delete(self, verb: Verb, result: dict[str, Any] | None) -> None:
        """DEL: backwards, each plugin with the result of the whole ADD where the list's version knows of that."""
        known = result if verb.conflist.at_least("0.4.0") else None
        for plugin in reversed(verb.conflist.plugins):
            await self._run(verb, plugin, known)

    async def check(self, verb: Verb, result: dict[str, Any]) -> None:
        """CHECK: forwards, each plugin with the result of the whole ADD."""
        for plugin in verb.conflist.plugins:
            await self._run(verb, plugin, result)

    async def status(self, conflist: ConfList) -> None:
        """STATUS: the first plugin that cannot serve an ADD is the error."""
        verb = list_verb("STATUS", conflist, self.bin_dirs, self.path)
        for plugin in conflist.plugins:
            await self._run(verb, plugin, None)

    async def gc(self, conflist: ConfList, valid: Iterable[Attachment]) -> list[NetworkError]:
        """GC: every plugin is asked, whatever the others answer; their errors are returned."""
        verb = list_verb("GC", conflist, self.bin_dirs, self.path, valid)
        errors: list[NetworkError] = []
        for plugin in conflist.plugins:
            try:
                await self._run(verb, plugin, None)
            except NetworkError as error:
                errors.append(error)
        return errors

    async def _run(self, verb: Verb, plugin: Plugin, prev_result: dict[str, Any] | None) -> bytes:
        binary = find_plugin(plugin.type, self.bin_dirs)
        with self.around(verb.command, plugin.type):
            return await run_plugin(binary, verb.environment, verb.stdin(plugin, prev_result), self.seconds)
