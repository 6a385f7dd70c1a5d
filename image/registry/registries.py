"""The registries of the node: the meanings of names and the sources of references, by registries.conf."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from image.errors import InvalidConfiguration
from image.model import Credentials
from image.reference import Reference
from image.registry.auth import usable_at
from image.registry.authfile import default_files, kept_credentials
from image.registry.origin import Origin
from image.registry.registries_conf import RegistriesConf, load
from image.registry.repository import Repository
from image.registry.transport import Transport
from image.settings import ImageSettings

_Stamp = tuple[object, ...]
_Keeper = Callable[[str], Awaitable[Credentials | None]]


class Registries:
    """registries.conf with its drop-ins, reread when it changes, and the node's own credentials."""

    def __init__(self, path: Path, settings: ImageSettings, transport: Transport) -> None:
        """Raises InvalidConfiguration."""
        self._path = path
        self._settings = settings
        self._transport = transport
        self._stamp = self._stamped()
        self._conf = load(path)

    def read(self) -> RegistriesConf:
        """Read the configuration from disk. Blocking. Raises InvalidConfiguration."""
        stamp = self._stamped()
        conf = load(self._path)
        self._conf, self._stamp = conf, stamp
        return conf

    def meanings(self, name: str) -> tuple[Reference, ...]:
        """Return the references that a name may mean, in the order to try. Raises InvalidReference.

        Uses the present configuration, or the last valid one while it is invalid; a pull reports that.
        """
        stamp = self._stamped()
        if stamp != self._stamp:
            try:
                self.read()
            except InvalidConfiguration:
                self._stamp = stamp
        return self._conf.meanings(name)

    def origin(
        self,
        conf: RegistriesConf,
        reference: Reference,
        credentials: Credentials | None,
        auth_file: Path | None = None,
    ) -> Origin:
        """Return the sources of `reference`, with `credentials`, or those of the node or of `auth_file`.

        Raises RegistryBlocked.
        """
        find = self._keeper(conf, auth_file)
        own = usable_at(credentials, reference.domain)
        repositories = []
        for endpoint in conf.endpoints(reference):
            sent = None if endpoint.mirror else own
            repositories.append(Repository(self._transport, endpoint, sent, partial(find, endpoint.location)))
        return Origin(repositories)

    def _keeper(self, conf: RegistriesConf, auth_file: Path | None) -> _Keeper:
        """Return the function that finds the node's credentials for a location."""
        named = auth_file or self._settings.auth_file
        files = default_files() if named is None else (named,)
        return partial(kept_credentials, files=files, helpers=() if auth_file else conf.credential_helpers)

    def _stamped(self) -> _Stamp:
        """Return a value that changes when a file of the configuration changes."""
        try:
            names = sorted(os.listdir(f"{self._path}.d"))
        except OSError:
            names = []
        return _stamp(str(self._path)), *(_stamp(f"{self._path}.d/{name}") for name in names)


def _stamp(path: str) -> _Stamp:
    try:
        there = os.stat(path)
    except OSError:
        return (path,)
    return path, there.st_ino, there.st_size, there.st_mtime_ns
