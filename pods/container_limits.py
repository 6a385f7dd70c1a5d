"""Limits of a container that the node's settings have, and annotations of its pod.

`crisp/KIND` is for all containers of the pod, `KIND.crisp/NAME` for the one of that name. Whoever creates pods may
lower the node's limit; the operator decides how far they may raise it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pods.errors import InvalidArgument

if TYPE_CHECKING:
    from pods.model import ContainerConfig, SandboxConfig
    from pods.settings import NodeSettings


@dataclass(frozen=True, slots=True)
class Limit:
    """A kind of limit. The setting of the node, and `setting`_most, are 0 for any.

    `what`: what containers may do at most, with the number in the place of {}. `most`: the highest value there is.
    """

    kind: str
    setting: str
    unit: str
    what: str
    most: int

    def of(self, pod: SandboxConfig, container: ContainerConfig, settings: NodeSettings) -> int:
        """Return the container's limit, 0 for any, as far as the settings allow it now."""
        asked = self._asked(pod, container)
        if asked is None:
            return self._of_node(settings)
        highest = self._highest(settings)
        return min(asked or highest, highest) if highest else asked

    def check(self, pod: SandboxConfig, container: ContainerConfig, settings: NodeSettings) -> None:
        """Raise InvalidArgument for a limit that is none, or that is above what pods may ask for."""
        asked, highest = self._asked(pod, container), self._highest(settings)
        if asked is not None and highest and not 0 < asked <= highest:
            raise InvalidArgument(
                f"annotation {self.annotation(pod, container)!r}: containers may {self.what.format(highest)} at most "
                f"on this node: ask for less, or raise {self.setting}_most in crisp.toml"
            )

    def annotation(self, pod: SandboxConfig, container: ContainerConfig) -> str:
        """Return the annotation that decides; whether the pod has it or not."""
        own = f"{self.kind}.crisp/{container.metadata.name}"
        return own if own in pod.annotations else f"crisp/{self.kind}"

    def _of_node(self, settings: NodeSettings) -> int:
        return int(getattr(settings, self.setting))

    def _highest(self, settings: NodeSettings) -> int:
        """The highest that pods may ask for; 0 for any."""
        own = self._of_node(settings)
        return max(own, getattr(settings, f"{self.setting}_most")) if own else 0

    def _asked(self, pod: SandboxConfig, container: ContainerConfig) -> int | None:
        """What the annotations ask for, 0 for any; None if there are none. Raises InvalidArgument."""
        name = self.annotation(pod, container)
        text = pod.annotations.get(name)
        if text is None:
            return None
        # An error must not repeat an annotation's value.
        if not (text.isascii() and text.isdecimal() and len(text) <= len(str(self.most)) and int(text) <= self.most):
            raise InvalidArgument(
                f"annotation {name!r}: must be a number of {self.unit} from 0, for any, to {self.most}"
            )
        return int(text)


LOG_RATE: Final = Limit("log-rate", "container_log_rate", "bytes a second", "log {} bytes a second", 1 << 40)
DISK: Final = Limit("disk-limit", "container_disk_limit", "bytes", "have {} bytes of files of their own", 1 << 50)
