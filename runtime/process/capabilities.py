"""Capability sets of the calling process (capabilities(7)): the steps between root and the container's user.

The order is `drop_bounding`, `set_keepcaps`, the change of user, `apply`. Names the kernel does not know are passed
over, so that a profile written for a newer kernel works; `unknown` tells them to those who want to warn.
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Collection, Iterable, Iterator

from linux.syscalls import libc
from linux.tables import CAPABILITIES
from runtime.errors import OperationFailed
from runtime.spec.values import Capabilities

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_NUMBERS = {name: number for number, name in enumerate(CAPABILITIES)}
_MOST = 64  # capabilities the kernel's two 32-bit words could hold

_VERSION_3 = 0x20080522
_PR_SET_KEEPCAPS = 8
_PR_CAPBSET_READ = 23
_PR_CAPBSET_DROP = 24
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_PR_CAP_AMBIENT_CLEAR_ALL = 4


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Data(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


_Words = _Data * 2


def unknown(names: Iterable[str]) -> list[str]:
    """Those of the names that no kernel known to this module has."""
    return [name for name in names if name not in _NUMBERS]


def left_out(capabilities: Capabilities, path: str = "process.capabilities") -> list[str]:
    """What of a configuration's sets has no effect, a sentence for each capability: for whoever can warn.

    The kernel raises an ambient capability only where it is permitted and inheritable (capabilities(7)).
    """
    named = capabilities.bounding | capabilities.effective | capabilities.permitted | capabilities.inheritable
    sentences = [f"{path}: no kernel is known to have {name!r}: left out" for name in unknown(sorted(named))]
    for name in sorted(capabilities.ambient):
        for needed in ("permitted", "inheritable"):
            if name not in getattr(capabilities, needed):
                sentences.append(f"{path}.ambient: {name} is not in {path}.{needed}: left out")
                break
    return sentences


def drop_bounding(keep: Iterable[str]) -> None:
    """Drops all but the named from the bounding set; a name that is not in it any more does not come back.

    Needs CAP_SETPCAP. Raises `OperationFailed` naming the capability.
    """
    for number in _bits(~_mask(keep)):
        if _prctl(_PR_CAPBSET_DROP, number) < 0:
            refusal = ctypes.get_errno()
            present = _prctl(_PR_CAPBSET_READ, number)
            if present < 0:
                return  # the kernel knows no capability of this number or above
            if present:
                raise OperationFailed("drop", f"`{_name(number)}` from the bounding set", refusal)


def set_keepcaps() -> None:
    """Lets the permitted set survive a change from root to another user (PR_SET_KEEPCAPS)."""
    if _prctl(_PR_SET_KEEPCAPS, 1) < 0:
        raise OperationFailed("set", "PR_SET_KEEPCAPS", ctypes.get_errno())


def apply(capabilities: Capabilities, *, more: Collection[str] = ()) -> None:
    """Sets the effective, permitted, inheritable and ambient sets, after the change of user; see `left_out`.

    Of `more` those that the caller has stay permitted and effective besides, until `only`. Raises `OperationFailed`
    naming a capability which the caller has not got and so cannot give.
    """
    has = _current()[1]
    kept = _mask(more) & has
    permitted = _mask(capabilities.permitted) & _known()
    for number in _bits(permitted & ~has):
        raise OperationFailed("add", f"`{_name(number)}` to the permitted set", errno.EPERM)
    effective = _mask(capabilities.effective) & _known()
    inheritable = _mask(capabilities.inheritable) & _known()
    for number in _bits(effective & ~permitted):
        raise OperationFailed("add", f"`{_name(number)}` to the effective set", errno.EPERM)
    _set(effective | kept, permitted | kept, inheritable)
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    for number in _bits(_mask(capabilities.ambient) & permitted & inheritable):
        if _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, number) < 0:
            raise OperationFailed("add", f"`{_name(number)}` to the ambient set", ctypes.get_errno())
    _prctl(_PR_SET_KEEPCAPS, 0)


def only(capabilities: Capabilities, *, more: Collection[str] = ()) -> tuple[Any, Any]:
    """capset(2)'s arguments to take away what `apply` left besides, but for `more`. Asks the kernel what it has."""
    kept = _mask(more) & _current()[1]
    effective, permitted, inheritable = (
        _mask(names) & _known()
        for names in (capabilities.effective, capabilities.permitted, capabilities.inheritable)
    )
    return _Header(_VERSION_3, 0), _words(effective | kept, permitted | kept, inheritable)


def _bounding() -> Iterator[int]:
    for number in range(_MOST):
        state = _prctl(_PR_CAPBSET_READ, number)
        if state < 0:
            return
        if state:
            yield number


def _known() -> int:
    """The mask of what this kernel has. It is asked by prctl, since a container may have no /proc."""
    count = next((number for number in range(len(CAPABILITIES), 0, -1) if _prctl(_PR_CAPBSET_READ, number - 1) >= 0), 0)
    return (1 << count) - 1


def _mask(names: Iterable[str]) -> int:
    mask = 0
    for name in names:
        if name in _NUMBERS:
            mask |= 1 << _NUMBERS[name]
    return mask


def _bits(mask: int) -> Iterator[int]:
    return (number for number in range(_MOST) if mask >> number & 1)


def _name(number: int) -> str:
    return CAPABILITIES[number] if number < len(CAPABILITIES) else f"capability {number}"


def _current() -> tuple[int, int, int]:
    """Effective, permitted, inheritable."""
    header, words = _Header(_VERSION_3, 0), _Words()
    if libc.capget(ctypes.byref(header), words) < 0:
        raise OperationFailed("read", "capabilities", ctypes.get_errno())
    low, high = words
    return (
        low.effective | high.effective << 32,
        low.permitted | high.permitted << 32,
        low.inheritable | high.inheritable << 32,
    )


def _set(effective: int, permitted: int, inheritable: int) -> None:
    header = _Header(_VERSION_3, 0)
    if libc.capset(ctypes.byref(header), _words(effective, permitted, inheritable)) < 0:
        raise OperationFailed("set", "capabilities", ctypes.get_errno())


def _words(effective: int, permitted: int, inheritable: int) -> Any:
    low = _Data(effective & 0xFFFFFFFF, permitted & 0xFFFFFFFF, inheritable & 0xFFFFFFFF)
    return _Words(low, _Data(effective >> 32, permitted >> 32, inheritable >> 32))


def _prctl(option: int, first: int, second: int = 0) -> int:
    return int(libc.prctl(option, ctypes.c_ulong(first), ctypes.c_ulong(second), ctypes.c_ulong(0), ctypes.c_ulong(0)))
