"""Reads CRI-O's configuration (crio.conf and its drop-ins) and the images of containers/storage."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import re
import tomllib
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

from cri.client.errors import UsageError
from cri.client.migrate.layout import Found, NotWhole, blob, write_index
from cri.client.migrate.translation import Translation, address, seconds

CONFIG: Final = Path("/etc/crio/crio.conf")
ROOT: Final = Path("/var/lib/containers/storage")
_FILE, _SEGMENT = 1, 2  # kinds of tar-split's entries
_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
_OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
_OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9._-]+")
_PIECE: Final = 1 << 20


def translate(path: Path) -> Translation:
    """Translate a configuration with its drop-ins. Raises UsageError."""
    document: dict[str, Any] = {}
    for file in (path, *sorted(path.with_name(f"{path.name}.d").glob("*"))):
        try:
            if file.exists():
                _merge(document, tomllib.loads(file.read_text()))
        except (OSError, ValueError) as error:
            raise UsageError(f"read {file}: {error}") from None
    if not document:
        raise UsageError(f"read {path}: there is no such file, and no drop-in: --config names another")
    found = Translation(document)
    for key in ("crio.root", "crio.runroot", "crio.storage_driver", "crio.storage_option"):
        found.place(key, "crisp has a store of its own (root, state)")
    found.place("crio.api.listen", "crisp listens at its own socket (listen); point kubelet at it")
    address(found, "crio.api.stream_address", "crio.api.stream_port", "stream_addr")
    for name in ("stream_tls_cert", "stream_tls_key", "stream_tls_ca"):
        found.key(f"crio.api.{name}", name)
    found.place("crio.api.stream_enable_tls", "stream_tls_cert switches TLS on")
    found.key("crio.runtime.cgroup_manager", "cgroup_driver")
    found.key("crio.runtime.cdi_spec_dirs", "cdi_spec_dirs")
    found.key("crio.runtime.hooks_dir", "hooks_dirs")
    levels = {"trace": "debug", "warn": "warning", "fatal": "error", "panic": "error"}
    found.key("crio.runtime.log_level", "log_level", lambda level: levels.get(level, level))
    for name in ("conmon", "conmon_cgroup", "conmon_env", "pinns_path"):
        found.place(f"crio.runtime.{name}", "crisp has its own shim")
    default = found.take("crio.runtime.default_runtime")
    for name, runtime in (found.take("crio.runtime.runtimes") or {}).items():
        if runtime.get("runtime_type") == "vm":
            found.note(f"runtime {name}", "crisp has no shims of containerd's kind")
        elif name not in ("runc", "crun") or (default and name != default):
            found.handler(name, runtime.get("runtime_path", ""))
    found.key("crio.image.pause_image", "pause_image")
    found.key("crio.image.global_auth_file", "auth_file")
    found.key("crio.image.signature_policy", "signature_policy")
    found.key("crio.image.pull_progress_timeout", "pull_progress_timeout", seconds)
    for host in found.take("crio.image.insecure_registries") or ():
        found.insecure(host)
    found.key("crio.network.network_dir", "cni_conf_dir")
    found.key("crio.network.plugin_dirs", "cni_bin_dirs")
    _translate_watching(found)
    found.rest()
    return found


def _translate_watching(found: Translation) -> None:
    if found.take("crio.metrics.enable_metrics"):
        host, port = found.take("crio.metrics.metrics_host"), found.take("crio.metrics.metrics_port")
        found.set("metrics_addr", f"{host or '127.0.0.1'}:{port or 9090}")
    endpoint, rate = (found.take(f"crio.tracing.tracing_{name}") for name in ("endpoint", "sampling_rate_per_million"))
    if found.take("crio.tracing.enable_tracing"):
        found.set("tracing_endpoint", endpoint or "127.0.0.1:4317")
        found.set("tracing_sampling_rate_per_million", rate or 0)
    socket, on = found.take("crio.nri.nri_listen"), found.take("crio.nri.enable_nri")
    if on is False:
        found.set("nri_socket", "")
    elif socket:
        found.set("nri_socket", socket)


def _merge(into: dict[str, Any], more: dict[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def images(root: Path) -> Iterator[Found]:
    """Yield the images of containers/storage, one for each name. Raises UsageError."""
    try:
        listed = json.loads((root / "overlay-images/images.json").read_bytes())
        layers = {one["id"]: one for one in json.loads((root / "overlay-layers/layers.json").read_bytes())}
    except (OSError, ValueError) as error:
        raise UsageError(f"read {root}: {error}") from None
    for image in listed:
        for name in image.get("names") or ():
            if "@" not in name:
                yield Found(name, image.get("digest", ""), partial(_write, root, image, layers, name))


def _write(root: Path, image: dict[str, Any], layers: dict[str, Any], name: str, directory: Path) -> None:
    """Write the image's layout: its configuration as it is, and its layers' tars, put together as they were.

    The store keeps layers unpacked, with what tar-split noted of the tars. So the layers are not compressed any more,
    and the manifest is a new one: the image's id stays, its repository digest does not.
    """
    config = _big_data(root, image["id"], f"sha256:{image['id']}")
    if hashlib.sha256(config).hexdigest() != image["id"]:
        raise NotWhole("the store's copy of its configuration is damaged")
    chain: list[dict[str, Any]] = []
    above = image.get("layer")
    while above:
        layer = layers.get(above)
        if layer is None or len(chain) > len(layers):
            raise NotWhole(f"its layer {above} is not in the store")
        chain.append(layer)
        above = layer.get("parent")
    descriptors = [_assemble(root, layer, directory) for layer in reversed(chain)]
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": {"mediaType": _OCI_CONFIG, **_put(directory, config)},
        "layers": [{"mediaType": _OCI_LAYER, **one} for one in descriptors],
    }
    write_index(directory, name, {"mediaType": _MANIFEST, **_put(directory, json.dumps(manifest).encode())})


def _big_data(root: Path, image_id: str, key: str) -> bytes:
    plain = _PLAIN_NAME.fullmatch(key) is not None
    name = key if plain else "=" + base64.b64encode(key.encode()).decode()
    try:
        return (root / "overlay-images" / image_id / name).read_bytes()
    except OSError as error:
        raise NotWhole(f"read {key}: {error.strerror}") from error


def _put(directory: Path, content: bytes) -> dict[str, Any]:
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    path = blob(directory, digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return {"digest": digest, "size": len(content)}


def _assemble(root: Path, layer: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Write a layer's tar into the layout. Raises NotWhole if it is not the tar that was unpacked."""
    wanted = layer.get("diff-digest", "")
    path = blob(directory, wanted)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        return {"digest": wanted, "size": path.stat().st_size}
    seen, size = hashlib.sha256(), 0
    top = os.open(root / "overlay" / layer["id"] / "diff", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with gzip.open(root / "overlay-layers" / f"{layer['id']}.tar-split.gz") as notes, path.open("wb") as tar:
            for piece in _pieces(notes, top):
                seen.update(piece)
                tar.write(piece)
                size += len(piece)
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise NotWhole(f"put layer {wanted} together: {error}") from error
    finally:
        os.close(top)
    if wanted != f"sha256:{seen.hexdigest()}":
        raise NotWhole(f"layer {wanted} was changed in the store: pull the image with crisp")
    return {"digest": wanted, "size": size}


def _pieces(notes: Iterable[bytes], top: int) -> Iterator[bytes]:
    """Yield a tar's bytes: headers and padding from tar-split's notes, contents from the files below `top`."""
    for line in notes:
        note = json.loads(line)
        if note["type"] == _SEGMENT:
            yield base64.b64decode(note.get("payload") or "")
        elif note["type"] == _FILE and note.get("size"):
            raw = note.get("name_raw")
            name = base64.b64decode(raw) if raw else note["name"].encode()
            left = note["size"]
            with os.fdopen(_open_below(top, name), "rb") as file:
                while left and (piece := file.read(min(left, _PIECE))):
                    left -= len(piece)
                    yield piece
            if left:
                raise ValueError(f"{os.fsdecode(name)} is shorter than it was")


def _open_below(top: int, name: bytes) -> int:
    """Open a regular file without following links: names in a layer are an image's."""
    *parents, last = [part for part in name.split(b"/") if part not in (b"", b".")]
    if b".." in (*parents, last):
        raise ValueError(f"{os.fsdecode(name)} leads out of the layer")
    at = os.dup(top)
    try:
        for part in parents:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            os.close(at)
            at = below
        return os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)
    finally:
        os.close(at)
