"""Converts images: a request's image name and credentials, and the store's images for answers."""

from __future__ import annotations

from cri.convert import fields
from cri.v1 import api_pb2
from image.model import Credentials, Image
from pods.model import ImageSpec

_ID_DIGITS = 10  # digits of the largest user id


def image_spec(path: str, message: api_pb2.ImageSpec) -> ImageSpec:
    """Convert an image name (CRI `ImageSpec`). Only the store knows which images exist."""
    return ImageSpec(
        image=fields.required(f"{path}.image", message.image),
        user_specified_image=fields.text(f"{path}.user_specified_image", message.user_specified_image),
        runtime_handler=fields.text(f"{path}.runtime_handler", message.runtime_handler),
        annotations=fields.annotation_map(f"{path}.annotations", message.annotations),
    )


def image_spec_message(spec: ImageSpec, image_id: str = "") -> api_pb2.ImageSpec:
    """Convert the image of a container or a mount for a status. `image_id` is the id that a mount's image was found by.

    kubelet requests images by id, with the name from the pod's spec beside it; for a container people want to see that
    name. For a mount kubelet's garbage collection takes this field for the id of an image in use.
    """
    return api_pb2.ImageSpec(
        image=image_id or spec.user_specified_image or spec.image,
        user_specified_image=spec.user_specified_image,
        runtime_handler=spec.runtime_handler,
        annotations=spec.annotations,
        image_ref=image_id,
    )


def credentials(message: api_pb2.AuthConfig) -> Credentials | None:
    """Return the login of a PullImage; None if it has none.

    Raises `image.errors.AuthenticationRequired` if `auth` cannot be decoded.
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
    """Convert an image of the store (CRI `Image`). Its user is a number or a name, never both."""
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
    """Return the user of "user[:group]" as number or name. An image without a user runs as root and has neither."""
    name = user.partition(":")[0]
    if name.isascii() and name.isdigit() and len(name) <= _ID_DIGITS:
        return int(name), ""
    return None, name
