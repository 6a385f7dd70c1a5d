"""A plugin's connection: ttrpc calls in both directions over a multiplexed unix socket."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message

from cri.nri.errors import CallRefused, NriError, PluginGone, PluginSilent, WireError
from cri.nri.v1alpha1 import ttrpc_pb2
from cri.nri.wire import FrameReader, Kind, MessageReader, encode_frames, encode_message
from cri.nri.wire import Message as Envelope

PLUGIN_CHANNEL: Final = 1  # calls that the plugin answers
RUNTIME_CHANNEL: Final = 2  # calls that the runtime answers
_READ_BYTES: Final = 64 << 10
_CALLS: Final = 64  # of a peer, in flight at once

Serve = Callable[[str, str, bytes], Awaitable[Message]]  # service, method, payload; raises CallRefused
_Answer = TypeVar("_Answer", bound=Message)


class TtrpcConnection:
    """Either end of a connection. Calls go out on one channel; calls on the other channel are answered by `serve`."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, serve: Serve, *, calls_on: int, serves_on: int
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._serve = serve
        self._calls_on = calls_on
        self._serves_on = serves_on
        self._streams = itertools.count(1, 2)
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._serving: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Read until the peer leaves or breaks the protocol (WireError). Then every waiting call raises PluginGone."""
        frames = FrameReader()
        messages = {channel: MessageReader() for channel in (self._calls_on, self._serves_on)}
        try:
            while data := await self._reader.read(_READ_BYTES):
                for channel, payload in frames.feed(data):
                    if channel not in messages:
                        raise WireError(f"read frame: channel {channel} is unknown")
                    for message in messages[channel].feed(payload):
                        self._received(channel, message)
        except ConnectionError:
            pass
        finally:
            self.close()

    def close(self) -> bool:
        """Close the connection. Returns whether it was open."""
        was_open = not self._writer.is_closing()
        self._writer.close()
        for task in self._serving:
            task.cancel()
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(PluginGone("the connection ended"))
                waiting.exception()  # mark it as retrieved: the waiter may be gone as well
        return was_open

    async def call(
        self, service: str, method: str, request: Message, answer: type[_Answer], timeout: float
    ) -> _Answer:
        """Make a call; `timeout` is in seconds.

        Raises CallRefused, PluginSilent after the timeout, and PluginGone if no answer can come.
        """
        stream = next(self._streams)
        envelope = ttrpc_pb2.Request(
            service=service, method=method, payload=request.SerializeToString(), timeout_nano=int(timeout * 1e9)
        )
        if self._writer.is_closing():
            raise PluginGone(f"{method}: the connection ended")
        waiting = self._waiting[stream] = asyncio.get_running_loop().create_future()
        try:
            self._send(self._calls_on, Envelope(stream, Kind.REQUEST, envelope.SerializeToString()))
            payload = await asyncio.wait_for(waiting, timeout)
            return answer.FromString(payload)
        except TimeoutError as error:
            raise PluginSilent(f"{method}: no answer in {timeout:g} s") from error
        except DecodeError as error:
            raise PluginGone(f"{method}: the answer is not a {answer.DESCRIPTOR.name}: {error}") from error
        finally:
            del self._waiting[stream]

    def _send(self, channel: int, message: Envelope) -> None:
        self._writer.write(encode_frames(channel, encode_message(message)))

    def _received(self, channel: int, message: Envelope) -> None:
        if channel == self._calls_on and message.kind is Kind.RESPONSE:
            self._answered(message)
        elif channel == self._serves_on and message.kind is Kind.REQUEST:
            if len(self._serving) >= _CALLS:
                raise WireError(f"read ttrpc message: more than {_CALLS} calls at once")
            task = asyncio.get_running_loop().create_task(self._answer(message))
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)
        else:
            raise WireError(f"read ttrpc message: {message.kind.name} does not belong on channel {channel}")

    def _answered(self, message: Envelope) -> None:
        waiting = self._waiting.get(message.stream)
        if waiting is None or waiting.done():
            return  # too late
        try:
            response = ttrpc_pb2.Response.FromString(message.payload)
        except DecodeError as error:
            raise WireError(f"read ttrpc response: {error}") from error
        if response.status.code:
            waiting.set_exception(CallRefused(response.status.code, response.status.message))
        else:
            waiting.set_result(response.payload)

    async def _answer(self, message: Envelope) -> None:
        response = ttrpc_pb2.Response()
        try:
            request = ttrpc_pb2.Request.FromString(message.payload)
            served = await self._serve(request.service, request.method, request.payload)
            response.payload = served.SerializeToString()
        except CallRefused as error:
            response.status.code, response.status.message = error.code, str(error)
        except (DecodeError, NriError) as error:
            response.status.code, response.status.message = 3, str(error)  # INVALID_ARGUMENT
        if not self._writer.is_closing():
            self._send(self._serves_on, Envelope(message.stream, Kind.RESPONSE, response.SerializeToString()))
