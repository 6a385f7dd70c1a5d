"""Defines the life cycle of a container in its shim, with the state names that crispd gets.

    (create) ─▶ CREATED ──a start──▶ STARTING ──its program runs──▶ RUNNING ──its init ends──▶ EXITED ─▶ (delete)
                   │                     │                                                       ▲
                   └─▶ (delete)          └───────────────────the start fails─────────────────────┘

    CREATED   its rootfs is mounted. If a start is refused before there is a process, it stays so.
    STARTING  it has a process, and its program does not run yet: hooks run, or another runtime or criu is at work. It
              can only be killed or waited for. If its init exits now, the start fails, or the exit is reported after
              the start.
    RUNNING   signals, execs, attached clients, new limits, freezing and checkpoints are possible.
    EXITED    its exit status is on disk before it is reported.

This holds for containers of other runtimes and restored ones too. crispd's own states are drawn in
`pods.state.transitions`.
"""

from __future__ import annotations

from typing import Final

CREATED: Final = "created"
STARTING: Final = "starting"
RUNNING: Final = "running"
EXITED: Final = "exited"
_ARROWS: Final = frozenset({(CREATED, STARTING), (STARTING, RUNNING), (STARTING, EXITED), (RUNNING, EXITED)})


class StateMachine:
    """The state of one container. `name` is one of the above."""

    __slots__ = ("name",)

    def __init__(self, name: str = CREATED) -> None:
        self.name = name

    def become(self, name: str) -> None:
        """Change to a state along an arrow. Raises ValueError, which is a bug, if there is no arrow."""
        if (self.name, name) not in _ARROWS:
            raise ValueError(f"a container that is {self.name} cannot become {name}")
        self.name = name

    @property
    def can_start(self) -> bool:
        return self.name == CREATED

    @property
    def is_starting(self) -> bool:
        return self.name == STARTING

    @property
    def can_exec(self) -> bool:
        """Whether the container's program runs."""
        return self.name == RUNNING

    @property
    def has_processes(self) -> bool:
        """Whether processes must be killed before the container can be deleted."""
        return self.name in (STARTING, RUNNING)

    @property
    def is_over(self) -> bool:
        return self.name == EXITED
