"""What a kubelet asked of a runtime: its requests, byte for byte, and the shape of what it was answered.

A file is one kubelet's, made by `python -m tests.e2e.record`; a line is one call. Of answers the names of those members
are kept that were set, and values only where one can wait for them: what machines differ in is not compared.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from google.protobuf.message_factory import GetMessageClass

from cri.v1 import api_pb2 as cri

DIRECTORY: Final = Path(__file__).parent / "integration" / "kubelets"
# What the recorded node has in its requests, for the one that they are repeated on.
CGROUP: Final = "crisp-recorded"
REGISTRY: Final = "registry.test"
# Calls that change nothing, which may be made again until the answer is as it was.
READS: Final = re.compile(r"(List|Stream)?(Version|Status|RuntimeConfig|.*(Status|Stats|Metrics|FsInfo|Descriptors))|"
                          r"List.*|Stream.*")  # fmt: skip
_ID: Final = re.compile(rb"[0-9a-f]{64}")
_NAMED: Final = ("RunPodSandbox", "CreateContainer", "PullImage", "ImageStatus")  # calls that ids are learnt from
# What depends on the kernel, on how long something has run, or on what else the machine does.
_PASSING: Final = re.compile(r"usage_nano_cores|swap|psi\b|\bio\b|\.(major_)?page_faults|errors|[rt]x_bytes|"
                             r"pod_metrics\.(container_)?metrics\.(label_values|(double_)?value)|used_bytes")
_ENDS: Final = ("CONTAINER_EXITED", "SANDBOX_NOTREADY")


@dataclass(frozen=True, slots=True)
class Call:
    """`code` is gRPC's, "OK" mostly; `told` are the set members of the answer; `ids` those that it gave to things."""

    method: str
    request: bytes
    code: str
    told: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.method.rpartition("/")[2]

    @property
    def reads(self) -> bool:
        return READS.fullmatch(self.name) is not None


def methods() -> dict[str, Any]:
    """The descriptors of CRI's calls, by their paths on the wire."""
    return {
        f"/{service.full_name}/{method.name}": method
        for service in cri.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }


def made(method: str, request: bytes, code: str, answer: bytes = b"") -> Call:
    """A call as it is kept."""
    descriptor = methods()[method]
    message = GetMessageClass(descriptor.output_type).FromString(answer)
    ids = tuple(found.decode() for found in _ID.findall(answer)) if descriptor.name in _NAMED else ()
    return Call(method, request, code, tuple(sorted({*told(message)})), ids)


def told(message: Any, prefix: str = "") -> Iterator[str]:
    """The members that are set in a message and those in it; states that do not change again with their values."""
    for field, value in message.ListFields():
        path = f"{prefix}{field.name}"
        if _PASSING.search(path):
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            yield from (f"{path}[{key}]" for key in value)
        elif field.message_type is not None:
            yield path
            for inner in value if field.is_repeated else (value,):
                yield from told(inner, f"{path}.")
        elif field.enum_type is not None and not field.is_repeated:
            name = field.enum_type.values_by_number[value].name
            yield f"{path}={name}" if name in _ENDS else path
        elif field.name in ("reason", "exit_code"):
            yield f"{path}={value}"
        else:
            yield path


def distinct(calls: Iterable[Call]) -> Iterator[Call]:
    """Without questions that were answered alike the last time, which is most of what a kubelet does."""
    seen: dict[tuple[str, bytes], Call] = {}
    for call in calls:
        if (call.reads or call.name == "ExecSync") and seen.get((call.method, call.request)) == call:
            continue
        seen[call.method, call.request] = call
        yield call


def save(path: Path, calls: Iterable[Call]) -> None:
    """Write a file, a line each."""
    lines = (asdict(call) | {"request": base64.b64encode(call.request).decode()} for call in calls)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def load(path: Path) -> list[Call]:
    """The calls of a file."""
    return [
        Call(line["method"], base64.b64decode(line["request"]), line["code"], tuple(line["told"]), tuple(line["ids"]))
        for line in map(json.loads, path.read_text().splitlines())
    ]


def registries(host: str) -> str:
    """The registries.conf that finds the recorded image at a registry of today's."""
    return f'[[registry]]\nprefix = "{REGISTRY}"\nlocation = "{host}"\ninsecure = true\n'


def renamed(request: bytes, names: dict[str, str]) -> bytes:
    """A request that names things as they are called now: ids are all of one length, so that nothing else changes."""
    return _ID.sub(lambda found: names.get(found[0].decode(), found[0].decode()).encode(), request)
