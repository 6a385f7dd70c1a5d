"""Creates a container's log file and the directories above it."""

from __future__ import annotations

import os

from pods.directories import make_directories
from pods.errors import InvalidArgument, PodError
from runtime.logs.place import make_directory, open_to_append


def trusted(log_directory: str) -> str:
    """Return the directory above a pod's logs, up to which symbolic links are followed.

    kubelet's log_directory is /var/log/pods/NAMESPACE_NAME_UID. The administrator may have moved its parents elsewhere
    by links. The pod's own directory and what is in it are made by kubelet and crisp, which make no links.
    """
    return os.path.dirname(os.path.normpath("/" + log_directory.lstrip("/")))


def make_log_directory(log_directory: str) -> None:
    """Make a pod's log directory and its missing parents. Raises InvalidArgument."""
    above = trusted(log_directory)
    try:
        make_directories(above)
        make_directory(log_directory, above)
    except OSError as error:
        reason = f"make directory {log_directory!r}: {error.strerror}"
        raise InvalidArgument(f"config.log_directory: {reason}") from error


def make_log(path: str, log_directory: str) -> None:
    """Make the file and its missing parents, or check that it is writable. Raises PodError with the path."""
    above = trusted(log_directory)
    try:
        make_directories(above)
        os.close(open_to_append(path, above, make=True))
    except OSError as error:
        raise PodError(f"make log {path!r}: {error.strerror}") from error
