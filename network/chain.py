"""Runs the plugins of a list in order and passes results between them (CNI specification, section 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from network.conflist import ConfList, Plugin
from network.errors import NetworkError, PluginFailed, PluginNotFound
from network.invocation import Verb, attachment_verb, list_verb
from network.model import Attachment, NetworkResult
from network.plugin import find_plugin, run_plugin
from network.result import parse_result

_GC_SECONDS = 20.0  # pods that start meanwhile wait for it
AroundPlugin = Callable[[str, str, str], AbstractContextManager[object]]  # command, plugin, sandbox id or ""


def no_context(_command: str, _plugin: str, _sandbox: str) -> AbstractContextManager[object]:
    """Enter nothing around a run: the default of `Chain.around`."""
    return nullcontext()


@dataclass(frozen=True, slots=True)
class Chain:
    """Runs lists with the plugins in `bin_dirs`. `path` is the plugins' PATH, `seconds` the limit of each run.

    `around(command, plugin)` is a context that is entered for each run.

    Every operation raises PluginNotFound, PluginFailed or InvalidAttachment, and stops at the first error.
    """

    bin_dirs: Sequence[Path]
    path: str
    seconds: float
    around: AroundPlugin = no_context

    def require_plugins(self, conflist: ConfList) -> None:
        """Raise PluginNotFound unless all plugins of the list are executable files."""
        for plugin in conflist.plugins:
            find_plugin(plugin.type, self.bin_dirs)

    def plan(self, command: str, conflist: ConfList, attachment: Attachment) -> Verb:
        """Plan ADD, DEL or CHECK of `attachment`. Raises InvalidAttachment."""
        return attachment_verb(command, conflist, attachment, self.bin_dirs, self.path)

    async def add(self, verb: Verb, attachment: Attachment) -> NetworkResult:
        """Run ADD: each plugin gets the result of the one before. Return the last one's result."""
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
        """Run DEL in reverse order. Each plugin gets the result of the whole ADD (from version 0.4.0 on).

        Goes on past a plugin that is not there, so that the others give back addresses and links; then raises
        PluginNotFound, since what that plugin made is still to be removed.
        """
        known = result if verb.conflist.at_least("0.4.0") else None
        missing: PluginNotFound | None = None
        for plugin in reversed(verb.conflist.plugins):
            try:
                await self._run(verb, plugin, known)
            except PluginNotFound as error:
                missing = missing or error
        if missing is not None:
            raise missing

    async def check(self, verb: Verb, result: dict[str, Any]) -> None:
        """Run CHECK in order. Each plugin gets the result of the whole ADD."""
        for plugin in verb.conflist.plugins:
            await self._run(verb, plugin, result)

    async def status(self, conflist: ConfList) -> None:
        """Run STATUS. Raises the error of the first plugin that cannot serve an ADD."""
        verb = list_verb("STATUS", conflist, self.bin_dirs, self.path)
        for plugin in conflist.plugins:
            await self._run(verb, plugin, None)

    async def gc(self, conflist: ConfList, valid: Iterable[Attachment]) -> list[NetworkError]:
        """Run GC on every plugin, also after one has failed, and return the errors."""
        verb = list_verb("GC", conflist, self.bin_dirs, self.path, valid)
        errors: list[NetworkError] = []
        short = replace(self, seconds=min(self.seconds, _GC_SECONDS))
        for plugin in conflist.plugins:
            try:
                await short._run(verb, plugin, None)
            except NetworkError as error:
                errors.append(error)
        return errors

    async def _run(self, verb: Verb, plugin: Plugin, prev_result: dict[str, Any] | None) -> bytes:
        binary = find_plugin(plugin.type, self.bin_dirs)
        with self.around(verb.command, plugin.type, verb.environment.get("CNI_CONTAINERID", "")):
            return await run_plugin(binary, verb.environment, verb.stdin(plugin, prev_result), self.seconds)
