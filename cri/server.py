"""The gRPC server of crispd: binds the calls that exist, refuses the others, maps errors, logs.

Each call goes through one plain coroutine around the service's own. gRPC's interceptors would do the same at a higher
price on every call.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import grpc.aio
from google.protobuf import message_factory
from google.protobuf.message import DecodeError
from grpc import StatusCode

from cri.admin.v1 import admin_pb2
from cri.codes import code_of
from cri.deadline import seconds_left, takes_deadline
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
    from cri.observers import CallMeter, Meter, Tracer
    from cri.services.node import Node
    from cri.streaming.server import StreamingServer

MAX_REQUEST_BYTES = 16 << 20  # kubelet's limit for what it sends and receives
_MAX_DETAILS = 2048  # bytes of an error's text: it travels in a header, three for one, and clients take 8 KiB of those
_OPTIONS = (("grpc.max_receive_message_length", MAX_REQUEST_BYTES), ("grpc.so_reuseport", 0))

_log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext
Unary = Callable[[Any], Awaitable[Any]]
Stream = Callable[[Any], AsyncIterator[Any]]


def create_server(
    node: Node,
    streaming: StreamingServer,
    configuration: Mapping[str, object],
    meter: Meter | None = None,
    tracer: Tracer | None = None,
) -> grpc.aio.Server:
    """A server of CRI's two services and of the operator's own over `node`, not bound to an address yet.

    `configuration` is what a verbose Status shows; those who look on at calls see CRI's.
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
            _handlers(cri["RuntimeService"], runtime, meter, tracer),
            _handlers(cri["ImageService"], [ImageCalls(node)], meter, tracer),
            _handlers(admin["Admin"], [AdminCalls(node)], None, None),
        ]
    )
    return server


def _handlers(
    service: Any, groups: Iterable[object], meter: Meter | None, tracer: Tracer | None
) -> grpc.GenericRpcHandler[Any, Any]:
    """gRPC's handlers of one service: each method is bound to the group that has it."""
    bound = {}
    for method in service.methods:
        call = next((getattr(group, method.name) for group in groups if hasattr(group, method.name)), None)
        bound[method.name] = _handler(method, call, meter, tracer)
    return grpc.method_handlers_generic_handler(service.full_name, bound)


def _handler(method: Any, call: Any, meter: Meter | None, tracer: Tracer | None) -> grpc.RpcMethodHandler[Any, Any]:
    request, response = (message_factory.GetMessageClass(kind) for kind in (method.input_type, method.output_type))
    decode = _decoding(request.FromString)
    counted = meter.of_call(method.name, timed=not method.server_streaming) if meter else None
    if method.server_streaming:
        stream = _streaming(method.name, counted, call or _missing_stream(method.name))
        return grpc.unary_stream_rpc_method_handler(stream, decode, response.SerializeToString)
    answer = _answering(method.name, counted, call or _missing(method.name))
    if tracer is not None:
        answer = tracer.of_call(method.containing_service.full_name, method.name, answer)
    return grpc.unary_unary_rpc_method_handler(answer, decode, response.SerializeToString)


def _decoding(decode: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """`decode`, but what is no such message becomes the error: gRPC would answer UNKNOWN, and log a traceback."""

    def decoded(raw: bytes) -> Any:
        try:
            return decode(raw)
        except DecodeError as error:
            return InvalidArgument(str(error))

    return decoded


class _Missing(Unimplemented):
    """The call is in CRI v1 and not in this server. kubelet asks for some again and again."""


def _missing(name: str) -> Unary:
    async def missing(_: Any) -> NoReturn:
        raise _Missing(f"{name}: not implemented by crisp yet")

    return missing


def _missing_stream(name: str) -> Stream:
    async def missing(_: Any) -> AsyncIterator[Any]:
        raise _Missing(f"{name}: not implemented by crisp yet")
        yield

    return missing


def _answering(name: str, meter: CallMeter | None, call: Any) -> Callable[[Any, Context[Any, Any]], Awaitable[Any]]:
    if takes_deadline(call):

        async def timely(request: Any, context: Context[Any, Any]) -> Any:
            async with _Account(name, meter, request, context):
                return await call(request, seconds_left(context))

        return timely

    async def answer(request: Any, context: Context[Any, Any]) -> Any:
        async with _Account(name, meter, request, context):
            return await call(request)

    return answer


def _streaming(
    name: str, meter: CallMeter | None, call: Stream
) -> Callable[[Any, Context[Any, Any]], AsyncIterator[Any]]:
    async def answer(request: Any, context: Context[Any, Any]) -> AsyncIterator[Any]:
        async with _Account(name, meter, request, context):
            responses = call(request)
            # A client that wants to miss nothing waits for this before it looks at how things are.
            await context.send_initial_metadata(())
            async for response in responses:
                yield response

    return answer


class _Account:
    """Around one call: refuses a request that could not be read, maps what the call raises, logs how it ended."""

    __slots__ = ("_context", "_meter", "_name", "_request", "_started")

    def __init__(self, name: str, meter: CallMeter | None, request: Any, context: Context[Any, Any]) -> None:
        self._name = name
        self._meter = meter
        self._request = request
        self._context = context
        self._started = time.perf_counter()

    async def __aenter__(self) -> None:
        if isinstance(self._request, InvalidArgument):
            self._count(self._request)
            await self._refuse(self._request)

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._count(error)
        if isinstance(error, asyncio.CancelledError):
            _log.debug("call cancelled by its client", extra=self._fields())
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

    def _fields(self) -> dict[str, str]:
        return {"call": self._name, "ms": _since(self._started), **subject(self._request)}

    async def _refuse(self, error: Exception) -> NoReturn:
        code = code_of(error)
        text = _fitting(str(error) or type(error).__name__)
        fields = self._fields() | {"code": (code or StatusCode.INTERNAL).name, "error": text}
        if code is None:
            _log.error("call failed unexpectedly", extra=fields, exc_info=error)
            text = f"{self._name}: {type(error).__name__}: {text}"
        else:
            _log.log(logging.DEBUG if isinstance(error, _Missing) else logging.INFO, "call refused", extra=fields)
        await self._context.abort(code or StatusCode.INTERNAL, text)


def _fitting(text: str) -> str:
    """An error's text or, of one that is too long, its beginning and end: what was tried, and why it failed."""
    raw = text.encode()
    if len(raw) <= _MAX_DETAILS:
        return text
    half = _MAX_DETAILS // 2 - len(" ... ")
    return " ... ".join(part.decode(errors="ignore") for part in (raw[:half], raw[-half:]))


def _since(started: float) -> str:
    return f"{(time.perf_counter() - started) * 1e3:.1f}"
