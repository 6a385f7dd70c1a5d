"""Sets the caller's capabilities (capabilities(7)) on the way from root to the container's user.

The order is `drop_bounding`, `set_keepcaps`, the change of user, `apply`. Names that the kernel does not know are
skipped, so that a profile written for a newer kernel works; `left_out` lists them for a warning.
"""

from __future__ import annotations

import errno

from linux import capabilities as sets
from linux.tables import CAPABILITIES
from runtime.errors import OperationFailed, failing
from runtime.light import contextlib
from runtime.spec.values import Capabilities

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from typing import Any

_NUMBERS = {name: number for number, name in enumerate(CAPABILITIES)}

def unknown(names: Iterable[str]) -> list[str]:
    """Return the names that are not in the table of capabilities."""
    return [name for name in names if name not in _NUMBERS]


def left_out(capabilities: Capabilities, path: str = "process.capabilities") -> list[str]:
    """Return a warning for each capability of a configuration that has no effect.

    The kernel raises an ambient capability only if it is permitted and inheritable (capabilities(7)).
    """
    named = capabilities.bounding | capabilities.effective | capabilities.permitted | capabilities.inheritable
    sentences = [f"{path}: unknown capability {name!r}: left out" for name in unknown(sorted(named))]
    for name in sorted(capabilities.ambient):
        for needed in ("permitted", "inheritable"):
            if name not in getattr(capabilities, needed):
                sentences.append(f"{path}.ambient: {name} is not in {path}.{needed}: left out")
                break
    return sentences


def drop_bounding(keep: Iterable[str]) -> None:
    """Drop all capabilities except `keep` from the bounding set. A dropped one cannot be added again.

    Needs CAP_SETPCAP. Raises `OperationFailed`, which names the capability.
    """
    for number in bits(~mask(keep)):
        try:
            sets.drop_bounding(number)
        except OSError as refusal:
            if not sets.is_known(number):
                return  # the kernel does not know the higher ones either
            if sets.in_bounding(number):
                raise OperationFailed.of("drop", f"`{name(number)}` from the bounding set", refusal) from None


def set_keepcaps() -> None:
    """Keep the permitted set over a change from root to another user (PR_SET_KEEPCAPS)."""
    with failing("set", "PR_SET_KEEPCAPS"):
        sets.keep_at_setuid(True)


def apply(capabilities: Capabilities, *, more: Collection[str] = ()) -> None:
    """Set the effective, permitted, inheritable and ambient sets, after the change of user; see `left_out`.

    Capabilities in `more` that the caller has stay permitted and effective too, until `only`. Raises
    `OperationFailed`, which names a capability that the caller does not have.
    """
    has = _permitted()
    kept = mask(more) & has
    permitted = mask(capabilities.permitted) & known()
    for number in bits(permitted & ~has):
        raise OperationFailed("add", f"`{name(number)}` to the permitted set", errno.EPERM)
    effective = mask(capabilities.effective) & known()
    inheritable = mask(capabilities.inheritable) & known()
    for number in bits(effective & ~permitted):
        raise OperationFailed("add", f"`{name(number)}` to the effective set", errno.EPERM)
    with failing("set", "capabilities"):
        sets.become(effective | kept, permitted | kept, inheritable)
    with contextlib.suppress(OSError):
        sets.clear_ambient()
    for number in bits(mask(capabilities.ambient) & permitted & inheritable):
        with failing("add", f"`{name(number)}` to the ambient set"):
            sets.raise_ambient(number)
    with contextlib.suppress(OSError):
        sets.keep_at_setuid(False)


def only(capabilities: Capabilities, *, more: Collection[str] = ()) -> tuple[Any, Any]:
    """capset(2)'s arguments to take away what `apply` left besides, but for `more`. Asks the kernel what it has."""
    kept = mask(more) & _permitted()
    effective, permitted, inheritable = (
        mask(names) & known()
        for names in (capabilities.effective, capabilities.permitted, capabilities.inheritable)
    )
    return sets.arguments(effective | kept, permitted | kept, inheritable)


def known() -> int:
    """The mask of what this kernel has."""
    count = next((number for number in range(len(CAPABILITIES), 0, -1) if sets.is_known(number - 1)), 0)
    return (1 << count) - 1


def mask(names: Iterable[str]) -> int:
    mask = 0
    for name in names:
        if name in _NUMBERS:
            mask |= 1 << _NUMBERS[name]
    return mask


def bits(mask: int) -> Iterator[int]:
    return (number for number in range(sets.MOST) if mask >> number & 1)


def name(number: int) -> str:
    return CAPABILITIES[number] if number < len(CAPABILITIES) else f"capability {number}"


def _permitted() -> int:
    with failing("read", "capabilities"):
        return sets.current()[1]
