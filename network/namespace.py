"""Pinned network namespaces: files that are one, and files that only were."""

from __future__ import annotations

import os


def is_namespace(path: str) -> bool:
    """Whether there is a namespace at `path`. Its mount may be gone and the file under it be left, which is none."""
    try:
        # All namespaces of a machine are on one device, nsfs.
        return os.stat(path).st_dev == os.stat("/proc/self/ns/net").st_dev
    except OSError:
        return False
