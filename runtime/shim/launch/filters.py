"""Reads the seccomp filter of a call."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence

from runtime.errors import RuntimeCoreError
from runtime.wire.calls import Prepare, Start


def filter_of(call: Start | Prepare, fds: Sequence[int]) -> tuple[bytes, int]:
    """Return the program (b"" for none) and the flags for seccomp(2). Raises RuntimeCoreError, IndexError."""
    if not call.filter_bytes:
        return base64.b64decode(call.filter) if isinstance(call, Start) else b"", call.filter_flags
    program = os.pread(fds[0], call.filter_bytes, 0)
    if len(program) != call.filter_bytes:
        raise RuntimeCoreError("read seccomp filter: the file is too short")
    return program, call.filter_flags
