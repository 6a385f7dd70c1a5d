"""Loads the configuration: flags win over drop-ins, those over the file, the file over defaults.

The file is TOML with the keys of `Configuration`. Drop-ins are the files `*.toml` in the directory whose name is the
file's with `.d` added (/etc/crisp/crisp.toml.d), in the order of their names; later ones win key by key.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cri.daemon.config import KEYS, Configuration
from cri.errors import ConfigurationError

DEFAULT_FILE = Path("/etc/crisp/crisp.toml")


def load(flags: Mapping[str, object] | None = None, path: Path | None = None) -> Configuration:
    """Load the configuration from `path`, its drop-ins, and `flags`. With None: the default file, which may be missing.

    `flags` maps keys to values in TOML's types; None means that the flag is not given. Raises ConfigurationError.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for file in _files(path):
        for key, value in _table(file).items():
            values[key] = _checked(f"{file}: {key}", key, value)
            sources[key] = str(file)
    for key, value in (flags or {}).items():
        if value is not None:
            option = KEYS[key].option
            values[key] = _checked(option, key, value)
            sources[key] = option
    configuration = dataclasses.replace(Configuration(), **values, sources=sources)
    _check_together(configuration)
    return configuration


def _check_together(configuration: Configuration) -> None:
    """Refuse values that contradict each other."""
    cert, key, ca = configuration.stream_tls_cert, configuration.stream_tls_key, configuration.stream_tls_ca
    if bool(cert) != bool(key) or (ca and not cert):
        missing = "stream_tls_key" if cert else "stream_tls_cert"
        raise ConfigurationError(f"{missing}: must be set: TLS needs a certificate and its key")


def _files(path: Path | None) -> Iterator[Path]:
    main = path or DEFAULT_FILE
    if path is not None or main.exists():
        yield main
    yield from sorted(main.with_name(f"{main.name}.d").glob("*.toml"))


def _table(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except OSError as error:
        raise ConfigurationError(f"read configuration {file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # ValueError: from TOML, UTF-8, or a number of too many digits
        raise ConfigurationError(f"parse configuration {file}: {error}") from error


def _checked(where: str, key: str, value: object) -> object:
    if key not in KEYS:
        raise ConfigurationError(f"{where}: is not a key of crisp; the keys are {', '.join(KEYS)}")
    try:
        return KEYS[key].kind.check(value)
    except ValueError as error:
        raise ConfigurationError(f"{where}: {value!r} {error}") from None
