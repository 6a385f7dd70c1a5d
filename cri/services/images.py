"""ListImages, ImageStatus, PullImage, RemoveImage, ImageFsInfo."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from cri.convert import fields
from cri.convert.image import credentials, image_message
from cri.services.verbose import info
from cri.v1 import api_pb2

if TYPE_CHECKING:
    from pods.node import Node


class Images:
    """The calls of CRI's ImageService."""

    def __init__(self, node: Node) -> None:
        self._images = node.images

    async def ListImages(self, request: api_pb2.ListImagesRequest) -> api_pb2.ListImagesResponse:
        """Every image, or the one that the filter names."""
        wanted = request.filter.image.image
        if wanted:
            image = self._images.find(wanted)
            images = [image] if image else []
        else:
            images = self._images.images()
        return api_pb2.ListImagesResponse(images=[image_message(image) for image in images])

    async def ImageStatus(self, request: api_pb2.ImageStatusRequest) -> api_pb2.ImageStatusResponse:
        """An image by name or id. One that is not there is told by an answer without image, not by an error."""
        image = self._images.find(fields.required("image.image", request.image.image))
        if image is None:
            return api_pb2.ImageStatusResponse()
        return api_pb2.ImageStatusResponse(
            image=image_message(image),
            info=info({"imageSpec": {"created": image.created, "config": image.config}}) if request.verbose else None,
        )

    async def PullImage(self, request: api_pb2.PullImageRequest) -> api_pb2.PullImageResponse:
        """Pull an image. Answers its id, which is what ImageStatus calls it: kubelet compares the two."""
        name = fields.required("image.image", request.image.image)
        image = await self._images.pull(name, credentials(request.auth) if request.HasField("auth") else None)
        return api_pb2.PullImageResponse(image_ref=image.id)

    async def RemoveImage(self, request: api_pb2.RemoveImageRequest) -> api_pb2.RemoveImageResponse:
        """Remove an image by name or id; one that is not there is removed."""
        await self._images.remove(fields.required("image.image", request.image.image))
        return api_pb2.RemoveImageResponse()

    async def ImageFsInfo(self, request: api_pb2.ImageFsInfoRequest) -> api_pb2.ImageFsInfoResponse:
        """What images take. Containers' writable layers lie on the same filesystem."""
        now = time.time_ns()
        filesystems = [
            api_pb2.FilesystemUsage(
                timestamp=now,
                fs_id=api_pb2.FilesystemIdentifier(mountpoint=usage.mountpoint),
                used_bytes=api_pb2.UInt64Value(value=usage.bytes),
                inodes_used=api_pb2.UInt64Value(value=usage.inodes),
            )
            for usage in self._images.usage()
        ]
        return api_pb2.ImageFsInfoResponse(image_filesystems=filesystems, container_filesystems=filesystems)
