"""Reads containers-registries.d(5): the locations of simple signatures."""

from __future__ import annotations

from pathlib import Path

import msgspec

from image.documents import Malformed, convert
from image.errors import InvalidConfiguration
from image.reference import Reference, lower_host


class _Place(msgspec.Struct, frozen=True, rename="kebab"):
    lookaside: str = ""
    sigstore: str = ""  # its older name

    @property
    def url(self) -> str:
        return self.lookaside or self.sigstore


class _File(msgspec.Struct, frozen=True, rename="kebab"):
    default_docker: _Place | None = None
    docker: dict[str, _Place] = msgspec.field(default_factory=dict)


def lookaside(directory: Path, reference: Reference) -> str:
    """Return the URL (https, http or file) of the signatures of `reference`; "" for none.

    Raises InvalidConfiguration naming the file.
    """
    default = ""
    places: dict[str, str] = {}
    for path in sorted(directory.glob("*.yaml")):
        parsed = _read(path)
        if parsed.default_docker is not None:
            default = parsed.default_docker.url
        places.update((lower_host(scope), place.url) for scope, place in parsed.docker.items())
    scope = reference.name
    if scope not in places:
        scope = reference.repository
    while scope and not places.get(scope):
        scope = scope.rpartition("/")[0]
    return places.get(scope, default)


def _read(path: Path) -> _File:
    import yaml  # imported only if simple signatures are required

    try:
        return convert(yaml.safe_load(path.read_bytes()) or {}, _File)
    except OSError as error:
        raise InvalidConfiguration(f"read {path}: {error.strerror}") from error
    except (yaml.YAMLError, Malformed, ValueError, RecursionError) as error:  # ValueError: a date, say, that is none
        raise InvalidConfiguration(f"read {path}: {' '.join(str(error).split())}") from None
