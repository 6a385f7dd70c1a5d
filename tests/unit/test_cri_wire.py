"""The generated wire types are CRI v1 exactly: nothing missing, nothing of our own, against the table of wire facts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from cri.v1 import api_pb2, api_pb2_grpc

TABLE = Path(__file__).parent / "data" / "cri-v1.tsv"
SCALARS = {
    getattr(FieldDescriptor, f"TYPE_{name.upper()}"): name
    for name in ("bool", "bytes", "double", "int32", "int64", "uint32", "uint64", "string")
}


def _local(full_name: str) -> str:
    return full_name.removeprefix("runtime.v1.")


def _type(field: Any) -> str:
    if field.message_type is not None:
        if field.message_type.GetOptions().map_entry:
            key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
            return f"map<{_type(key)},{_type(value)}>"
        return _local(field.message_type.full_name)
    if field.enum_type is not None:
        return _local(field.enum_type.full_name)
    return SCALARS[field.type]


def _label(field: Any) -> str:
    if field.GetOptions().deprecated:
        return "deprecated"
    return "repeated" if field.is_repeated and not _type(field).startswith("map<") else ""


def _enum_rows(enum: Any) -> Iterator[tuple[str, ...]]:
    for value in enum.values:
        yield "enum", _local(enum.full_name), str(value.number), value.name


def _message_rows(message: Any) -> Iterator[tuple[str, ...]]:
    if not message.fields:
        yield "message", message.name, "-", "-", "-"
    for field in message.fields:
        row = ("message", message.name, str(field.number), field.name, _type(field))
        yield (*row, _label(field)) if _label(field) else row
    for enum in message.enum_types:
        yield from _enum_rows(enum)


def _descriptor_rows() -> Iterator[tuple[str, ...]]:
    file: Any = api_pb2.DESCRIPTOR
    for service in file.services_by_name.values():
        for method in service.methods:
            request, response = (_local(kind.full_name) for kind in (method.input_type, method.output_type))
            yield "rpc", service.name, method.name, request, f"{'stream ' * method.server_streaming}{response}"
    for enum in file.enum_types_by_name.values():
        yield from _enum_rows(enum)
    for message in file.message_types_by_name.values():
        yield from _message_rows(message)


def test_wire_types_equal_the_table_of_facts() -> None:
    lines = (line for line in TABLE.read_text().splitlines() if line and not line.startswith("#"))
    facts = {tuple(line.rstrip("\t").split("\t")) for line in lines}
    ours = set(_descriptor_rows())
    assert len(facts) > 600
    assert ours - facts == set()
    assert facts - ours == set()


def test_method_names_on_the_wire_carry_the_package_of_cri() -> None:
    paths: list[str] = []

    class Channel:
        def unary_unary(self, path: str, **_: object) -> None:
            paths.append(path)

        unary_stream = unary_unary

    api_pb2_grpc.RuntimeServiceStub(Channel())  # type: ignore[call-overload]
    assert "/runtime.v1.RuntimeService/Version" in paths
