"""The seccomp filter that comes with a start."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence

from runtime.errors import RuntimeCoreError
from runtime.wire.calls import Start


def filter_of(call: Start, fds: Sequence[int]) -> tuple[bytes, int]:
    """Its program, b"" for none, and the flags of seccomp(2). Raises RuntimeCoreError, IndexError without its file."""
    if not call.filter_bytes:
        return base64.b64decode(call.filter), call.filter_flags
    program = os.pread(fds[0], call.filter_bytes, 0)
    if len(program) != call.filter_bytes:
        raise RuntimeCoreError("read seccomp filter: it is cut short")
    return program, call.filter_flags
