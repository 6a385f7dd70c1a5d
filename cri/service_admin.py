"""The service crisp.v1.Admin: importing archives, and pulling with progress."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import grpc.aio

from cri.admin.v1 import admin_pb2, admin_pb2_grpc
from cri.codes import code_of
from image.model import Credentials, PullProgress
from pods.errors import InvalidArgument

if TYPE_CHECKING:
    from pods.node import Node

_Context = grpc.aio.ServicerContext[Any, Any]

_log = logging.getLogger(__name__)


def add_to(server: grpc.aio.Server, node: Node) -> None:
    """Serve crisp.v1.Admin on `server`, over the image store of `node`."""
    admin_pb2_grpc.add_AdminServicer_to_server(Admin(node), server)


class Admin(admin_pb2_grpc.AdminServicer):
    """What cri/admin/v1/admin.proto describes. Errors have the codes that CRI's calls answer them with."""

    def __init__(self, node: Node) -> None:
        self._images = node.images

    async def ImportImage(
        self, request: admin_pb2.ImportImageRequest, context: _Context
    ) -> admin_pb2.ImportImageResponse:
        try:
            path = Path(request.path)
            if not path.is_absolute():
                raise InvalidArgument(f"import image: path {request.path!r} is not absolute")
            images = await self._images.import_archive(path, request.name or None)
        except Exception as error:
            await _refuse(context, "ImportImage", error)
        return admin_pb2.ImportImageResponse(
            images=[
                admin_pb2.ImportedImage(id=image.id, repo_tags=image.repo_tags, size=image.size) for image in images
            ]
        )

    async def PullImage(
        self, request: admin_pb2.PullImageRequest, context: _Context
    ) -> AsyncIterator[admin_pb2.PullImageResponse]:
        # Only the latest of each layer waits to be sent: a slow reader never holds up the pull, nor fills memory.
        latest: dict[str, PullProgress] = {}
        news = asyncio.Event()

        def note(progress: PullProgress) -> None:
            latest[progress.layer] = progress
            news.set()

        credentials = None
        if request.username or request.password:
            credentials = Credentials(username=request.username, password=request.password)
        pull = asyncio.create_task(self._images.pull(request.reference, credentials, note))
        pull.add_done_callback(lambda _: news.set())
        try:
            while not pull.done() or latest:
                await news.wait()
                news.clear()
                while latest:
                    yield _progress(latest.pop(next(iter(latest))))
            yield admin_pb2.PullImageResponse(image_id=(await pull).id)
        except Exception as error:
            await _refuse(context, "PullImage", error)
        finally:
            pull.cancel()


def _progress(progress: PullProgress) -> admin_pb2.PullImageResponse:
    return admin_pb2.PullImageResponse(
        progress=admin_pb2.LayerProgress(
            layer=progress.layer, offset=progress.offset, total=progress.total, phase=progress.phase.value
        )
    )


async def _refuse(context: _Context, method: str, error: Exception) -> NoReturn:
    if isinstance(error, grpc.aio.AbortError):
        raise error
    code = code_of(error)
    if code is None:
        _log.exception("%s failed", method)
    else:
        _log.info("%s refused: %s", method, error)
    await context.abort(code or grpc.StatusCode.INTERNAL, str(error) or type(error).__name__)
    raise AssertionError("abort raises")
