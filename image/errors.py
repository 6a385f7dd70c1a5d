"""The errors of `image`. Messages read "verb object: reason". `cri/codes.py` maps each class to one gRPC code."""


class ImageError(Exception):
    """Base class: an operation on an image failed for a reason inside the node."""


class InvalidReference(ImageError):
    """The text is not an image reference (distribution's reference grammar)."""


class InvalidConfiguration(ImageError):
    """registries.conf, a drop-in or another file of configuration is invalid; the message names the file."""


class RegistryBlocked(ImageError):
    """registries.conf blocks the registry."""


class ImageNotFound(ImageError):
    """The registry answered that it has no such image."""


class RegistryUnavailable(ImageError):
    """The registry did not answer, or kept failing; a later retry may help."""


class AuthenticationRequired(ImageError):
    """The registry refused the credentials, or requires some."""


class DigestMismatch(ImageError):
    """The received content does not have the expected digest or size."""


class InvalidImage(ImageError):
    """A manifest, configuration, layer or archive is malformed, unsafe, or no image."""


class NotAnImage(InvalidImage):
    """It is well-formed but no image: an artifact or a signature."""


class OtherPlatform(InvalidImage):
    """The image is for other machines."""


class SignatureRefused(ImageError):
    """The signature policy does not accept the image."""


class ProfileInvalid(ImageError):
    """A security profile, or a request for one, is invalid: a retry does not help."""


class ImageInUse(ImageError):
    """A container uses the image, so it cannot be removed."""


class ImageReadOnly(ImageError):
    """The image is in an additional store, so it cannot be changed or removed."""


class StorageFull(ImageError):
    """The store's file system is full; the message names the path."""
