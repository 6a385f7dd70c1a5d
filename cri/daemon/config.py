"""crispd's configuration: flags over drop-ins over the file over defaults.

The file is TOML with the keys of `Configuration`; drop-ins are the `*.toml` of the directory named as the file with
`.d` added (/etc/crisp/crisp.toml.d), in the order of their names, later ones winning key by key.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cri.errors import ConfigurationError

DEFAULT_FILE = Path("/etc/crisp/crisp.toml")
LOG_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
CGROUP_DRIVERS = ("cgroupfs", "systemd")
RELOADED = ("log_level", "trace_start")  # what SIGHUP puts in force; the rest takes a restart
_UNIX = "unix://"
_HANDLER = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")  # a RuntimeClass has no others
_SOCKET_PATH_BYTES = 107  # sun_path of unix(7), less its NUL
NRI_SOCKET = "/var/run/nri/nri.sock"  # where plugins look


@dataclass(frozen=True, slots=True)
class Configuration:
    """What is in force. `sources` tells, for each key that is not a default, which flag or file set it."""

    listen: str = "unix:///run/crisp/crisp.sock"
    root: Path = Path("/var/lib/crisp")
    state: Path = Path("/run/crisp")
    cni_conf_dir: Path = Path("/etc/cni/net.d")
    cni_bin_dirs: tuple[Path, ...] = (Path("/opt/cni/bin"), Path("/usr/lib/cni"))
    cdi_spec_dirs: tuple[Path, ...] = (Path("/etc/cdi"), Path("/var/run/cdi"))
    hooks_dirs: tuple[Path, ...] = (Path("/usr/share/containers/oci/hooks.d"), Path("/etc/containers/oci/hooks.d"))
    nri_socket: str = NRI_SOCKET
    checkpoint_images: bool = False
    enable_unprivileged_ports: bool = True
    enable_unprivileged_icmp: bool = True
    registries_conf: Path = Path("/etc/containers/registries.conf")
    registries_d: Path = Path("/etc/containers/registries.d")
    registry_certs_dirs: tuple[Path, ...] = (Path("/etc/containers/certs.d"), Path("/etc/docker/certs.d"))
    auth_file: str = ""  # where root's logins by podman and docker are
    signature_policy: str = ""  # /etc/containers/policy.json if there is one, else everything is accepted
    pull_progress_timeout: int = 300
    parallel_downloads: int = 4
    keep_blobs: bool = False
    additional_image_stores: tuple[Path, ...] = ()
    layer_limit: int = 64 << 30
    cgroup_driver: str = "cgroupfs"
    runtime_handlers: Mapping[str, Path] = field(default_factory=dict)
    log_level: str = "info"
    stream_addr: str = "127.0.0.1:0"
    metrics_addr: str = ""  # Prometheus metrics, to anybody who can connect: loopback only, if at all; "" is off
    stream_tls_cert: str = ""
    stream_tls_key: str = ""
    stream_tls_ca: str = ""  # clients must have a certificate that it signed
    pause_image: str = ""  # pods need none; one named here is reported as pinned, so that kubelet leaves it alone
    trace_start: bool = False
    tracing_endpoint: str = ""  # OTLP over plain gRPC, as kubelet's own `tracing.endpoint`; "" is off
    tracing_sampling_rate_per_million: int = 0
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def socket(self) -> Path:
        """The path of the CRI socket."""
        return Path(self.listen.removeprefix(_UNIX))

    def values(self) -> dict[str, Any]:
        """The keys and their values as TOML or JSON take them."""
        return {key: _plain(getattr(self, key)) for key in KEYS}

    def to_toml(self) -> str:
        """The configuration as a file that could be read back; a comment tells where each value is from."""
        return "".join(
            f"{key} = {_literal(value)}  # {self.sources.get(key, 'default')}\n" for key, value in self.values().items()
        )


def load(flags: Mapping[str, object] | None = None, path: Path | None = None) -> Configuration:
    """The configuration of `path` (the default file when None, which may be missing), its drop-ins, and `flags`.

    `flags` maps keys of `Configuration` to values as TOML would give them; a None is a flag not given. Raises
    ConfigurationError.
    """
    values: dict[str, object] = {}
    sources: dict[str, str] = {}
    for file in _files(path):
        for key, value in _table(file).items():
            values[key] = _checked(f"{file}: {key}", key, value)
            sources[key] = str(file)
    for key, value in (flags or {}).items():
        if value is not None:
            flag = _flag(key)
            values[key] = _checked(flag, key, value)
            sources[key] = flag
    configuration = dataclasses.replace(Configuration(), **values, sources=sources)  # type: ignore[arg-type]
    _check_together(configuration)
    return configuration


def _check_together(configuration: Configuration) -> None:
    """Refuse values that do not go with each other."""
    cert, key, ca = configuration.stream_tls_cert, configuration.stream_tls_key, configuration.stream_tls_ca
    if bool(cert) != bool(key) or (ca and not cert):
        missing = "stream_tls_key" if cert else "stream_tls_cert"
        raise ConfigurationError(f"{missing}: must be set, as TLS takes a certificate and its key")


def _flag(key: str) -> str:
    return "--" + ("cni-bin-dir" if key == "cni_bin_dirs" else key.replace("_", "-"))


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
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"parse configuration {file}: {error}") from error


def _checked(where: str, key: str, value: object) -> object:
    if key not in KEYS:
        raise ConfigurationError(f"{where}: is no key of crisp; there are {', '.join(KEYS)}")
    try:
        return KEYS[key](value)
    except ValueError as error:
        raise ConfigurationError(f"{where}: {value!r} {error}") from None


def _string(value: object) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError("must be a string")
    return value


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _path(value: object) -> Path:
    path = Path(_string(value))
    if not path.is_absolute():
        raise ValueError("must be an absolute path")
    return path


def _optional_path(value: object) -> str:
    return str(_path(value)) if value != "" else ""


def _whole(least: int, most: int) -> Callable[[object], int]:
    def check(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError(f"must be a whole number from {least} to {most}")
        return value

    return check


def _paths(value: object) -> tuple[Path, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError("must be a list of paths")
    return tuple([_path(item) for item in value])


def _optional_paths(value: object) -> tuple[Path, ...]:
    return () if value == [] else _paths(value)


def _listen(value: object) -> str:
    path = _path(_string(value).removeprefix(_UNIX))
    if len(bytes(path)) > _SOCKET_PATH_BYTES:
        raise ValueError(f"is too long: {_SOCKET_PATH_BYTES} bytes of path at most")
    return f"{_UNIX}{path}"


def _address(value: object) -> str:
    host, colon, port = _string(value).rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 0xFFFF:
        raise ValueError("must be an address and a port such as 127.0.0.1:0")
    return f"{host}:{port}"


def _optional_address(value: object) -> str:
    return _address(value) if value else ""


def _one_of(*allowed: str) -> Callable[[object], str]:
    def check(value: object) -> str:
        if value not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}")
        return str(value)

    return check


def _runtimes(value: object) -> dict[str, Path]:
    if not isinstance(value, Mapping):
        raise ValueError("must be a table of names and what they stand for")
    found = {}
    for name, about in value.items():
        if name in ("", "crisp") or not _HANDLER.fullmatch(name):
            raise ValueError(f"has {name!r}: must be another name than crisp, of letters, digits, '-' and '.'")
        if not isinstance(about, Mapping) or set(about) != {"path"}:
            raise ValueError(f"has {name!r}: must be a table with the key path")
        found[name] = _path(about["path"])
    return found


KEYS: dict[str, Callable[[object], object]] = {
    "listen": _listen,
    "root": _path,
    "state": _path,
    "cni_conf_dir": _path,
    "cni_bin_dirs": _paths,
    "cdi_spec_dirs": _paths,
    "hooks_dirs": _paths,
    "nri_socket": _optional_path,
    "registries_conf": _path,
    "registries_d": _path,
    "registry_certs_dirs": _paths,
    "auth_file": _optional_path,
    "signature_policy": _optional_path,
    "pull_progress_timeout": _whole(0, 86_400),
    "parallel_downloads": _whole(1, 64),
    "checkpoint_images": _boolean,
    "enable_unprivileged_ports": _boolean,
    "enable_unprivileged_icmp": _boolean,
    "keep_blobs": _boolean,
    "additional_image_stores": _optional_paths,
    "layer_limit": _whole(0, 1 << 60),
    "cgroup_driver": _one_of(*CGROUP_DRIVERS),
    "runtime_handlers": _runtimes,
    "log_level": _one_of(*LOG_LEVELS),
    "stream_addr": _address,
    "metrics_addr": _optional_address,
    "stream_tls_cert": _optional_path,
    "stream_tls_key": _optional_path,
    "stream_tls_ca": _optional_path,
    "pause_image": _string,
    "trace_start": _boolean,
    "tracing_endpoint": _optional_address,
    "tracing_sampling_rate_per_million": _whole(0, 1_000_000),
}


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {name: {"path": str(path)} for name, path in value.items()}
    if isinstance(value, tuple):
        return [str(item) for item in value]
    return value if isinstance(value, bool | int) else str(value)


def _literal(value: object) -> str:
    if isinstance(value, dict):
        inner = ", ".join(f"{json.dumps(key)} = {_literal(one)}" for key, one in value.items())
        return f"{{{inner}}}"
    # JSON's strings, arrays and booleans are TOML's, as long as nothing is written as a pair of surrogates.
    return json.dumps(value, ensure_ascii=False)
