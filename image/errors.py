"""The image room's error family. Messages read "verb object: reason"; the door maps each class to one gRPC code."""


class ImageError(Exception):
    """Base of the family: an operation on an image failed for a reason inside the node."""


class InvalidReference(ImageError):
    """The text is not an image reference (distribution's reference grammar)."""


class InvalidConfiguration(ImageError):
    """registries.conf, or one of its drop-ins, cannot be used; the message names the file."""


class RegistryBlocked(ImageError):
    """registries.conf forbids pulling from there."""


class ImageNotFound(ImageError):
    """The registry answered, and has no such image."""


class RegistryUnavailable(ImageError):
    """The registry did not answer, or kept failing; trying again later may help."""


class AuthenticationRequired(ImageError):
    """The registry refused the credentials, or wants some."""


class DigestMismatch(ImageError):
    """What arrived is not what its digest or size promised."""


class InvalidImage(ImageError):
    """A manifest, configuration, layer or archive is malformed, unsafe, or of a kind that is not an image."""


class NotAnImage(InvalidImage):
    """It is well-formed and something else: an artifact, a signature."""


class OtherPlatform(InvalidImage):
    """The image is for machines of another kind."""


class SignatureRefused(ImageError):
    """The signature policy does not accept the image."""


class ProfileInvalid(ImageError):
    """A security profile, or the request for one, that no further try makes better."""


class ImageInUse(ImageError):
    """The image is held by a container and cannot be removed."""


class ImageReadOnly(ImageError):
    """The image is an additional store's: it cannot be changed or removed here."""


class StorageFull(ImageError):
    """The store's filesystem has no room left; the message names its path."""
