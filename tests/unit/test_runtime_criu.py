"""criu's messages."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.criu import worker as criu
from runtime.errors import NotSupported, RuntimeCoreError

VALUES = st.booleans() | st.integers(0, 2**63 - 1) | st.text(max_size=20) | st.binary(max_size=200)


@given(options=st.dictionaries(st.sampled_from(sorted(criu.OPTIONS)), VALUES, max_size=5))
def test_what_is_asked_can_be_read(options: dict[str, bool | int | str | bytes]) -> None:
    message = criu.decode(criu.request(criu.DUMP, options))
    inner = message[2]
    assert message[1] == criu.DUMP
    assert isinstance(inner, bytes)
    texts = {name: value.encode() if isinstance(value, str) else value for name, value in options.items()}
    assert criu.decode(inner) == {criu.OPTIONS[name]: value for name, value in texts.items()}


def test_a_message_as_it_is_on_the_wire() -> None:
    options: dict[str, criu.Value] = {
        "pid": 300,
        "external": ["a", "bc"],
        "inherit_fd": [criu.inherited("pipe:[1]", 5)],
    }
    assert criu.request(criu.RESTORE, options) == bytes.fromhex(
        "08 02 12 1b"  # type RESTORE; opts of 27 bytes
        "10 ac 02"  # pid
        "aa 02 01 61 aa 02 02 62 63"  # external, twice
        "da 01 0c 0a 08 70 69 70 65 3a 5b 31 5d 10 05"  # inherit_fd: key, fd
    )


@given(message=st.binary(max_size=60))
def test_an_answer_that_is_none_is_told(message: bytes) -> None:
    with contextlib.suppress(RuntimeCoreError):
        criu.decode(message)
    with pytest.raises(RuntimeCoreError, match="could not decode criu's answer: the message is truncated"):
        criu.decode(criu.request(criu.DUMP, {"log_file": "x" * 50})[:-1])


def test_without_criu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(NotSupported, match="apt-get install"):
        criu.find("criu-that-nobody-has")
