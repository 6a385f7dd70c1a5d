"""crisp's own calls for operators: ImportImage, ExportImage, TagImage, VerifyImages, Why, Check, PullImage with
progress."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

from cri.admin.v1 import admin_pb2
from cri.convert import fields
from image.model import Credentials, Image, PullProgress

if TYPE_CHECKING:
    from cri.services.node import Node
    from pods.diagnosis.bulletin import Bulletin
    from pods.diagnosis.inquiry import Diagnosis
    from pods.state.events import Listener


class AdminCalls:
    """The calls of the service Admin."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._images = node.images

    async def ImportImage(self, request: admin_pb2.ImportImageRequest) -> admin_pb2.ImportImageResponse:
        """Import an archive from this machine's disk into the store."""
        path = fields.absolute("path", request.path)
        images = await self._images.import_archive(Path(path), fields.text("name", request.name) or None)
        return admin_pb2.ImportImageResponse(
            images=[
                admin_pb2.ImportedImage(id=image.id, repo_tags=image.repo_tags, size=image.size) for image in images
            ]
        )

    async def ExportImage(self, request: admin_pb2.ExportImageRequest) -> admin_pb2.ExportImageResponse:
        """Export an image to this machine's disk."""
        name = fields.required("image", request.image)
        path = Path(fields.absolute("path", request.path))
        digest = await self._images.export(name, path, fields.required("format", request.format))
        return admin_pb2.ExportImageResponse(digest=digest)

    async def VerifyImages(self, request: admin_pb2.VerifyImagesRequest) -> admin_pb2.VerifyImagesResponse:
        """Check the store for damage; with `repair`, repair it."""
        look = self._images.repair if request.repair else self._images.verify
        verdicts = await look(fields.text("image", request.image))
        return admin_pb2.VerifyImagesResponse(
            images=[
                admin_pb2.ImageVerdict(id=verdict.id, names=verdict.names, problems=verdict.problems)
                for verdict in verdicts
            ]
        )

    async def TagImage(self, request: admin_pb2.TagImageRequest) -> admin_pb2.TagImageResponse:
        """Give an image another name."""
        name = fields.required("image", request.image)
        image = await self._images.tag(name, fields.required("name", request.name))
        return admin_pb2.TagImageResponse(id=image.id)

    async def Check(self, request: admin_pb2.CheckRequest) -> admin_pb2.CheckResponse:
        """Find where records and machine disagree; with `repair`, mend it."""
        return admin_pb2.CheckResponse(
            disagreements=[
                admin_pb2.Disagreement(
                    kind=one.kind, object=one.object, text=one.text, repaired=one.repaired, advice=one.advice
                )
                for one in await self._node.check(repair=request.repair)
            ]
        )

    async def Why(self, request: admin_pb2.WhyRequest) -> admin_pb2.WhyResponse:
        """Tell what is wrong with a pod, a container or an image, and what happened to it."""
        return _why(self._node.why(fields.required("query", request.query)))

    async def WhyAll(self, request: admin_pb2.WhyAllRequest) -> admin_pb2.WhyAllResponse:
        """Tell all that is wrong on the node, or everything that is recorded."""
        found = await self._node.survey(everything=request.everything)
        return admin_pb2.WhyAllResponse(answers=map(_why, found))

    def GetCauses(self, request: admin_pb2.GetCausesRequest) -> AsyncIterator[admin_pb2.CauseResponse]:
        """Stream the cause of each trouble from now on. A client that reads too slowly gets RESOURCE_EXHAUSTED."""
        # Listen here: a generator's body would not run before gRPC asks for the first message.
        return _causes(self._node.bulletins.listen())

    async def GetDenials(self, request: admin_pb2.GetDenialsRequest) -> admin_pb2.GetDenialsResponse:
        """Tell which system calls seccomp profiles denied, by container."""
        denials = self._node.denials
        unreadable, lost = denials.unreadable, 0
        if not unreadable:
            try:
                lost = denials.lost
            except OSError as error:
                unreadable = f"ask audit for its status: {error.strerror}"
        return admin_pb2.GetDenialsResponse(
            denials=[
                admin_pb2.Denials(
                    container_id=one.container_id,
                    name=one.name,
                    calls=[
                        admin_pb2.DeniedCall(name=call.name, action=call.action, count=count)
                        for call, count in one.calls.counts.most_common()
                    ],
                    more=one.calls.more,
                )
                for one in self._node.denied(fields.text("container_id", request.container_id))
            ],
            unreadable=unreadable,
            reported=self._node.settings.seccomp_denials,
            lost=lost,
        )

    async def GetHoldings(self, request: admin_pb2.GetHoldingsRequest) -> admin_pb2.GetHoldingsResponse:
        """Tell what holds each byte of the disk."""
        return admin_pb2.GetHoldingsResponse(
            holdings=[
                admin_pb2.Holding(
                    kind=one.kind,
                    name=one.name,
                    id=one.id,
                    bytes=one.bytes,
                    shared=one.shared,
                    frees=one.frees,
                    users=one.users,
                )
                for one in await self._node.holdings()
            ]
        )

    async def PullImage(self, request: admin_pb2.PullImageRequest) -> AsyncIterator[admin_pb2.PullImageResponse]:
        """Pull an image. Sends the progress of its layers, then its id."""
        name = fields.required("reference", request.reference)
        auth_file = Path(fields.absolute("auth_file", request.auth_file)) if request.auth_file else None
        login = Credentials(username=request.username, password=request.password) if request.username else None
        events: asyncio.Queue[PullProgress | None] = asyncio.Queue()

        async def pull() -> Image:
            try:
                image: Image = await self._images.pull(name, login, events.put_nowait, auth_file)
                return image
            finally:
                events.put_nowait(None)

        pulling = asyncio.create_task(pull())
        try:
            while (event := await events.get()) is not None:
                yield admin_pb2.PullImageResponse(progress=_progress(event))
            yield admin_pb2.PullImageResponse(image_id=(await pulling).id)
        finally:
            pulling.cancel()


def _progress(event: PullProgress) -> admin_pb2.LayerProgress:
    return admin_pb2.LayerProgress(
        layer=event.layer, offset=event.offset, total=event.total, phase=event.phase.value
    )


async def _causes(listener: Listener[Bulletin]) -> AsyncIterator[admin_pb2.CauseResponse]:
    async for one in listener:
        yield admin_pb2.CauseResponse(
            at=one.at,
            subject=one.subject,
            container=one.container,
            id=one.object_id,
            name=one.name,
            cause=one.cause,
            remedy=one.remedy,
        )


def _why(found: Diagnosis) -> admin_pb2.WhyResponse:
    return admin_pb2.WhyResponse(
        subject=found.subject,
        name=found.name,
        cause=found.cause,
        evidence=found.evidence,
        remedy=found.remedy,
        timeline=[
            admin_pb2.Moment(
                at=one.at,
                container=one.container,
                text=one.text,
                took=one.took,
                count=one.count,
                wrong=one.wrong,
                kind=one.kind,
            )
            for one in found.timeline
        ],
        others=map(_why, found.others),
    )
