"""The version of crisp that runs."""

from __future__ import annotations

import importlib.metadata


def crisp_version() -> str:
    """Return the version of the installed package; from a bare source tree 0.0.0+checkout, which kubelet can parse."""
    try:
        return importlib.metadata.version("crisp-cri")
    except importlib.metadata.PackageNotFoundError:
        return "0.0.0+checkout"
