"""docs/cri.md: the members of messages within requests, which have no rows under the calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from cri.v1 import api_pb2
from tests.matrix.table import Row, Section

# Sets each member of a configuration alone, and fails if that makes no difference.
TEST: Final = "unit/test_cri_members.py::test_no_member_is_dropped"
# Members without an effect, and why.
IGNORED: Final[Mapping[str, str]] = {
    "ImageSpec.image_ref": "of no effect in a request: ContainerStatus tells the digest of an image volume in it",
}
_CONFIGURATIONS: Final = ("PodSandboxConfig", "ContainerConfig", "LinuxContainerResources")


def sections(expanded: Mapping[str, str], groups: Mapping[str, tuple[str, ...]]) -> list[Section]:
    """Return a section for each message that has no rows under a call. `groups` are tests by "CALL MEMBER"."""
    descriptors = api_pb2.DESCRIPTOR.message_types_by_name
    converted = {message.name for name in _CONFIGURATIONS for message in _within(descriptors[name], set())}
    found: dict[str, Section] = {}
    for service in api_pb2.DESCRIPTOR.services_by_name.values():
        for method in service.methods:
            for field in method.input_type.fields:
                for message in _within(field.message_type, set()) if field.message_type else ():
                    if message.name in expanded or message.name in found:
                        continue
                    tests = (TEST,) if message.name in converted else groups.get(f"{method.name} {field.name}", ())
                    found[message.name] = Section(f"{message.name} (in requests)", tuple(_rows(message, tests)))
    return list(found.values())


def _rows(message: Any, tests: tuple[str, ...]) -> Iterator[Row]:
    for field in message.fields:
        yield Row(field.name, tests, note=IGNORED.get(f"{message.name}.{field.name}", ""))


def _within(message: Any, known: set[str]) -> Iterator[Any]:
    if message.name in known or message.name.startswith("Windows") or message.GetOptions().map_entry:
        return
    known.add(message.name)
    yield message
    for field in message.fields:
        if field.message_type is not None:
            yield from _within(field.message_type, known)
