"""Images: what a request names, the credentials it brings, and images of the store for an answer."""

from __future__ import annotations

from cri.convert import fields
from cri.v1 import api_pb2
from image.model import Credentials, Image
from pods.model import ImageSpec

_ID_DIGITS = 10  # of the largest user id


def image_spec(path: str, message: api_pb2.ImageSpec) -> ImageSpec:
    """An image by name (CRI `ImageSpec`); which names exist is the store's to say."""
    return ImageSpec(
        image=fields.required(f"{path}.image", message.image),
        user_specified_image=fields.text(f"{path}.user_specified_image", message.user_specified_image),
        runtime_handler=fields.text(f"{path}.runtime_handler", message.runtime_handler),
        annotations=fields.annotation_map(f"{path}.annotations", message.annotations),
    )


def image_spec_message(spec: ImageSpec, image_id: str = "") -> api_pb2.ImageSpec:
    """The image of a container, or of a mount, as its status names it; `image_id` is what a mount's was found to be.

    kubelet asks for images by id and keeps the pod author's name beside it; that name is what people want to read of
    a container. Of a mount kubelet's garbage collection takes it for the id of an image that is in use.
    """
    return api_pb2.ImageSpec(
        image=image_id or spec.user_specified_image or spec.image,
        user_specified_image=spec.user_specified_image,
        runtime_handler=spec.runtime_handler,
        annotations=spec.annotations,
        image_ref=image_id,
    )


def credentials(message: api_pb2.AuthConfig) -> Credentials | None:
    """What PullImage brings to log in with; None when it brings nothing.

    Raises `image.errors.AuthenticationRequired` when `auth` cannot be decoded.
    """
    if message.auth and not message.username:
        return Credentials.from_auth(message.auth, message.server_address)
    found = Credentials(
        username=message.username,
        password=message.password,
        identity_token=message.identity_token,
        registry_token=message.registry_token,
        server_address=message.server_address,
    )
    return found if found.username or found.identity_token or found.registry_token else None


def image_message(image: Image) -> api_pb2.Image:
    """An image of the store (CRI `Image`): its user is a number or a name, never both."""
    uid, username = _user(image.config.user)
    return api_pb2.Image(
        id=image.id,
        repo_tags=image.repo_tags,
        repo_digests=image.repo_digests,
        size=image.size,
        uid=None if uid is None else api_pb2.Int64Value(value=uid),
        username=username,
        pinned=image.pinned,
    )


def _user(user: str) -> tuple[int | None, str]:
    """The user part of "user[:group]". Neither is told for an image that names none, which runs as root."""
    name = user.partition(":")[0]
    if name.isascii() and name.isdigit() and len(name) <= _ID_DIGITS:
        return int(name), ""
    return None, name
