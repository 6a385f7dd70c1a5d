"""The file that a container's log begins in."""

from __future__ import annotations

import os

from pods.directories import make_directories
from pods.errors import PodError


def make_log(path: str) -> None:
    """Make the file and missing directories above it, or see that it can be written. Raises PodError with the path.

    A pipe that nobody reads is refused: opening it would stop the pod's shim.
    """
    try:
        make_directories(os.path.dirname(path))
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o640))
    except OSError as error:
        raise PodError(f"make log {path!r}: {error.strerror}") from error
