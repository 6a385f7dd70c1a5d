"""Errors of NRI plugins and their connections."""

from __future__ import annotations


class NriError(Exception):
    """An NRI plugin or its connection failed."""


class WireError(NriError):
    """A peer's data violates the protocol: nothing more can be read from its connection."""


class PluginGone(NriError):
    """The plugin's connection ended, or what it answers is no answer; it is dropped."""


class PluginSilent(PluginGone):
    """The plugin lives, and did not answer a call in time."""


class CallRefused(NriError):
    """A peer answered a call with an error; `code` is gRPC's number of the error."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
