"""A connected plugin: its subscriptions, and calls to it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, TypeVar

from google.protobuf.message import Message

from cri.nri.apart import Apart
from cri.nri.connection import TtrpcConnection
from cri.nri.errors import CallRefused, NriError, PluginGone, PluginSilent, WireError
from cri.plugin_policy import PluginPolicy
from pods.errors import PodError, Unavailable

PACKAGE: Final = "nri.pkg.api.v1alpha1"
UNIMPLEMENTED: Final = 12  # a plugin's answer to a call it does not have

_Answer = TypeVar("_Answer", bound=Message)

_log = logging.getLogger("crisp.nri")


@dataclass(eq=False, slots=True)
class Plugin:
    """A plugin, from its connection on."""

    connection: TtrpcConnection
    registered: asyncio.Future[str]  # index-name
    name: str = ""
    events: int = 0
    policy: PluginPolicy = field(default_factory=PluginPolicy)
    # Ids of the pods and containers that it was told of, until their removal; it hears of no others.
    known: set[str] = field(default_factory=set)
    apart: Apart = field(default_factory=Apart)

    def wants(self, event: int) -> bool:
        return bool(self.events & 1 << (event - 1))

    async def call(
        self, method: str, request: Message, answer: type[_Answer], seconds: float | None = None
    ) -> _Answer:
        """Call the plugin. Raises what `TtrpcConnection.call` does.

        A plugin that does not answer is disconnected, and set apart; not so if pods need it, which wait for it anyway.
        """
        try:
            answered = await self.connection.call(
                f"{PACKAGE}.Plugin", method, request, answer, self.policy.seconds if seconds is None else seconds
            )
        except PluginGone as error:
            first = self.connection.close()  # a plugin that hangs must not delay the next pods
            if first and isinstance(error, PluginSilent) and not self.policy.required:
                self.apart.silent(self.name, method, self.policy.seconds)
            raise
        except CallRefused:
            self.apart.answered(self.name, method)
            raise
        self.apart.answered(self.name, method)
        return answered


@contextlib.contextmanager
def asking(plugin: Plugin, method: str) -> Iterator[None]:
    """Turn an objection into PodError. A plugin that is gone, or an event too long for NRI, is logged and skipped.

    If pods need the plugin, those are errors too.
    """
    try:
        yield
    except (PluginGone, WireError) as error:
        if plugin.policy.required:
            raise Unavailable(f"NRI plugin {plugin.name}, which pods need: {error}") from error
        if isinstance(error, WireError):  # the event is too long for NRI
            text = "could not tell plugin of an event"
        else:
            text = "plugin disconnected: it is gone or did not answer"
        _log.error("%s", text, extra={"plugin": plugin.name, "call": method, "error": error})
    except NriError as error:
        raise PodError(f"NRI plugin {plugin.name}: {method}: {error}") from error
