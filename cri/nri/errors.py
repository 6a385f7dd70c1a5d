"""What goes wrong with NRI plugins."""

from __future__ import annotations


class NriError(Exception):
    """An NRI plugin or its connection failed."""


class WireError(NriError):
    """A peer's bytes break the protocol: its connection cannot be read any further."""
