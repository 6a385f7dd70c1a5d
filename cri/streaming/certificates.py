"""The streaming server's certificates, as crispd has read them: the files may change, and be wrong, at any time."""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cri.errors import StartupError

if TYPE_CHECKING:
    from cri.streaming.address import StreamAddress


class Certificates:
    """The contents of certificate, key and authority; of none of them without TLS."""

    def __init__(self, contents: Sequence[bytes] = ()) -> None:
        self._contents = tuple(contents)

    @classmethod
    def read(cls, address: StreamAddress) -> Certificates:
        """Read and check the files. Raises StartupError."""
        if address.cert is None or address.key is None:
            return cls()
        paths = [path for path in (address.cert, address.key, address.ca) if path is not None]
        try:
            certificates = cls([path.read_bytes() for path in paths])
            with certificates.files() as files:
                context_of(files)
        except (OSError, ssl.SSLError) as error:
            files_read = ", ".join(map(str, paths))
            raise StartupError(f"read the streaming server's certificates {files_read}: {error}") from error
        return certificates

    def __bool__(self) -> bool:
        return bool(self._contents)

    @contextlib.contextmanager
    def files(self) -> Iterator[list[int]]:
        """Provide descriptors of files in memory that have the contents."""
        with contextlib.ExitStack() as undo:
            found = []
            for content in self._contents:
                file = os.memfd_create("crisp-certificate")
                undo.callback(os.close, file)
                found.append(file)
                view = memoryview(content)
                while view:
                    view = view[os.write(file, view) :]
            yield found


def context_of(files: Sequence[int]) -> ssl.SSLContext | None:
    """Return the TLS context of certificate, key and authority; None without TLS. Raises OSError, ssl.SSLError."""
    if not files:
        return None
    cert, key, *authority = (Path(f"/proc/self/fd/{file}") for file in files)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(cert, key)
    for path in authority:
        context.load_verify_locations(path)
        context.verify_mode = ssl.CERT_REQUIRED
    return context
