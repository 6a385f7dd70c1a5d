"""Tells a pinned network namespace from the file that is left when it was unmounted."""

from __future__ import annotations

import os


def is_namespace(path: str) -> bool:
    """Return whether there is a namespace at `path`. Its mount may be gone while the file under it is left."""
    try:
        # All namespaces are on one device, nsfs.
        return os.stat(path).st_dev == os.stat("/proc/self/ns/net").st_dev
    except OSError:
        return False
