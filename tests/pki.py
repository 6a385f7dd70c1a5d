"""A certificate authority for tests, by the openssl command."""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

LOOPBACK: Final = ("IP:127.0.0.1", "DNS:localhost")


class Authority:
    """Its certificate and key, and what it issues: certificates for some names, and signed tokens."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.certificate, self.key = directory / "ca.pem", directory / "ca.key"
        extensions = ("-addext", "basicConstraints=critical,CA:TRUE")
        files = ("-keyout", self.key, "-out", self.certificate)
        _openssl("req", "-x509", *_NEW_KEY, "-days", "1", "-subj", "/CN=test authority", *extensions, *files)

    def issue(
        self, directory: Path, name: str, organization: str = "", names: Sequence[str] = LOOPBACK
    ) -> tuple[Path, Path]:
        """A certificate, good for servers and clients alike, and its key.

        `organization` is a group to Kubernetes; a server has `names` ("IP:127.0.0.1", "DNS:localhost").
        """
        request, certificate, key = (directory / f"{name}.{kind}" for kind in ("csr", "pem", "key"))
        subject = (f"/O={organization}" if organization else "") + f"/CN={name}"
        _openssl("req", *_NEW_KEY, "-subj", subject, "-keyout", key, "-out", request)
        extensions = directory / f"{name}.ext"
        extensions.write_text(f"subjectAltName={','.join(names)}\nextendedKeyUsage=serverAuth,clientAuth\n")
        by = ("-CA", self.certificate, "-CAkey", self.key, "-CAcreateserial", "-days", "1", "-extfile", extensions)
        _openssl("x509", "-req", "-in", request, *by, "-out", certificate)
        return certificate, key

    def sign_token(self, claims: dict[str, Any]) -> str:
        """A JSON Web Token by the authority's own key (RS256), with its certificate in it."""
        chain = [base64.b64encode(ssl.PEM_cert_to_DER_cert(self.certificate.read_text())).decode()]
        header = {"typ": "JWT", "alg": "RS256", "x5c": chain}
        text = ".".join(_base64url(json.dumps(part).encode()) for part in (header, claims))
        return f"{text}.{_base64url(_openssl('dgst', '-sha256', '-sign', self.key, content=text.encode()))}"


_NEW_KEY = ("-newkey", "rsa:2048", "-nodes")


def _base64url(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def _openssl(*arguments: str | Path, content: bytes = b"") -> bytes:
    return subprocess.run(["openssl", *arguments], input=content, check=True, capture_output=True).stdout
