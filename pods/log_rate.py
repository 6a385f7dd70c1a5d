"""How much a container may log in a second: by the node's settings, and by annotations of its pod.

`crisp/log-rate` is for all containers of the pod, `log-rate.crisp/NAME` for the one of that name. Whoever creates pods
may lower the node's rate; the operator decides how far they may raise it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pods.errors import InvalidArgument

if TYPE_CHECKING:
    from pods.model import ContainerConfig, SandboxConfig
    from pods.settings import NodeSettings

OF_POD: Final = "crisp/log-rate"
OF_CONTAINER: Final = "log-rate.crisp/"
_MOST: Final = 1 << 40


def of(pod: SandboxConfig, container: ContainerConfig, settings: NodeSettings) -> int:
    """Return the container's rate in bytes a second, 0 for any, as far as the settings allow it now."""
    asked = _asked(pod, container)
    if asked is None:
        return settings.container_log_rate
    highest = _highest(settings)
    return min(asked or highest, highest) if highest else asked


def check(pod: SandboxConfig, container: ContainerConfig, settings: NodeSettings) -> None:
    """Raise InvalidArgument for a rate that is none, or that is above what pods may ask for."""
    asked, highest = _asked(pod, container), _highest(settings)
    if asked is not None and highest and not 0 < asked <= highest:
        raise InvalidArgument(
            f"annotation {_name(pod, container)!r}: containers may log {highest} bytes a second at most on this node: "
            "ask for less, or raise container_log_rate_most in crisp.toml"
        )


def _highest(settings: NodeSettings) -> int:
    """The highest rate that pods may ask for; 0 for any."""
    return max(settings.container_log_rate, settings.container_log_rate_most) if settings.container_log_rate else 0


def _name(pod: SandboxConfig, container: ContainerConfig) -> str:
    own = f"{OF_CONTAINER}{container.metadata.name}"
    return own if own in pod.annotations else OF_POD


def _asked(pod: SandboxConfig, container: ContainerConfig) -> int | None:
    """The rate that the annotations ask for, 0 for any; None if there are none. Raises InvalidArgument."""
    name = _name(pod, container)
    text = pod.annotations.get(name)
    if text is None:
        return None
    # An error must not repeat an annotation's value.
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(_MOST)) and int(text) <= _MOST):
        raise InvalidArgument(f"annotation {name!r}: must be a number of bytes a second from 0, for any, to {_MOST}")
    return int(text)
