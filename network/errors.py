"""Errors of the network package."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


class NetworkError(Exception):
    """An operation on a pod's network failed. Base of all errors of this package."""


class NetworkNotReady(NetworkError):
    """There is no usable network configuration yet. Trying again may help."""


class NetworkBusy(NetworkError):
    """The operation has to wait for others to end. Trying again helps."""


class InvalidConfiguration(NetworkError):
    """A network configuration file violates the CNI specification. The message names the file and the problem."""


class InvalidAttachment(NetworkError):
    """A value of the pod cannot be passed to a plugin. The message names the field and its value."""


class PluginNotFound(NetworkError):
    """The plugin that a configuration names is in none of the plugin directories."""

    def __init__(self, plugin: str, directories: Iterable[Path]) -> None:
        searched = ", ".join(str(directory) for directory in directories) or "no directory"
        super().__init__(f'find plugin "{plugin}": not in {searched}')
        self.plugin = plugin


class PluginFailed(NetworkError):
    """A plugin returned an error (CNI specification, section 5 "Error"), invalid output, or nothing in time.

    `code` is the plugin's error code, 0 if it gave none. Code 11 asks the caller to try again later.
    """

    def __init__(self, plugin: str, command: str, code: int, msg: str, details: str = "") -> None:
        reason = f"{msg}: {details}" if details else msg
        super().__init__(f'run plugin "{plugin}" {command}: {reason}' + (f" (code {code})" if code else ""))
        self.plugin = plugin
        self.command = command
        self.code = code
        self.msg = msg
        self.details = details
