"""aiohttp, imported when something of it is used: it would take a third of crispd's start, which pods may wait for."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any


class _Later(ModuleType):
    def __getattr__(self, name: str) -> Any:
        value = getattr(import_module(self.__name__), name)
        setattr(self, name, value)
        return value


if TYPE_CHECKING:
    import aiohttp as aiohttp
else:
    aiohttp = _Later("aiohttp")
