"""A registry inside the test's own process that does what real ones do on bad days: resets, truncations, 5xx, slow
bodies, redirects, tokens. It notes every request it saw."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

from tests.images import BuiltImage, digest

Fault = Callable[[web.Request, bytes], Awaitable[web.StreamResponse | None]]


@dataclass
class Seen:
    path: str
    authorization: str
    range: str
    method: str = "GET"


@dataclass
class FaultyRegistry:
    """Serves the images of `images` by "repository:tag"; `faults[path]` are used up, one a request; `always` stay."""

    images: dict[str, BuiltImage] = field(default_factory=dict)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    always: dict[str, Fault] = field(default_factory=dict)
    login: str = ""  # "user:password" that the token service or, with `basic`, the registry itself wants
    basic: bool = False
    open_tokens: bool = False  # whether the token service gives them to those who do not say who they are
    challenge: str = ""  # instead of one's own, for the Bearer token `token`
    token: str = ""
    blobs_at: str = ""  # origin that blob requests are redirected to
    everything_at: str = ""  # the same for all requests that are let in
    seen: list[Seen] = field(default_factory=list)
    host: str = ""

    def blob_path(self, repository: str, digest: str) -> str:
        return f"/v2/{repository}/blobs/{digest}"

    def count(self) -> Counter[str]:
        return Counter(request.path for request in self.seen)

    @asynccontextmanager
    async def running(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[FaultyRegistry]:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(application, shutdown_timeout=0.1, max_line_size=1 << 20, max_field_size=1 << 20)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
            await site.start()
            self.host = f"127.0.0.1:{runner.addresses[0][1]}"
            yield self
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        authorization = request.headers.get("Authorization", "")
        self.seen.append(Seen(request.path, authorization, request.headers.get("Range", ""), request.method))
        if request.path == "/token":
            return self._token(authorization, request.query.get("scope", ""))
        if (refused := self._refusal(authorization)) is not None:
            return refused
        if self.everything_at:
            raise web.HTTPTemporaryRedirect(f"{self.everything_at}{request.path}")
        content, media_type = self._content(request.path)
        if content is None:
            return web.json_response({"errors": [{"code": "MANIFEST_UNKNOWN", "message": "unknown"}]}, status=404)
        if self.blobs_at and "/blobs/" in request.path:
            raise web.HTTPTemporaryRedirect(f"{self.blobs_at}{request.path}?signature=secret")
        if (always := self.always.get(request.path)) and (response := await always(request, content)) is not None:
            return response
        faults = self.faults.get(request.path)
        if faults and (response := await faults.pop(0)(request, content)) is not None:
            return response
        return _ranged(request, content, media_type)

    def _token(self, authorization: str, scope: str) -> web.Response:
        if self.open_tokens and authorization:
            return web.Response(status=403)
        if (
            self.login
            and not self.open_tokens
            and authorization != "Basic " + base64.b64encode(self.login.encode()).decode()
        ):
            return web.Response(status=401)
        return web.json_response({"token": f"t-{scope}", "expires_in": 300})

    def _refusal(self, authorization: str) -> web.Response | None:
        if self.challenge and authorization != f"Bearer {self.token}":
            return web.Response(status=401, headers={"WWW-Authenticate": self.challenge})
        if not self.login or self.challenge:
            return None
        if self.basic:
            wanted = "Basic " + base64.b64encode(self.login.encode()).decode()
            challenge = 'Basic realm="here"'
        else:
            wanted = "Bearer t-"
            challenge = f'Bearer realm="http://{self.host}/token",service="here"'
        if authorization.startswith(wanted):
            return None
        return web.Response(status=401, headers={"WWW-Authenticate": challenge})

    def _content(self, path: str) -> tuple[bytes | None, str]:
        for name, image in self.images.items():
            repository, _, tag = name.rpartition(":")
            for part in (image, *image.children):
                if path in (f"/v2/{repository}/manifests/{part.digest}",):
                    return part.manifest, part.media_type
                for key, blob in part.blobs.items():
                    if path == self.blob_path(repository, key):
                        return blob, "application/octet-stream"
            if path == f"/v2/{repository}/manifests/{tag}":
                return image.manifest, image.media_type
        return None, ""


def _ranged(request: web.Request, content: bytes, media_type: str) -> web.Response:
    start = request.http_range.start
    if start is None:
        headers = {"Content-Type": media_type, "Docker-Content-Digest": digest(content)}
        return web.Response(body=content, headers=headers)
    end = min(request.http_range.stop or len(content), len(content))
    headers = {"Content-Type": media_type, "Content-Range": f"bytes {start}-{end - 1}/{len(content)}"}
    return web.Response(status=206, body=content[start:end], headers=headers)


# --- faults


async def reset(request: web.Request, content: bytes) -> web.StreamResponse | None:
    """The connection ends before an answer."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def half(request: web.Request, content: bytes) -> web.StreamResponse | None:
    """The connection ends in the middle of the body."""
    start = request.http_range.start or 0
    response = web.StreamResponse(status=206 if start else 200)
    response.content_length = len(content) - start
    if start:
        response.headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
    await response.prepare(request)
    await response.write(content[start : start + (len(content) - start) // 2])
    await asyncio.sleep(0.05)
    assert request.transport is not None
    request.transport.close()
    return response


async def cut_range(request: web.Request, content: bytes) -> web.StreamResponse | None:
    """The connection ends in the middle of a range."""
    start, end = request.http_range.start or 0, request.http_range.stop or len(content)
    response = web.StreamResponse(status=206)
    response.content_length = end - start
    response.headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
    await response.prepare(request)
    await response.write(content[start : (start + end) // 2])
    assert request.transport is not None
    request.transport.close()
    return response


async def to_the_end(request: web.Request, content: bytes) -> web.StreamResponse | None:
    """The end of a range is ignored."""
    start = request.http_range.start or 0
    headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
    return web.Response(status=206, body=content[start:], headers=headers)


async def whole_again(request: web.Request, content: bytes) -> web.StreamResponse | None:
    """The range is ignored."""
    return web.Response(body=content)


async def quietly_cut(request: web.Request, content: bytes) -> web.StreamResponse | None:
    """Half of what is left, in chunks, and an orderly end."""
    start = request.http_range.start or 0
    response = web.StreamResponse(status=206 if start else 200)
    if start:
        response.headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
    response.enable_chunked_encoding()
    await response.prepare(request)
    await response.write(content[start : start + (len(content) - start + 1) // 2])
    await response.write_eof()
    return response


async def longer(request: web.Request, content: bytes) -> web.StreamResponse | None:
    """More than was promised."""
    return web.Response(body=content + b"more")


async def endless_wait(request: web.Request, content: bytes) -> web.StreamResponse | None:
    """Half the body, then silence."""
    response = web.StreamResponse()
    response.content_length = len(content)
    await response.prepare(request)
    await response.write(content[: len(content) // 2])
    await asyncio.sleep(3600)
    return response


async def drip(request: web.Request, content: bytes) -> web.StreamResponse | None:
    """A few bytes at a time, never enough and never silent."""
    response = web.StreamResponse()
    response.content_length = len(content)
    await response.prepare(request)
    for at in range(0, len(content), 100):
        await response.write(content[at : at + 100])
        await asyncio.sleep(0.1)
    return response


def status(code: int, headers: Mapping[str, str] | None = None) -> Fault:
    """An answer of this status."""

    async def fault(request: web.Request, content: bytes) -> web.StreamResponse | None:
        return web.Response(status=code, headers=headers)

    return fault


def instead(content: bytes, media_type: str = "text/html") -> Fault:
    """Something else, with status 200."""

    async def fault(request: web.Request, _: bytes) -> web.StreamResponse | None:
        return web.Response(body=content, headers={"Content-Type": media_type})

    return fault


def moved(where: str, code: int = 307) -> Fault:
    """A redirect."""
    return status(code, {"Location": where})
