"""Loading a compiled seccomp filter (seccomp(2)), apart from its compiler, which a start may do without."""

from __future__ import annotations

from linux import syscalls
from runtime.errors import failing


def load_filter(bpf: bytes, flags: int) -> int:
    """Puts the calling thread under the filter for good. Needs CAP_SYS_ADMIN or no_new_privs.

    Returns the descriptor of its listener, close-on-exec, if `flags` ask for one (SECCOMP_FILTER_FLAG_NEW_LISTENER),
    else -1. Raises `OperationFailed`.
    """
    with failing("load", "seccomp filter"):
        listener = syscalls.load_filter(bpf, flags)
    return listener if flags & syscalls.SECCOMP_NEW_LISTENER else -1
