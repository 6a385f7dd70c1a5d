"""The file that a container's log begins in."""

from __future__ import annotations

import os

from pods.directories import make_directories
from pods.errors import InvalidArgument, PodError
from runtime.logs.place import make_directory, open_to_append


def trusted(log_directory: str) -> str:
    """The directory above a pod's logs up to which links are followed.

    kubelet's log_directory is /var/log/pods/NAMESPACE_NAME_UID. What is above, the administrator may have elsewhere.
    The pod's own directory and what is in it is made by kubelet and crisp, who make no links.
    """
    return os.path.dirname(os.path.normpath("/" + log_directory.lstrip("/")))


def make_log_directory(log_directory: str) -> None:
    """Make a pod's directory of logs and missing ones above it. Raises InvalidArgument."""
    above = trusted(log_directory)
    try:
        make_directories(above)
        make_directory(log_directory, above)
    except OSError as error:
        reason = f"make directory {log_directory!r}: {error.strerror}"
        raise InvalidArgument(f"config.log_directory: {reason}") from error


def make_log(path: str, log_directory: str) -> None:
    """Make the file and missing directories above it, or see that it can be written. Raises PodError with the path."""
    above = trusted(log_directory)
    try:
        make_directories(above)
        os.close(open_to_append(path, above, make=True))
    except OSError as error:
        raise PodError(f"make log {path!r}: {error.strerror}") from error
