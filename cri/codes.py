"""Maps every error class to its gRPC status code. The only such table."""

from __future__ import annotations

from grpc import StatusCode

import cri.streaming.errors
import image.errors
import network.errors
import pods.errors
import runtime.errors

_CODES: dict[type[BaseException], StatusCode] = {
    pods.errors.InvalidArgument: StatusCode.INVALID_ARGUMENT,
    pods.errors.NotFound: StatusCode.NOT_FOUND,
    pods.errors.AlreadyExists: StatusCode.ALREADY_EXISTS,
    pods.errors.FailedPrecondition: StatusCode.FAILED_PRECONDITION,
    pods.errors.DeadlineExceeded: StatusCode.DEADLINE_EXCEEDED,
    pods.errors.Unavailable: StatusCode.UNAVAILABLE,
    pods.errors.ResourceExhausted: StatusCode.RESOURCE_EXHAUSTED,
    pods.errors.Unimplemented: StatusCode.UNIMPLEMENTED,
    pods.errors.PodError: StatusCode.INTERNAL,
    cri.streaming.errors.TooManyPending: StatusCode.RESOURCE_EXHAUSTED,
    image.errors.InvalidReference: StatusCode.INVALID_ARGUMENT,
    image.errors.InvalidConfiguration: StatusCode.FAILED_PRECONDITION,
    image.errors.RegistryBlocked: StatusCode.PERMISSION_DENIED,
    image.errors.ImageNotFound: StatusCode.NOT_FOUND,
    image.errors.RegistryUnavailable: StatusCode.UNAVAILABLE,
    image.errors.AuthenticationRequired: StatusCode.UNAUTHENTICATED,
    # What came is not what was promised, as containerd answers it; DATA_LOSS would say that the node lost something.
    image.errors.DigestMismatch: StatusCode.FAILED_PRECONDITION,
    image.errors.InvalidImage: StatusCode.FAILED_PRECONDITION,
    image.errors.SignatureRefused: StatusCode.UNKNOWN,  # kubelet reads the message of no other code
    image.errors.ProfileInvalid: StatusCode.INVALID_ARGUMENT,
    image.errors.ImageInUse: StatusCode.FAILED_PRECONDITION,
    image.errors.ImageReadOnly: StatusCode.FAILED_PRECONDITION,
    image.errors.StorageFull: StatusCode.RESOURCE_EXHAUSTED,
    image.errors.ImageError: StatusCode.INTERNAL,
    network.errors.NetworkNotReady: StatusCode.UNAVAILABLE,
    network.errors.PluginNotFound: StatusCode.UNAVAILABLE,  # Status says that the network is not ready, too
    network.errors.InvalidAttachment: StatusCode.INVALID_ARGUMENT,
    network.errors.NetworkError: StatusCode.INTERNAL,
    runtime.errors.RuntimeCoreError: StatusCode.INTERNAL,
}


def code_of(error: BaseException) -> StatusCode | None:
    """The code for an error of the rooms' families (a subclass has its nearest ancestor's); None for any other."""
    for kind in type(error).__mro__:
        code = _CODES.get(kind)
        if code is not None:
            return code
    return None
