"""containers-certs.d(5): the CAs to trust for a registry, and the client certificate to send to it."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Sequence
from pathlib import Path

from image.errors import InvalidConfiguration

_HTTPS = 443
_HUB_NAMES = {"registry-1.docker.io": ("docker.io",)}

_Stamp = tuple[tuple[str, int], ...]


class HostCertificates:
    """TLS contexts by host, made at the first use and again after a change in the host's directory."""

    def __init__(self, directories: Sequence[Path]) -> None:
        self._directories = directories
        self._made: dict[tuple[str, int, bool], tuple[_Stamp, ssl.SSLContext]] = {}

    def context(self, host: str, port: int, insecure: bool) -> ssl.SSLContext | bool:
        """Return the context for `host`. Without a directory for it: True (the system's CAs) or False (verify nothing).

        Blocking I/O. Raises InvalidConfiguration naming the unusable file.
        """
        directory = self._directory(host, port)
        if directory is None:
            return not insecure
        stamp = tuple(sorted((path.name, path.stat().st_mtime_ns) for path in directory.iterdir()))
        key = (host, port, insecure)
        if (made := self._made.get(key)) is not None and made[0] == stamp:
            return made[1]
        context = _load(directory, [name for name, _ in stamp], insecure)
        self._made[key] = (stamp, context)
        return context

    def _directory(self, host: str, port: int) -> Path | None:
        return next((path for path in self._candidates(host, port) if path.is_dir()), None)

    def _candidates(self, host: str, port: int) -> Iterator[Path]:
        names = [host, *_HUB_NAMES.get(host, ())] if port == _HTTPS else []
        names.append(f"{host}:{port}")
        for directory in self._directories:
            yield from (directory / name for name in names)


def _load(directory: Path, names: Sequence[str], insecure: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    for name in names:
        path = directory / name
        try:
            if path.suffix == ".crt":
                context.load_verify_locations(path)
            elif path.suffix == ".cert":
                context.load_cert_chain(path, path.with_suffix(".key"))
            elif path.suffix == ".key" and path.with_suffix(".cert").name not in names:
                raise InvalidConfiguration(f"read {path}: the certificate {path.stem}.cert for it is missing")
        except OSError as error:  # ssl.SSLError is one
            raise InvalidConfiguration(f"read {path}: {error.strerror or error}") from error
    return context
