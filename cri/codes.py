"""Maps every error class to its gRPC status code, and to the word that kubelet knows it by. The only such tables."""

from __future__ import annotations

from grpc import StatusCode

import cri.streaming.errors
import image.errors
import network.errors
import pods.errors
import runtime.client
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
    cri.streaming.errors.NoProcess: StatusCode.UNAVAILABLE,
    image.errors.InvalidReference: StatusCode.INVALID_ARGUMENT,
    image.errors.InvalidConfiguration: StatusCode.FAILED_PRECONDITION,
    image.errors.RegistryBlocked: StatusCode.PERMISSION_DENIED,
    image.errors.ImageNotFound: StatusCode.NOT_FOUND,
    image.errors.RegistryUnavailable: StatusCode.UNKNOWN,
    image.errors.AuthenticationRequired: StatusCode.UNAUTHENTICATED,
    # The content differs from what was promised; as in containerd. DATA_LOSS would mean that the node lost data.
    image.errors.DigestMismatch: StatusCode.FAILED_PRECONDITION,
    image.errors.InvalidImage: StatusCode.FAILED_PRECONDITION,
    image.errors.SignatureRefused: StatusCode.UNKNOWN,
    image.errors.ProfileInvalid: StatusCode.INVALID_ARGUMENT,
    image.errors.ImageInUse: StatusCode.FAILED_PRECONDITION,
    image.errors.ImageReadOnly: StatusCode.FAILED_PRECONDITION,
    image.errors.StorageFull: StatusCode.RESOURCE_EXHAUSTED,
    image.errors.ImageError: StatusCode.INTERNAL,
    network.errors.NetworkNotReady: StatusCode.UNAVAILABLE,
    network.errors.PluginNotFound: StatusCode.UNAVAILABLE,  # Status then reports the network as not ready, too
    network.errors.InvalidAttachment: StatusCode.INVALID_ARGUMENT,
    network.errors.NetworkError: StatusCode.INTERNAL,
    runtime.client.ShimSilent: StatusCode.UNAVAILABLE,
    runtime.errors.RuntimeCoreError: StatusCode.INTERNAL,
}

# cri-api's errors package: the first word of the message. Of a pull, kubelet finds it only where the code is UNKNOWN:
# its client puts any other before the message.
_WORDS: dict[type[BaseException], str] = {
    image.errors.RegistryUnavailable: "RegistryUnavailable",
    image.errors.SignatureRefused: "SignatureValidationFailed",
    image.errors.ProfileInvalid: "SecurityProfileInvalid",
    pods.errors.ImageVolumeFailed: "ImageVolumeMountFailed",
    pods.errors.RecursiveReadOnlyUnsupported: "RROUnsupported",
}


def code_of(error: BaseException) -> StatusCode | None:
    """Return an error's code, found by its nearest ancestor class; None for an error that is not the rooms'.

    What failed because a shim does not answer may be tried again, whatever the operation was.
    """
    if isinstance(error.__cause__, runtime.client.ShimSilent):
        error = error.__cause__
    for kind in type(error).__mro__:
        code = _CODES.get(kind)
        if code is not None:
            return code
    return None


def text_of(error: BaseException) -> str:
    """Return the text that a client gets for an error: its message, after the word that kubelet knows it by, if any."""
    text = str(error) or type(error).__name__
    word = next((_WORDS[kind] for kind in type(error).__mro__ if kind in _WORDS), "")
    return f"{word}: {text}" if word else text
