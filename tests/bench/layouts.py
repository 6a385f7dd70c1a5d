"""The images of a benchmark, as tars of OCI layouts: busybox, and the pause program that other runtimes need."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import struct
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

BUSYBOX = "localhost/busybox:bench"
PAUSE = "localhost/pause:bench"
_MAKER = Path(__file__).parents[2] / "deploy" / "busybox-image.py"
_OCI = "application/vnd.oci.image."

# pause(2) for ever: what a pause image's program comes to. `mov eax, 34; syscall; jmp` on one readable page.
_CODE = bytes.fromhex("b822000000 0f05 ebf7")
_BASE = 0x400000


def busybox_tar(directory: Path) -> Path:
    """The project's busybox image as one tar. Takes busybox-static."""
    layout = directory / "busybox"
    subprocess.run([sys.executable, _MAKER, layout, BUSYBOX], check=True)
    return _pack(layout)


def pause_tar(directory: Path) -> Path:
    """An image whose only file is a program that sleeps until it is killed. x86-64 only."""
    if platform.machine() != "x86_64":
        raise SystemExit("make the pause image: only x86-64 is known here")
    layout = directory / "pause"
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    layer = _layer("pause", _program())
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": ["/pause"]},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest()]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{_OCI}manifest.v1+json",
        "config": _store(blobs, "config.v1+json", _json(config)),
        "layers": [_store(blobs, "layer.v1.tar", layer)],
    }
    entry = _store(blobs, "manifest.v1+json", _json(manifest))
    entry["annotations"] = {"org.opencontainers.image.ref.name": PAUSE}
    (layout / "index.json").write_bytes(_json({"schemaVersion": 2, "manifests": [entry]}))
    (layout / "oci-layout").write_bytes(_json({"imageLayoutVersion": "1.0.0"}))
    return _pack(layout)


def _program() -> bytes:
    """A static ELF executable of `_CODE` (elf(5)): header, one program header, the code."""
    entry, size = _BASE + 64 + 56, 64 + 56 + len(_CODE)
    identity = b"\x7fELF\x02\x01\x01"
    header = struct.pack("<16sHHIQQQIHHHHHH", identity, 2, 62, 1, entry, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)
    return header + segment + _CODE


def _layer(name: str, content: bytes) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(content), 0o755
        tar.addfile(info, io.BytesIO(content))
    return output.getvalue()


def _store(blobs: Path, kind: str, content: bytes) -> dict[str, Any]:
    name = hashlib.sha256(content).hexdigest()
    (blobs / name).write_bytes(content)
    return {"mediaType": _OCI + kind, "digest": f"sha256:{name}", "size": len(content)}


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _pack(layout: Path) -> Path:
    archive = layout.with_suffix(".tar")
    with tarfile.open(archive, "w") as tar:
        for path in sorted(layout.iterdir()):
            tar.add(path, path.name)
    return archive
