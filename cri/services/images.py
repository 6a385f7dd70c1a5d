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
        """List all images, or the one that the filter names."""
        return api_pb2.ListImagesResponse(images=[image_message(image) for image in self._select(request.filter)])

    async def StreamImages(self, request: api_pb2.StreamImagesRequest) -> AsyncIterator[api_pb2.StreamImagesResponse]:
        """List images in pages."""
        for page in pages(image_message(image) for image in self._select(request.filter)):
            yield api_pb2.StreamImagesResponse(images=page)

    def _select(self, wanted: api_pb2.ImageFilter) -> list[Image]:
        if not wanted.image.image:
            return self._images.images()
        image = self._images.find(wanted.image.image)
        return [image] if image else []

    async def ImageStatus(self, request: api_pb2.ImageStatusRequest) -> api_pb2.ImageStatusResponse:
        """Return an image by name or id. For an unknown one the answer has no image; that is not an error."""
        image = self._images.find(fields.required("image.image", request.image.image))
        if image is None:
            return api_pb2.ImageStatusResponse()
        return api_pb2.ImageStatusResponse(
            image=image_message(image),
            info=info(await self._details(image)) if request.verbose else None,
        )

    async def _details(self, image: Image) -> dict[str, Any]:
        """Return what crictl and `crisp inspect` show beside CRI's fields: the image's manifest and configuration."""
        manifest, configuration = [decode(text, dict) for text in await self._images.documents(image)]
        return {
            "imageSpec": configuration,
            "labels": image.config.labels,
            "manifest": manifest,
            "history": configuration.get("history") or [],
            "layers": self._images.layer_sizes(image),
        }

    async def PullImage(self, request: api_pb2.PullImageRequest) -> api_pb2.PullImageResponse:
        """Pull an image. Answers the same id as ImageStatus: kubelet compares the two."""
        name = fields.required("image.image", request.image.image)
        image = await self._images.pull(name, credentials(request.auth) if request.HasField("auth") else None)
        return api_pb2.PullImageResponse(image_ref=image.id)

    async def PullSecurityProfile(
        self, request: api_pb2.PullSecurityProfileRequest
    ) -> api_pb2.PullSecurityProfileResponse:
        """Pull a seccomp profile, which containers can then name by SecurityProfile.oci_ref."""
        name = fields.required("image.image", request.image.image)
        if request.profile_kind != api_pb2.SecurityProfileKind.Seccomp:
            raise ProfileInvalid(f"pull {name}: profile_kind {request.profile_kind} is not supported, only Seccomp")
        given = credentials(request.auth) if request.HasField("auth") else None
        return api_pb2.PullSecurityProfileResponse(cached=await self._node.profiles.pull_seccomp(name, given))

    async def ListSecurityProfiles(
        self, request: api_pb2.ListSecurityProfilesRequest
    ) -> api_pb2.ListSecurityProfilesResponse:
        """List all pulled profiles."""
        found = [
            api_pb2.SecurityProfileInfo(digest=profile.digest, refs=profile.references, size=profile.size)
            for profile in self._node.profiles.all()
        ]
        return api_pb2.ListSecurityProfilesResponse(profiles=found)

    async def RemoveSecurityProfile(
        self, request: api_pb2.RemoveSecurityProfileRequest
    ) -> api_pb2.RemoveSecurityProfileResponse:
        """Remove a profile. Succeeds for an unknown one."""
        await self._node.profiles.remove(fields.required("digest", request.digest))
        return api_pb2.RemoveSecurityProfileResponse()

    async def RemoveImage(self, request: api_pb2.RemoveImageRequest) -> api_pb2.RemoveImageResponse:
        """Remove an image by name or id. Succeeds for an unknown one."""
        await self._images.remove(fields.required("image.image", request.image.image))
        return api_pb2.RemoveImageResponse()

    async def ImageFsInfo(self, request: api_pb2.ImageFsInfoRequest) -> api_pb2.ImageFsInfoResponse:
        """Return the disk use of images, and of containers' writable layers."""
        usages = self._images.usage()
        mountpoint = layers_mountpoint(self._node.settings.root, usages[0].mountpoint)
        return api_pb2.ImageFsInfoResponse(
            image_filesystems=[image_filesystem(usage) for usage in usages],
            container_filesystems=[filesystem(await self._node.stats.disk(), mountpoint)],
        )
