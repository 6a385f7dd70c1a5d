"""Bytes that are no text: the same after every way that they take."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri.convert.documents import info
from pods import model, octets
from runtime.errors import SpecError
from runtime.spec.parse import parse

_BINARY = pytest.mark.trial("binary-values", "Values of the environment are bytes, and arrive as they are")


def _config(value: str) -> model.ContainerConfig:
    envs = (("A", value), ("B", "\u00e4"))
    return model.ContainerConfig(
        metadata=model.ContainerMetadata(name="c"), image=model.ImageSpec(image="i"), envs=envs
    )


@_BINARY
@given(st.binary(max_size=40))
def test_bytes_are_kept_by_records_and_json(value: bytes) -> None:
    text = octets.text_of(value)
    assert octets.octets_of(text) == value
    record = _config(text)
    assert octets.decode(octets.encode(record), model.ContainerConfig) == record
    assert octets.octets_of(json.loads(json.dumps(text))) == value
    shown = json.loads(info({"config": record, "env": [f"A={text}"]})["info"])
    assert shown["env"] == [f"A={octets.shown(text)}"]
    octets.shown(text).encode()  # it is text


@_BINARY
def test_text_is_not_touched() -> None:
    text = "\u00e4\n\\x \U0001f600"
    assert octets.shown(text) == text
    assert octets.shown(octets.text_of(b"a\xff\xc3\xa4")) == "a\\xff\u00e4"
    with pytest.raises(msgspec.DecodeError):
        octets.decode('{"metadata": 3}', model.ContainerConfig)


@_BINARY
def test_config_json_takes_bytes_and_no_other_halves_of_pairs() -> None:
    def read(escape: str) -> tuple[str, ...]:
        process = {"args": ["x"], "cwd": "/", "env": [json.loads(f'"A={escape}"')]}
        found = parse({"ociVersion": "1.0.2", "process": process, "root": {"path": "r"}}).process
        assert found is not None
        return found.env

    assert octets.octets_of(read("\\udcff")[0]) == b"A=\xff"
    assert read("\\ud83d\\ude00")[0] == "A=\U0001f600"
    for wrong in ("\\ud800", "\\udc00", "\\udc7f", "\\udd00", "\\u0000"):
        with pytest.raises(SpecError, match=r"process\.env\[0\]"):
            read(wrong)
