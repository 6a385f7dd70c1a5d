"""The client's end of the daemon's socket."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import grpc

from cri.client.errors import CallFailed, Unreachable, UsageError
from cri.v1 import api_pb2_grpc

if TYPE_CHECKING:
    from cri.admin.v1 import admin_pb2_grpc

Response = TypeVar("Response")

READ_SECONDS = 10.0  # a list or a status
CHANGE_SECONDS = 120.0  # kubelet's own default for calls that start or stop something
NO_LIMIT = None

# A reply may be two full streams of ExecSync (16 MiB each), above gRPC's default of 4 MiB.
_OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.default_authority", "localhost"))


class Connection:
    """Calls on one daemon. A context manager; the channel closes with it.

    `timeout` (seconds) replaces every call's own limit when given.
    """

    def __init__(self, address: str, timeout: float | None = None) -> None:
        """Nothing is connected before the first call. Raises UsageError if `address` is not a unix:// one."""
        path = socket_path(address)
        self.address = f"unix://{path}"
        self._path: Path | None = path
        self._timeout = timeout
        self._channel = grpc.insecure_channel(self.address, options=_OPTIONS)
        self.runtime = api_pb2_grpc.RuntimeServiceStub(self._channel)
        self.images = api_pb2_grpc.ImageServiceStub(self._channel)

    @cached_property
    def admin(self) -> admin_pb2_grpc.AdminStub:
        """crisp's own service; few commands need it."""
        from cri.admin.v1 import admin_pb2_grpc

        return admin_pb2_grpc.AdminStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self._channel.close()

    def read(self, method: Callable[..., Response], request: Any) -> Response:
        """A call that only asks. Raises CallFailed, Unreachable."""
        return self._call(method, request, READ_SECONDS)

    def change(self, method: Callable[..., Response], request: Any, limit: float | None = CHANGE_SECONDS) -> Response:
        """A call that changes something; `limit` in seconds, None for as long as it takes. As `read`."""
        return self._call(method, request, limit)

    def stream(self, method: Callable[..., Iterable[Response]], request: Any) -> Iterator[Response]:
        """The messages of a streaming call, for as long as it takes. As `read`."""
        self._probe_once()
        try:
            yield from method(request, timeout=self._timeout)
        except grpc.RpcError as error:
            raise _failure(error) from None

    def _call(self, method: Callable[..., Response], request: Any, limit: float | None) -> Response:
        self._probe_once()
        try:
            return method(request, timeout=limit if self._timeout is None else self._timeout)
        except grpc.RpcError as error:
            raise _failure(error) from None

    def _probe_once(self) -> None:
        if self._path is not None:
            probe(self._path, self.address)
            self._path = None


def socket_path(address: str) -> Path:
    """The path in a `unix:///path` address; a bare absolute path will do. Raises UsageError for anything else."""
    path = Path(address.removeprefix("unix://").removeprefix("unix:"))
    if not path.is_absolute():
        raise UsageError(f"listen address {address!r}: want unix:///path/to/the.sock")
    return path


def probe(path: Path, address: str) -> None:
    """Raise Unreachable, with what to do about it, unless somebody accepts connections at `path`.

    gRPC would try again and again, and then say only that it failed to connect.
    """
    with socket.socket(socket.AF_UNIX) as attempt:
        try:
            attempt.connect(str(path))
        except FileNotFoundError:
            reason = "is crispd up? the socket does not exist; systemctl start crispd, or sudo crispd"
        except ConnectionRefusedError:
            reason = "is crispd up? nobody answers on the socket; systemctl restart crispd, or sudo crispd"
        except PermissionError:
            reason = "may you open the socket? it belongs to root; run as root (sudo crisp ...)"
        except OSError as error:
            reason = error.strerror or str(error)
        else:
            return
    raise Unreachable(f"connect {address}: {reason}")


def _failure(error: grpc.RpcError) -> CallFailed:
    code = error.code()
    details = error.details() or "no details"
    if code is grpc.StatusCode.UNIMPLEMENTED:
        details = f"this runtime does not offer the call: {details}"
    elif code is grpc.StatusCode.DEADLINE_EXCEEDED and "eadline" in details:
        details = "no answer in time (--timeout sets how long to wait)"
    return CallFailed(details, code.name)
