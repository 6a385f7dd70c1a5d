"""docs/cri.md: the members of answers, and the tests that compare them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from cri.v1 import api_pb2
from tests.matrix.markers import markers
from tests.matrix.table import Row, Section, by_name

_EVENTED: Final = (
    "never set: with a time stamp, kubelet's EventedPLEG no longer asks for each container's status, and does not know "
    "then which containers are of the present sandbox"
)
_WINDOWS: Final = "never set: it is for Windows"
# Members that crisp never sets, and why.
UNSET: Final[Mapping[str, str]] = {
    "PodSandboxStatusResponse.containers_statuses": _EVENTED,
    "PodSandboxStatusResponse.timestamp": _EVENTED,
    "NamespaceOption.target_id": "never set: PodSandboxStatus tells the pod's, and no pod joins a container",
    "NamespaceOption.cgroupns_options": "never set: PodSandboxStatus tells the pod's, and only containers have these",
    "ContainerResources.windows": _WINDOWS,
    "PodSandboxStats.windows": _WINDOWS,
    "Image.spec": "never set: it tells an image's runtime handler, and crisp's images are for all handlers",
    "Metric.timestamp": "never set: 0 says that the value was read for this answer",
}


def messages() -> dict[str, tuple[str, ...]]:
    """The members of each message that is in an answer, in the order of the calls."""
    found: dict[str, tuple[str, ...]] = {}
    for service in api_pb2.DESCRIPTOR.services_by_name.values():
        for method in service.methods:
            for message in _within(method.output_type, set(found)):
                if message.fields:
                    found[message.name] = tuple(field.name for field in message.fields)
    return found


def _within(message: Any, known: set[str]) -> Iterator[Any]:
    if message.name in known or message.GetOptions().map_entry:
        return
    known.add(message.name)
    yield message
    for field in message.fields:
        if field.message_type is not None and f"{message.name}.{field.name}" not in UNSET:
            yield from _within(field.message_type, known)


def claimed(message: str, *members: str) -> list[str]:
    """What `@pytest.mark.answer(message, *members)` claims, as "Message.member": all members if it names none."""
    return [f"{message}.{member}" for member in members or messages().get(message, ())]


def strangers() -> list[str]:
    """What markers name that no answer has."""
    known = {f"{message}.{member}" for message, members in messages().items() for member in members}
    found = [claimed(*marker.arguments) or [marker.arguments[0]] for marker in markers("answer")]
    return sorted({name for names in found for name in names} - known)


def sections() -> list[Section]:
    found = markers("answer")
    tests = by_name((name, marker.test) for marker in found for name in claimed(*marker.arguments))
    return [
        Section(f"{message} (in answers)", tuple(_rows(message, members, tests)))
        for message, members in messages().items()
    ]


def _rows(message: str, members: Iterable[str], tests: Mapping[str, tuple[str, ...]]) -> Iterator[Row]:
    for member in members:
        name = f"{message}.{member}"
        yield Row(member, tests.get(name, ()), UNSET.get(name, ""))
