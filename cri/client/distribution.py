"""Which release of crisp this is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def client_version() -> str:
    """The version of the installed distribution; "unreleased" in a checkout that is not installed."""
    try:
        return version("crisp-cri")
    except PackageNotFoundError:
        return "unreleased"
