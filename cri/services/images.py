"""ListImages, StreamImages, ImageStatus, PullImage, RemoveImage, ImageFsInfo."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from cri.convert import fields
from cri.convert.documents import info
from cri.convert.image import credentials, image_message
from cri.convert.stats import filesystem, image_filesystem, layers_mountpoint
from cri.services.lists import pages
from cri.v1 import api_pb2
from image.documents import decode
from image.errors import ProfileInvalid
from image.model import Image

if TYPE_CHECKING:
    from cri.services.node import Node


class ImageCalls:
    """The calls of CRI's ImageService."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._images = node.images

    async def ListImages(self, request: api_pb2.ListImagesRequest) -> api_pb2.ListImagesResponse:
        """Every image, or the one that the filter names."""
        return api_pb2.ListImagesResponse(images=[image_message(image) for image in self._select(request.filter)])

    async def StreamImages(self, request: api_pb2.StreamImagesRequest) -> AsyncIterator[api_pb2.StreamImagesResponse]:
        """ListImages in pages."""
        for page in pages(image_message(image) for image in self._select(request.filter)):
            yield api_pb2.StreamImagesResponse(images=page)

    def _select(self, wanted: api_pb2.ImageFilter) -> list[Image]:
        if not wanted.image.image:
            return self._images.images()
        image = self._images.find(wanted.image.image)
        return [image] if image else []

    async def ImageStatus(self, request: api_pb2.ImageStatusRequest) -> api_pb2.ImageStatusResponse:
        """An image by name or id. One that is not there is told by an answer without image, not by an error."""
        image = self._images.find(fields.required("image.image", request.image.image))
        if image is None:
            return api_pb2.ImageStatusResponse()
        return api_pb2.ImageStatusResponse(
            image=image_message(image),
            info=info(await self._details(image)) if request.verbose else None,
        )

    async def _details(self, image: Image) -> dict[str, Any]:
        """What crictl and `crisp inspect` show of an image beside CRI's own fields: its own documents, as they are."""
        manifest, configuration = [decode(text, dict) for text in await self._images.documents(image)]
        return {
            "imageSpec": configuration,
            "labels": image.config.labels,
            "manifest": manifest,
            "history": configuration.get("history") or [],
            "layers": self._images.layer_sizes(image),
        }

    async def PullImage(self, request: api_pb2.PullImageRequest) -> api_pb2.PullImageResponse:
        """Pull an image. Answers its id, which is what ImageStatus calls it: kubelet compares the two."""
        name = fields.required("image.image", request.image.image)
        image = await self._images.pull(name, credentials(request.auth) if request.HasField("auth") else None)
        return api_pb2.PullImageResponse(image_ref=image.id)

    async def PullSecurityProfile(
        self, request: api_pb2.PullSecurityProfileRequest
    ) -> api_pb2.PullSecurityProfileResponse:
        """Have a seccomp profile on the node, which containers then name by SecurityProfile.oci_ref."""
        name = fields.required("image.image", request.image.image)
        if request.profile_kind != api_pb2.SecurityProfileKind.Seccomp:
            raise ProfileInvalid(f"pull {name}: profile_kind {request.profile_kind} is not supported, only Seccomp")
        given = credentials(request.auth) if request.HasField("auth") else None
        return api_pb2.PullSecurityProfileResponse(cached=await self._node.profiles.pull_seccomp(name, given))

    async def ListSecurityProfiles(
        self, request: api_pb2.ListSecurityProfilesRequest
    ) -> api_pb2.ListSecurityProfilesResponse:
        """Every profile that was pulled."""
        found = [
            api_pb2.SecurityProfileInfo(digest=profile.digest, refs=profile.references, size=profile.size)
            for profile in self._node.profiles.all()
        ]
        return api_pb2.ListSecurityProfilesResponse(profiles=found)

    async def RemoveSecurityProfile(
        self, request: api_pb2.RemoveSecurityProfileRequest
    ) -> api_pb2.RemoveSecurityProfileResponse:
        """Remove a profile; one that is not there is removed."""
        await self._node.profiles.remove(fields.required("digest", request.digest))
        return api_pb2.RemoveSecurityProfileResponse()

    async def RemoveImage(self, request: api_pb2.RemoveImageRequest) -> api_pb2.RemoveImageResponse:
        """Remove an image by name or id; one that is not there is removed."""
        await self._images.remove(fields.required("image.image", request.image.image))
        return api_pb2.RemoveImageResponse()

    async def ImageFsInfo(self, request: api_pb2.ImageFsInfoRequest) -> api_pb2.ImageFsInfoResponse:
        """What images take, and what containers' writable layers do."""
        usages = self._images.usage()
        mountpoint = layers_mountpoint(self._node.settings.root, usages[0].mountpoint)
        return api_pb2.ImageFsInfoResponse(
            image_filesystems=[image_filesystem(usage) for usage in usages],
            container_filesystems=[filesystem(await self._node.stats.disk(), mountpoint)],
        )
