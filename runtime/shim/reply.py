"""Defines how a call's result is returned to its caller."""

from __future__ import annotations

from collections.abc import Callable

from runtime.errors import RuntimeCoreError
from runtime.wire.calls import Answer

Reply = Callable[[Answer | RuntimeCoreError], None]  # called once; descriptors in it are duplicated
