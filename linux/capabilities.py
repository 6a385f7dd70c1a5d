"""Reads and sets the caller's capability sets (capabilities(7)) as bit masks. All functions raise OSError."""

from __future__ import annotations

import ctypes

from linux.syscalls import check, libc, prctl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

MOST: Final = 64  # the kernel keeps a set in two 32-bit words
_VERSION_3: Final = 0x20080522
PR_SET_KEEPCAPS: Final = 8
_PR_CAPBSET_READ: Final = 23
PR_CAPBSET_DROP: Final = 24
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_RAISE: Final = 2
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Data(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


_Words = _Data * 2


def current() -> tuple[int, int, int]:
    """Return the effective, permitted and inheritable sets."""
    header, words = _Header(_VERSION_3, 0), _Words()
    check(libc.capget(ctypes.byref(header), words), "", "capget")
    low, high = words
    return (
        low.effective | high.effective << 32,
        low.permitted | high.permitted << 32,
        low.inheritable | high.inheritable << 32,
    )


def become(effective: int, permitted: int, inheritable: int) -> None:
    header, words = arguments(effective, permitted, inheritable)
    check(libc.capset(ctypes.byref(header), words), "", "capset")


def arguments(effective: int, permitted: int, inheritable: int) -> tuple[Any, Any]:
    """Build the arguments of capset(2), for callers that make the system call themselves."""
    low = _Data(effective & 0xFFFFFFFF, permitted & 0xFFFFFFFF, inheritable & 0xFFFFFFFF)
    return _Header(_VERSION_3, 0), _Words(low, _Data(effective >> 32, permitted >> 32, inheritable >> 32))


def is_known(number: int) -> bool:
    """Return whether this kernel has the capability. Asks by prctl, since a container may have no /proc."""
    try:
        in_bounding(number)
    except OSError:
        return False
    return True


def in_bounding(number: int) -> bool:
    """Return whether the capability is in the bounding set. EINVAL if the kernel does not know it."""
    return bool(prctl(_PR_CAPBSET_READ, number))


def drop_bounding(number: int) -> None:
    """Remove the capability from the bounding set for good. EINVAL if the kernel does not know it."""
    prctl(PR_CAPBSET_DROP, number)


def raise_ambient(number: int) -> None:
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number)


def clear_ambient() -> None:
    """Empty the ambient set. EINVAL before Linux 4.3, which introduced it."""
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)


def keep_at_setuid(keep: bool) -> None:
    """Set whether the permitted set survives a change from root to another user (PR_SET_KEEPCAPS)."""
    prctl(PR_SET_KEEPCAPS, int(keep))
