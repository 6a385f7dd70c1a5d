"""A registry for tests: Debian's docker-registry on a free port, of the loopback if nothing else is said."""

from __future__ import annotations

import http.client
import json
import re
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.images import BuiltImage

BINARY = "/usr/bin/docker-registry"
_START_LIMIT = 60.0  # seconds


class Registry:
    """A running registry; a context manager. `auth` and `tls` are those sections of its configuration.

    Only one without them can be pushed to; it may be started again with them on the same directory. `storage` is where
    it keeps images, if not in its directory.
    """

    def __init__(
        self,
        directory: Path,
        auth: dict[str, Any] | None = None,
        tls: dict[str, Any] | None = None,
        *,
        address: str = "127.0.0.1",
        storage: Path | None = None,
        access_log: bool = False,
    ) -> None:
        self.directory = directory
        self._address, self.port = address, _free_port(address)
        self._storage = storage or directory / "storage"
        directory.mkdir(parents=True, exist_ok=True)
        config = {
            "version": 0.1,
            "log": {"level": "error", "accesslog": {"disabled": not access_log}},
            "storage": {"filesystem": {"rootdirectory": str(self._storage)}, "delete": {"enabled": True}},
            "http": {"addr": self.host, **({"tls": tls} if tls else {})},
            **({"auth": auth} if auth else {}),
        }
        self._config = directory / "config.yml"
        self._config.write_text(json.dumps(config))  # JSON is YAML
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        return f"{self._address}:{self.port}"

    def __enter__(self) -> Registry:
        with open(self.directory / "log", "wb") as log:
            self._process = subprocess.Popen([BINARY, "serve", self._config], stdout=log, stderr=log)
        deadline = time.monotonic() + _START_LIMIT
        while True:
            try:
                socket.create_connection((self._address, self.port), 1).close()
                return self
            except OSError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    self.__exit__()
                    raise RuntimeError((self.directory / "log").read_text()) from None
                time.sleep(0.02)

    def __exit__(self, *exc: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def answers(self, digest: str) -> list[tuple[int, int]]:
        """Return status and size of each answer to a GET of a blob; they are in the log of access."""
        pattern = rf'"GET /v2/\S+/blobs/{digest} HTTP/1.1" (\d+) (\d+)'
        return [(int(code), int(size)) for code, size in re.findall(pattern, (self.directory / "log").read_text())]

    def push(self, repository: str, tag: str, image: BuiltImage) -> str:
        """Push an image or an index with its images; its digest."""
        for child in image.children:
            self.push(repository, "", child)
        for key, content in image.blobs.items():
            self.put_blob(repository, key, content)
        path = f"/v2/{repository}/manifests/{tag or image.digest}"
        self._call("PUT", path, image.manifest, {"Content-Type": image.media_type})
        return image.digest

    def put_blob(self, repository: str, digest: str, content: bytes) -> None:
        location = self._call("POST", f"/v2/{repository}/blobs/uploads/")["Location"]
        path = location.partition(self.host)[2] or location
        joint = "&" if "?" in path else "?"
        self._call("PUT", f"{path}{joint}digest={digest}", content, {"Content-Type": "application/octet-stream"})

    def blob_path(self, digest: str) -> Path:
        """Where the registry keeps a blob: tests damage it there."""
        key = digest.removeprefix("sha256:")
        return self._storage / "docker/registry/v2/blobs/sha256" / key[:2] / key / "data"

    def _call(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> http.client.HTTPMessage:
        connection = http.client.HTTPConnection(self._address, self.port, timeout=30)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            answer = response.read()
            if response.status >= 300:
                raise RuntimeError(f"{method} {path}: {response.status} {answer[:300]!r}")
            return response.headers
        finally:
            connection.close()


def _free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])
