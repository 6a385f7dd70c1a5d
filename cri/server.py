"""The gRPC server of crispd: binds the implemented calls, refuses the others, maps errors to codes, logs.

Each call runs in one coroutine around the service's method. gRPC's interceptors would do the same, but cost more per
call.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import grpc.aio
from google.protobuf import message_factory
from google.protobuf.message import DecodeError
from grpc import StatusCode

from cri.admin.v1 import admin_pb2
from cri.codes import code_of, text_of
from cri.deadline import seconds_left, takes_deadline
from cri.observers import RECORDED, RECORDED_FAILURES
from cri.services.admin import AdminCalls
from cri.services.checkpoints import CheckpointCalls
from cri.services.containers import ContainerCalls
from cri.services.events import EventCalls
from cri.services.execution import ExecutionCalls
from cri.services.images import ImageCalls
from cri.services.metrics import MetricsCalls
from cri.services.sandboxes import SandboxCalls
from cri.services.stats import StatsCalls
from cri.services.status import StatusCalls
from cri.services.streaming import StreamingCalls
from cri.subject import subject
from cri.v1 import api_pb2
from pods.errors import InvalidArgument, Unimplemented

if TYPE_CHECKING:
    from cri.observers import CallMeter, CallRecorder, Meter, Tracer
    from cri.services.node import Node
    from cri.streaming.server import StreamingServer

MAX_REQUEST_BYTES = 16 << 20  # kubelet's limit for what it sends and receives
_MAX_DETAILS = 2048  # bytes of an error's text: percent-encoded it may triple, and clients accept 8 KiB of headers
_OPTIONS = (("grpc.max_receive_message_length", MAX_REQUEST_BYTES), ("grpc.so_reuseport", 0))

_log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext
Unary = Callable[[Any], Awaitable[Any]]
Stream = Callable[[Any], AsyncIterator[Any]]
Accounts = Callable[[Any, Context[Any, Any]], "_Account"]


def create_server(
    node: Node,
    streaming: StreamingServer,
    configuration: Mapping[str, object],
    meter: Meter | None = None,
    tracer: Tracer | None = None,
    recorder: CallRecorder | None = None,
) -> grpc.aio.Server:
    """Make the server of CRI's two services and of the operator's own. It is not bound to an address yet.

    A verbose Status shows `configuration`. `meter` and `tracer` observe CRI's calls, `recorder` all calls.
    """
    runtime = (
        SandboxCalls(node),
        ContainerCalls(node),
        ExecutionCalls(node),
        CheckpointCalls(node),
        StreamingCalls(node, streaming),
        StatsCalls(node),
        EventCalls(node),
        MetricsCalls(node),
        StatusCalls(node, configuration),
    )
    cri = api_pb2.DESCRIPTOR.services_by_name
    admin = admin_pb2.DESCRIPTOR.services_by_name
    server = grpc.aio.server(options=_OPTIONS)
    server.add_generic_rpc_handlers(
        [
            _handlers(cri["RuntimeService"], runtime, Observers(meter, tracer, recorder)),
            _handlers(cri["ImageService"], [ImageCalls(node)], Observers(meter, tracer, recorder)),
            _handlers(admin["Admin"], [AdminCalls(node)], Observers(None, None, recorder)),
        ]
    )
    return server


def _handlers(service: Any, groups: Iterable[object], observers: Observers) -> grpc.GenericRpcHandler[Any, Any]:
    """Make gRPC's handlers for a service. Each method is taken from the group that has it."""
    bound = {}
    for method in service.methods:
        call = next((getattr(group, method.name) for group in groups if hasattr(group, method.name)), None)
        bound[method.name] = _handler(method, call, observers)
    return grpc.method_handlers_generic_handler(service.full_name, bound)


def _handler(method: Any, call: Any, observers: Observers) -> grpc.RpcMethodHandler[Any, Any]:
    request, response = (message_factory.GetMessageClass(kind) for kind in (method.input_type, method.output_type))
    decode = _decoding(request.FromString)
    account = observers.account(method.name, timed=not method.server_streaming)
    if method.server_streaming:
        stream = _streaming(account, call or _missing_stream(method.name))
        return grpc.unary_stream_rpc_method_handler(stream, decode, response.SerializeToString)
    answer = _answering(account, call or _missing(method.name))
    if observers.tracer is not None:
        answer = observers.tracer.of_call(method.containing_service.full_name, method.name, answer)
    return grpc.unary_unary_rpc_method_handler(answer, decode, response.SerializeToString)


def _decoding(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Wrap `decode` to return the error for an invalid message: gRPC would answer UNKNOWN and log a traceback."""

    def decoded(raw: bytes) -> Any:
        try:
            return decode(raw)
        except DecodeError as error:
            return InvalidArgument(str(error))

    return decoded


class _Missing(Unimplemented):
    """A call of CRI v1 that this server does not have. kubelet repeats some of them."""


def _missing(name: str) -> Unary:
    async def missing(_: Any) -> NoReturn:
        raise _Missing(f"{name}: not implemented by crisp yet")

    return missing


def _missing_stream(name: str) -> Stream:
    async def missing(_: Any) -> AsyncIterator[Any]:
        raise _Missing(f"{name}: not implemented by crisp yet")
        yield

    return missing


def _answering(account: Accounts, call: Any) -> Callable[[Any, Context[Any, Any]], Awaitable[Any]]:
    if takes_deadline(call):

        async def timely(request: Any, context: Context[Any, Any]) -> Any:
            async with account(request, context):
                return await call(request, seconds_left(context))

        return timely

    async def answer(request: Any, context: Context[Any, Any]) -> Any:
        async with account(request, context):
            return await call(request)

    return answer


def _streaming(account: Accounts, call: Stream) -> Callable[[Any, Context[Any, Any]], AsyncIterator[Any]]:
    async def answer(request: Any, context: Context[Any, Any]) -> AsyncIterator[Any]:
        async with account(request, context):
            responses = call(request)
            # A client that must not miss anything waits for this before it reads the present state.
            await context.send_initial_metadata(())
            async for response in responses:
                yield response

    return answer


@dataclass(frozen=True, slots=True)
class Observers:
    """The observers of a service's calls."""

    meter: Meter | None
    tracer: Tracer | None
    recorder: CallRecorder | None

    def account(self, name: str, *, timed: bool) -> Accounts:
        """Return what wraps each call of this name."""
        meter = self.meter.of_call(name, timed=timed) if self.meter else None
        recorder = self.recorder if name in RECORDED or name in RECORDED_FAILURES else None
        return partial(_Account, name, meter, recorder)


class _Account:
    """Wraps one call: refuses an unreadable request, maps errors to codes, logs and records the end of the call."""

    __slots__ = ("_context", "_meter", "_name", "_recorder", "_request", "_started")

    def __init__(
        self,
        name: str,
        meter: CallMeter | None,
        recorder: CallRecorder | None,
        request: Any,
        context: Context[Any, Any],
    ) -> None:
        self._name = name
        self._meter = meter
        self._recorder = recorder
        self._request = request
        self._context = context
        self._started = time.perf_counter()

    async def __aenter__(self) -> None:
        if isinstance(self._request, InvalidArgument):
            self._count(self._request)
            await self._refuse(self._request)

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._count(error)
        if self._recorder is not None:
            self._record(self._recorder, error)
        if isinstance(error, asyncio.CancelledError):
            _log.debug("call cancelled by the client", extra=self._fields())
        elif isinstance(error, Exception):
            await self._refuse(error)
        elif error is None and _log.isEnabledFor(logging.DEBUG):
            _log.debug("call answered", extra=self._fields())

    def _count(self, error: BaseException | None) -> None:
        if self._meter is None:
            return
        code = ""
        if isinstance(error, asyncio.CancelledError):
            code = StatusCode.CANCELLED.name
        elif isinstance(error, Exception):
            code = (code_of(error) or StatusCode.INTERNAL).name
        self._meter.ended(time.perf_counter() - self._started, code)

    def _record(self, recorder: CallRecorder, error: BaseException | None) -> None:
        seconds = time.perf_counter() - self._started
        if error is None and self._name in RECORDED:
            recorder.answered(self._name, subject(self._request), seconds)
        elif isinstance(error, asyncio.CancelledError):
            recorder.left(self._name, subject(self._request), seconds)
        elif isinstance(error, Exception):
            code = (code_of(error) or StatusCode.INTERNAL).name
            recorder.refused(self._name, subject(self._request), code, text_of(error), error, seconds)

    def _fields(self) -> dict[str, str]:
        return {"call": self._name, "ms": _since(self._started), **subject(self._request)}

    async def _refuse(self, error: Exception) -> NoReturn:
        code = code_of(error)
        text = _fitting(text_of(error))
        fields = self._fields() | {"code": (code or StatusCode.INTERNAL).name, "error": text}
        if code is None:
            _log.error("call failed by a bug in crisp", extra=fields, exc_info=error)
            text = f"{self._name}: {type(error).__name__}: {text}"
        else:
            _log.log(logging.DEBUG if isinstance(error, _Missing) else logging.INFO, "call refused", extra=fields)
        await self._context.abort(code or StatusCode.INTERNAL, text)


def _fitting(text: str) -> str:
    """Return an error's text; of a long one only the beginning (what was tried) and the end (why it failed)."""
    raw = text.encode()
    if len(raw) <= _MAX_DETAILS:
        return text
    half = _MAX_DETAILS // 2 - len(" ... ")
    return " ... ".join(part.decode(errors="ignore") for part in (raw[:half], raw[-half:]))


def _since(started: float) -> str:
    return f"{(time.perf_counter() - started) * 1e3:.1f}"
