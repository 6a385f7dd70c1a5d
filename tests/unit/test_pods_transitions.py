"""The life of a container never leaves its picture, whatever happens to it in whatever order."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pods.errors import FailedPrecondition
from pods.model import Container, ContainerConfig, ContainerMetadata, ContainerState, ImageSpec
from pods.state import transitions
from pods.state.events import EventKind, container_changes
from pods.state.transitions import Event, Exited, Ran, Started, StartFailed, after

CREATED, RUNNING, EXITED = ContainerState.CREATED, ContainerState.RUNNING, ContainerState.EXITED
NEW = Container(
    id="c",
    sandbox_id="s",
    config=ContainerConfig(metadata=ContainerMetadata(name="main"), image=ImageSpec(image="i")),
    image_id="i",
    image_ref="i",
    state=CREATED,
    created_at=1,
)
# The picture once more; `Ran` is possible where no start is known.
ARROWS = {
    (CREATED, Started): RUNNING,
    (CREATED, StartFailed): EXITED,
    (CREATED, Exited): EXITED,
    (RUNNING, Exited): EXITED,
    (EXITED, Ran): EXITED,
}
_times = st.integers(min_value=1, max_value=2**62)
_codes = st.integers(min_value=0, max_value=255)
EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(Started, pid=st.integers(min_value=2), at=_times),
    st.builds(StartFailed, message=st.text(max_size=3), at=_times, code=_codes),
    st.builds(Exited, code=_codes, at=_times, oom=st.booleans()),
    st.builds(Ran, started_at=_times),
)


def _is_whole(container: Container) -> bool:
    """Whether what is known of it fits its state."""
    ended = (container.finished_at > 0, container.reason != "")
    if container.state is CREATED:
        return container == NEW
    if container.state is RUNNING:
        return container.pid > 1 and container.started_at > 0 and ended == (False, False) and not container.exit_code
    return container.pid == 0 and ended == (True, True)


@given(st.lists(EVENTS, max_size=12))
def test_no_order_of_events_leads_out_of_the_picture(events: list[Event]) -> None:
    container, told = NEW, list(container_changes(None, NEW))
    for event in events:
        target = ARROWS.get((container.state, type(event)))
        if isinstance(event, Ran) and container.started_at:
            target = None
        if target is None:
            with pytest.raises(ValueError, match=f"{type(event).__name__} is impossible"):
                after(container, event)
            continue
        before, container = container, after(container, event)
        told += container_changes(before, container)
        assert container.state is target
        assert _is_whole(container)
        assert msgspec.json.decode(msgspec.json.encode(container), type=Container) == container
    told += container_changes(container, None)
    assert told == sorted(set(told))  # each once, and in the order of a life
    assert told[0] is EventKind.CREATED
    assert told[-1] is EventKind.DELETED
    assert (EventKind.STOPPED in told) == (container.state is EXITED)


@pytest.mark.parametrize(
    ("state", "abilities"), [(CREATED, "start"), (RUNNING, "exec stop update"), (EXITED, "over")]
)
def test_what_can_be_done_in_each_state(state: ContainerState, abilities: str) -> None:
    container = msgspec.structs.replace(NEW, state=state)
    asked = {
        "start": transitions.can_start,
        "exec": transitions.can_exec,
        "stop": transitions.can_stop,
        "update": transitions.can_update,
        "over": transitions.is_over,
    }
    assert {name for name, question in asked.items() if question(container)} == set(abilities.split())


def test_refusals_name_container_and_state() -> None:
    container = msgspec.structs.replace(NEW, state=EXITED)
    with pytest.raises(FailedPrecondition, match=r"^container c is exited, not running$"):
        transitions.require_running(container)
    with pytest.raises(FailedPrecondition, match=r"^target_id: container c is exited, not running$"):
        transitions.require_running(container, "target_id")
    with pytest.raises(FailedPrecondition, match=r"^container c is exited, not created$"):
        transitions.require_startable(container)


@pytest.mark.parametrize(
    ("event", "reason"),
    [(Exited(0, at=1), "Completed"), (Exited(3, at=1), "Error"), (Exited(137, at=1, oom=True), "OOMKilled"),
     (StartFailed("", at=1), "StartError")],
)  # fmt: skip
def test_reasons_of_an_end(event: Exited | StartFailed, reason: str) -> None:
    assert (after(NEW, event).reason, after(NEW, event).exit_code) == (reason, event.code)


def test_the_picture_has_every_state_and_event() -> None:
    names = [state.name for state in ContainerState] + [event.__name__ for event in get_args(Event)]
    picture = (transitions.__doc__ or "").partition("can start")[0]
    assert [name for name in names if name not in picture] == []
