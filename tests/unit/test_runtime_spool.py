from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from runtime.logs.spool import Spool

_LIMIT = 10


@given(steps=st.lists(st.one_of(st.binary(max_size=12), st.integers(1, 12)), max_size=60))
def test_bytes_come_out_as_they_went_in(steps: list[bytes | int]) -> None:
    """Against a plain bytes object, over the end of the ring and back."""
    spool, model = Spool("/dev/shm", _LIMIT), b""
    for step in steps:
        if isinstance(step, bytes):
            fits = len(model) + len(step) <= _LIMIT
            assert spool.put(memoryview(step)) is fits
            model += step if fits else b""
        else:
            head = spool.peek(step)
            assert model.startswith(head)
            assert bool(head) is bool(model)
            spool.drop(len(head))
            model = model[len(head) :]
        assert len(spool) == len(model)
    spool.close()


def test_nothing_is_left_in_the_directory(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path), _LIMIT)
    assert not list(tmp_path.iterdir())
    spool.close()
