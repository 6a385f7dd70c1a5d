"""The network room's error family."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


class NetworkError(Exception):
    """Base of the family: an operation on a pod's network failed."""


class NetworkNotReady(NetworkError):
    """There is no usable network configuration (yet); trying again may help."""


class InvalidConfiguration(NetworkError):
    """A network configuration file breaks the CNI specification; the message names the file and what is wrong."""


class InvalidAttachment(NetworkError):
    """What was asked for the pod cannot be told to a plugin; the message names the field and its value."""


class PluginNotFound(NetworkError):
    """No directory of plugins holds the binary that a configuration names."""

    def __init__(self, plugin: str, directories: Iterable[Path]) -> None:
        searched = ", ".join(str(directory) for directory in directories) or "no directory"
        super().__init__(f'find plugin "{plugin}": not in {searched}')
        self.plugin = plugin


class PluginFailed(NetworkError):
    """A plugin answered an error (CNI specification, section 5 "Error"), nothing sensible, or not in time.

    `code` is the plugin's own error code; 0 when the plugin did not give one. 11 asks the caller to try again later.
    """

    def __init__(self, plugin: str, command: str, code: int, msg: str, details: str = "") -> None:
        reason = f"{msg}: {details}" if details else msg
        super().__init__(f'run plugin "{plugin}" {command}: {reason}' + (f" (code {code})" if code else ""))
        self.plugin = plugin
        self.command = command
        self.code = code
        self.msg = msg
        self.details = details
