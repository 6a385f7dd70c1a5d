#!/usr/bin/env python3
"""Make an OCI image layout from a static busybox: deploy/busybox-image.py DIRECTORY [NAME]

No registry, no root, standard library only. The image holds /bin/busybox, a symbolic link for each of its applets,
/etc/passwd and /etc/group with root and nobody, /tmp, and runs `sh`. The same busybox gives the same digests.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

BUSYBOX = Path("/bin/busybox")
FILES = {
    "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/group": b"root:x:0:\nnogroup:x:65534:\n",
}
DIRECTORIES = {"bin": 0o755, "etc": 0o755, "root": 0o700, "tmp": 0o1777}
MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
CREATED = "1970-01-01T00:00:00Z"
OCI = "application/vnd.oci.image."


def main(directory: Path, name: str = "localhost/busybox:latest") -> None:
    """Write the image layout into `directory`, which is created if missing."""
    layer = root_filesystem(BUSYBOX)
    compressed = gzip.compress(layer, compresslevel=6, mtime=0)
    config = {
        "created": CREATED,
        "architecture": MACHINES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["sh"], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [digest(layer)]},
        "history": [{"created": CREATED, "created_by": "the host's busybox"}],
    }
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{OCI}manifest.v1+json",
        "config": store(blobs, f"{OCI}config.v1+json", as_json(config)),
        "layers": [store(blobs, f"{OCI}layer.v1.tar+gzip", compressed)],
    }
    entry = store(blobs, f"{OCI}manifest.v1+json", as_json(manifest))
    entry["annotations"] = {"org.opencontainers.image.ref.name": name}
    (directory / "index.json").write_bytes(as_json({"schemaVersion": 2, "manifests": [entry]}))
    (directory / "oci-layout").write_bytes(as_json({"imageLayoutVersion": "1.0.0"}))


def root_filesystem(busybox: Path) -> bytes:
    """Return the uncompressed layer. Raises SystemExit if busybox needs shared libraries: the image has none."""
    program = busybox.read_bytes()
    if b"/ld-linux" in program[:4096]:
        raise SystemExit(f"make image: {busybox} is not static: install busybox-static")
    applets = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True).stdout.split()
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path, mode in DIRECTORIES.items():
            tar.addfile(member(path, tarfile.DIRTYPE, mode))
        for path, content in ({"bin/busybox": program} | FILES).items():
            info = member(path, tarfile.REGTYPE, 0o755 if path.startswith("bin/") else 0o644)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for applet in sorted(set(applets) - {"busybox"}):
            info = member(f"bin/{applet}", tarfile.SYMTYPE, 0o777)
            info.linkname = "busybox"
            tar.addfile(info)
    return output.getvalue()


def member(path: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(path)
    info.type, info.mode = kind, mode
    return info


def store(blobs: Path, media_type: str, content: bytes) -> dict[str, Any]:
    name = digest(content)
    (blobs / name.removeprefix("sha256:")).write_bytes(content)
    return {"mediaType": media_type, "digest": name, "size": len(content)}


def digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def as_json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), *sys.argv[2:])
