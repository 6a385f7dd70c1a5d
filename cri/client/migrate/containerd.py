"""Reads containerd's configuration (versions 2 and 3) and its images."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

from cri.client.errors import UsageError
from cri.client.migrate import bolt
from cri.client.migrate.layout import Found, NotWhole, blob, link, reachable, write_index
from cri.client.migrate.translation import Translation, address, seconds

CONFIG: Final = Path("/etc/containerd/config.toml")
ROOT: Final = Path("/var/lib/containerd")
_CRI2: Final = "io.containerd.grpc.v1.cri"
_RUNTIME3, _IMAGES3 = "io.containerd.cri.v1.runtime", "io.containerd.cri.v1.images"
_SERVER3: Final = _CRI2
_METADATA: Final = Path("io.containerd.metadata.v1.bolt/meta.db")
_CONTENT: Final = Path("io.containerd.content.v1.content")
_TRIES: Final = 10
_SAME: Final = ("enable_unprivileged_ports", "enable_unprivileged_icmp", "cdi_spec_dirs")


def translate(path: Path) -> Translation:
    """Translate a configuration. Raises UsageError."""
    try:
        document = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"read {path}: {error}") from None
    found = Translation(document)
    found.take("version")
    for pattern in found.take("imports") or ():
        found.note("imports", f"{pattern}: add its settings yourself")
    found.place("root", "its own store; --root names it")
    found.place("state", "crisp has its own")
    found.place("grpc.address", "crisp listens at its own socket (listen); point kubelet at it")
    for key in ("grpc.uid", "grpc.gid"):
        found.place(key, "only root can open crisp's socket")
    found.key("debug.level", "log_level", lambda level: {"trace": "debug", "warn": "warning"}.get(level, level))
    found.key("metrics.address", "metrics_addr")
    found.key("plugins.io.containerd.nri.v1.nri.socket_path", "nri_socket")
    found.key("plugins.io.containerd.tracing.processor.v1.otlp.endpoint", "tracing_endpoint")
    for plugin in (_CRI2, _RUNTIME3, _IMAGES3):
        _translate_cri(found, f"plugins.{plugin}")
    found.rest()
    return found


def _translate_cri(found: Translation, cri: str) -> None:
    """Translate the CRI plugin, or its parts of version 3."""
    for name in _SAME:
        found.key(f"{cri}.{name}", name)
    found.key(f"{cri}.max_concurrent_downloads", "parallel_downloads")
    found.key(f"{cri}.image_pull_progress_timeout", "pull_progress_timeout", seconds)
    for pinned in ("sandbox_image", "pinned_images.sandbox"):
        found.key(f"{cri}.{pinned}", "pause_image")
    found.key(f"{cri}.cni.conf_dir", "cni_conf_dir")
    found.key(f"{cri}.cni.bin_dirs", "cni_bin_dirs")
    found.key(f"{cri}.cni.bin_dir", "cni_bin_dirs", lambda one: [one])
    address(found, f"{cri}.stream_server_address", f"{cri}.stream_server_port", "stream_addr")
    found.key(f"{cri}.x509_key_pair_streaming.tls_cert_file", "stream_tls_cert")
    found.key(f"{cri}.x509_key_pair_streaming.tls_key_file", "stream_tls_key")
    default = found.take(f"{cri}.containerd.default_runtime_name") or "runc"
    for name, runtime in (found.take(f"{cri}.containerd.runtimes") or {}).items():
        _translate_runtime(found, name, runtime, is_default=name == default)
    _translate_registries(found, f"{cri}.registry")


def _translate_runtime(found: Translation, name: str, runtime: dict[str, Any], *, is_default: bool) -> None:
    options = runtime.get("options") or {}
    if options.get("SystemdCgroup"):
        found.set("cgroup_driver", "systemd")
    program, kind = options.get("BinaryName", ""), runtime.get("runtime_type", "")
    if kind not in ("", "io.containerd.runc.v2", "io.containerd.runc.v1"):
        found.note(f"runtime {name}", f"{kind}: crisp has no shims; it runs OCI runtimes by their program's path")
    elif program and not program.rpartition("/")[2].startswith("runc"):
        found.handler(name, program)
    elif name != "runc" or not is_default:
        found.note(f"runtime {name}", "crisp's own core runs it: use its handler `crisp`, or none, in the RuntimeClass")


def _translate_registries(found: Translation, registry: str) -> None:
    for host, mirror in (found.take(f"{registry}.mirrors") or {}).items():
        found.mirrors(host, mirror.get("endpoint") or [])
    for host, configured in (found.take(f"{registry}.configs") or {}).items():
        if "auth" in configured:
            found.note(f"registry {host}: auth", "put the login into auth_file: crisp login files are those of podman")
        tls = configured.get("tls") or {}
        if tls.get("insecure_skip_verify"):
            found.insecure(host)
        for name in ("ca_file", "cert_file", "key_file"):
            if tls.get(name):
                found.note(f"registry {host}: {name}", f"copy {tls[name]} to /etc/containers/certs.d/{host}/")
    for directory in str(found.take(f"{registry}.config_path") or "").split(":"):
        for file in sorted(Path(directory).glob("*/hosts.toml")) if directory else ():
            _translate_hosts(found, file)


def _translate_hosts(found: Translation, file: Path) -> None:
    """Translate a hosts.toml. Its directory is named after the registry, with _PORT_ for a port."""
    try:
        document = tomllib.loads(file.read_text())
    except (OSError, ValueError) as error:
        found.note(str(file), f"cannot be read: {error}")
        return
    name = file.parent.name
    registry = "*" if name == "_default" else name[:-1].replace("_", ":") if name.endswith("_") else name
    hosts = document.get("host") or {}
    if registry == "*":
        found.note(str(file), "registries.conf has no mirror for all registries: add one for each")
        return
    own = str(document.get("server", f"https://{registry}"))
    found.mirrors(registry, [*hosts, own] if hosts else [own])
    for host, configured in hosts.items():
        if configured.get("skip_verify"):
            found.insecure(host.partition("://")[2] or host)
        for member in ("ca", "client", "header", "override_path"):
            if member in configured:
                place = host.partition("://")[2].partition("/")[0]
                found.note(f"{file}: {host}: {member}", f"certificates belong into /etc/containers/certs.d/{place}/; "
                           "headers and paths have no counterpart")  # fmt: skip


def images(root: Path, namespace: str = "k8s.io") -> Iterator[Found]:
    """Yield the images of containerd's store, one for each name. Raises UsageError."""
    try:
        top = bolt.open_database(_snapshot(root / _METADATA))
        listed = top.bucket(b"v1", namespace.encode(), b"images")
        for key, image in listed.buckets() if listed is not None else ():
            target = image.bucket(b"target")
            name = key.decode(errors="replace")
            if target is not None and not name.startswith("sha256:") and "@" not in name:  # kubelet's own aliases
                digest, kind = target.value(b"digest").decode(), target.value(b"mediatype").decode()
                yield Found(name, digest, partial(_write, root / _CONTENT, name, digest, kind))
    except (OSError, bolt.Damaged, UnicodeDecodeError) as error:
        raise UsageError(f"read {root / _METADATA}: {error}") from None


def _snapshot(path: Path) -> bytes:
    """Read the database as of one transaction: containerd may write to it meanwhile. Raises OSError, bolt.Damaged."""
    for _ in range(_TRIES):
        content = path.read_bytes()
        with path.open("rb") as file:
            head = file.read(1 << 17)
        if bolt.state(content)[0] == bolt.state(head)[0]:
            return content
    raise OSError("containerd writes to it all the time: stop containerd first")


def _write(content: Path, name: str, digest: str, media_type: str, directory: Path) -> None:
    """Write the image's layout, of links to containerd's blobs."""
    for found, needed in dict(reachable(content, digest, media_type)).items():
        source = blob(content, found)
        if source.exists():
            link(source, blob(directory, found))
        elif needed:
            raise NotWhole(f"{found} is not in the content store (discard_unpacked_layers?): pull it with crisp")
    size = blob(content, digest).stat().st_size
    write_index(directory, name, {"mediaType": media_type, "digest": digest, "size": size})
