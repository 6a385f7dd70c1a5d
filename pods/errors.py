"""The errors of `pods`. `cri/codes.py` maps each class to one gRPC code."""


class PodError(Exception):
    """Base class: an operation on a sandbox or container failed for a reason inside the node (INTERNAL)."""


class InvalidArgument(PodError):
    """The request itself can never work; the message names the field and its value."""


class NotFound(PodError):
    """No sandbox, container or image has that id or name."""


class ImageVolumeFailed(PodError):
    """An image cannot be mounted as a volume."""


class ImageVolumeNotFound(ImageVolumeFailed, NotFound):
    """The image that is to be mounted is not on this node."""


class ImageVolumeInvalid(ImageVolumeFailed, InvalidArgument):
    """The image that is to be mounted has nothing, or nothing that can be mounted, where the request looks in it."""


class RecursiveReadOnlyUnsupported(InvalidArgument):
    """The kernel makes no mounts read-only with those below them."""


class AlreadyExists(PodError):
    """Another object holds the name; the message carries that object's id."""


class FailedPrecondition(PodError):
    """The object is in a state that does not allow the operation."""


class DeadlineExceeded(PodError):
    """The operation's own time limit passed (ExecSync's timeout)."""


class Unavailable(PodError):
    """Something outside the node (a registry, a network plugin) did not answer; a retry may help."""


class ResourceExhausted(PodError):
    """The client fell behind or asked for more than the node buffers, and something was lost."""


class Unimplemented(PodError):
    """The request asks for a feature of CRI that this node does not have yet; the message names the field."""
