"""The version of crisp that runs."""

from __future__ import annotations

import importlib.metadata


def crisp_version() -> str:
    """The installed distribution's version; 0.0.0+checkout, which kubelet can parse, from a bare source tree."""
    try:
        return importlib.metadata.version("crisp-cri")
    except importlib.metadata.PackageNotFoundError:
        return "0.0.0+checkout"
