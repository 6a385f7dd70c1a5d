"""The life of a container in its shim never leaves its picture."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.wire import states
from runtime.wire.states import CREATED, EXITED, RUNNING, STARTING, StateMachine

STATES = (CREATED, STARTING, RUNNING, EXITED)


@given(st.lists(st.sampled_from(STATES), max_size=12))
def test_no_order_leads_out_of_the_picture(wanted: list[str]) -> None:
    container, lived = StateMachine(), [CREATED]
    for state in wanted:
        try:
            container.become(state)
        except ValueError:
            assert container.name == lived[-1]
        else:
            lived.append(state)
    # Forwards only, each state once; none but the program's run is left out.
    assert tuple(lived) in {STATES[:length] for length in (1, 2, 3, 4)} | {(CREATED, STARTING, EXITED)}


@pytest.mark.parametrize(
    ("path", "abilities"),
    [
        ([], "can_start"),
        ([STARTING], "is_starting has_processes"),
        ([STARTING, RUNNING], "can_exec has_processes"),
        ([STARTING, RUNNING, EXITED], "is_over"),
        ([STARTING, EXITED], "is_over"),
    ],
)
def test_what_can_be_done_in_each_state(path: list[str], abilities: str) -> None:
    container = StateMachine()
    for state in path:
        container.become(state)
    questions = ("can_start", "is_starting", "can_exec", "has_processes", "is_over")
    assert {name for name in questions if getattr(container, name)} == set(abilities.split())


def test_the_picture_has_every_state() -> None:
    picture = (states.__doc__ or "").partition("CREATED   ")[0]
    assert all(state.upper() in picture for state in STATES)
