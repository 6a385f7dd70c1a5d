"""The client's connection to the daemon's socket."""

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

# An answer may contain two full outputs of ExecSync (16 MiB each); gRPC's default limit is 4 MiB.
_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.default_authority", "localhost"),
    ("grpc.max_reconnect_backoff_ms", 1000),  # a restarted daemon is found again soon
)


class Connection:
    """Calls to one daemon. A context manager, which closes the channel.

    `timeout` in seconds, if given, replaces the limit of every call.
    """

    def __init__(self, address: str, timeout: float | None = None) -> None:
        """Prepare without connecting. Raises UsageError if `address` is not a unix:// address."""
        path = socket_path(address)
        self.address = f"unix://{path}"
        self._path: Path | None = path
        self._timeout = timeout
        self._channel = grpc.insecure_channel(self.address, options=_OPTIONS)
        self.runtime = api_pb2_grpc.RuntimeServiceStub(self._channel)
        self.images = api_pb2_grpc.ImageServiceStub(self._channel)

    @cached_property
    def admin(self) -> admin_pb2_grpc.AdminStub:
        """The stub of crisp's own service, which few commands need."""
        from cri.admin.v1 import admin_pb2_grpc

        return admin_pb2_grpc.AdminStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self._channel.close()

    def read(self, method: Callable[..., Response], request: Any) -> Response:
        """Make a call that only reads. Raises CallFailed, Unreachable."""
        return self._call(method, request, READ_SECONDS)

    def change(self, method: Callable[..., Response], request: Any, limit: float | None = CHANGE_SECONDS) -> Response:
        """Make a call that changes something; `limit` in seconds, None for none. Raises CallFailed, Unreachable."""
        return self._call(method, request, limit)

    def stream(self, method: Callable[..., Iterable[Response]], request: Any) -> Iterator[Response]:
        """Yield the messages of a streaming call, without a time limit. Raises CallFailed, Unreachable."""
        self.probe()
        try:
            yield from method(request, timeout=self._timeout)
        except grpc.RpcError as error:
            raise _failure(error) from None

    def _call(self, method: Callable[..., Response], request: Any, limit: float | None) -> Response:
        self.probe()
        try:
            return method(request, timeout=limit if self._timeout is None else self._timeout)
        except grpc.RpcError as error:
            raise _failure(error) from None

    def probe(self) -> None:
        """Raise Unreachable, with advice, if nothing answers at the socket. Looks once."""
        if self._path is not None:
            probe(self._path, self.address)
            self._path = None


def socket_path(address: str) -> Path:
    """Return the path in a `unix:///path` address, or of a bare absolute path. Raises UsageError for anything else."""
    path = Path(address.removeprefix("unix://").removeprefix("unix:"))
    if not path.is_absolute():
        raise UsageError(f"listen address {address!r}: expected unix:///path/to/the.sock")
    return path


def probe(path: Path, address: str) -> None:
    """Raise Unreachable, with advice, unless a process accepts connections at `path`.

    gRPC would retry, and then only report that it failed to connect.
    """
    with socket.socket(socket.AF_UNIX) as attempt:
        try:
            attempt.connect(str(path))
        except FileNotFoundError:
            reason = "the socket does not exist; is crispd running? systemctl start crispd, or sudo crispd"
        except ConnectionRefusedError:
            reason = "no process answers on the socket; is crispd running? systemctl restart crispd, or sudo crispd"
        except PermissionError:
            reason = "only root may open the socket; run as root: sudo crisp ..."
        except OSError as error:
            reason = error.strerror or str(error)
        else:
            return
    raise Unreachable(f"connect {address}: {reason}")


def _failure(error: grpc.RpcError) -> CallFailed:
    code = error.code()
    details = error.details() or "no details"
    if code is grpc.StatusCode.UNIMPLEMENTED:
        details = f"this runtime does not have the call: {details}"
    elif code is grpc.StatusCode.DEADLINE_EXCEEDED and "eadline" in details:
        details = "no answer in time; --timeout sets how long to wait"
    return CallFailed(details, code.name)
