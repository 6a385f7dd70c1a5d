"""Loading a compiled seccomp filter (seccomp(2)), apart from its compiler, which a start may do without."""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from linux.syscalls import libc
from runtime.errors import NotSupported, OperationFailed

_SYS_SECCOMP = {"x86_64": 317, "aarch64": 277}
_SET_MODE_FILTER = 1
_PR_SET_SECCOMP = 22
_PR_MODE_FILTER = 2
NEW_LISTENER = 8
_INSTRUCTION = 8  # bytes of a struct sock_filter
_MACHINE = os.uname().machine  # not asked for later: a personality of a container's can make it another one


def load_filter(bpf: bytes, flags: int) -> int:
    """Puts the calling thread under the filter for good. Needs CAP_SYS_ADMIN or no_new_privs.

    Returns the descriptor of its listener, close-on-exec, if `flags` ask for one (NEW_LISTENER), else -1. Raises
    `OperationFailed`.
    """
    code = ctypes.create_string_buffer(bpf, len(bpf))
    # struct sock_fprog: a count, and a pointer aligned to its size
    program = ctypes.create_string_buffer(struct.pack("@HP", len(bpf) // _INSTRUCTION, ctypes.addressof(code)))
    number = _SYS_SECCOMP.get(_MACHINE)
    if number is None and not flags:
        result = libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_PR_MODE_FILTER), ctypes.byref(program), 0, 0)
    elif number is None:
        raise NotSupported("load", "seccomp filter", f"seccomp(2) is not known on {_MACHINE}")
    else:
        result = libc.syscall(
            ctypes.c_long(number), ctypes.c_long(_SET_MODE_FILTER), ctypes.c_long(flags), ctypes.byref(program)
        )
    if result >= 0 and flags & NEW_LISTENER:
        return int(result)
    if result:
        # A positive result is the thread that SECCOMP_FILTER_FLAG_TSYNC could not synchronise.
        raise OperationFailed("load", "seccomp filter", ctypes.get_errno() if result < 0 else errno.ESRCH)
    return -1
