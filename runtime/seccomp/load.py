"""Loads a compiled seccomp filter (seccomp(2)). Separate from the compiler, which a start need not import."""

from __future__ import annotations

from linux import syscalls
from runtime.errors import failing


def load_filter(bpf: bytes, flags: int) -> int:
    """Apply the filter to the calling thread for good. Needs CAP_SYS_ADMIN or no_new_privs.

    Returns the listener's descriptor, close-on-exec, if `flags` ask for one (SECCOMP_FILTER_FLAG_NEW_LISTENER), else
    -1. Raises `OperationFailed`.
    """
    with failing("load", "seccomp filter"):
        listener = syscalls.load_filter(bpf, flags)
    return listener if flags & syscalls.SECCOMP_NEW_LISTENER else -1
