"""The life of a container in its shim, by the names that crispd is told of it.

    (create) ─▶ CREATED ──a start──▶ STARTING ──its program runs──▶ RUNNING ──its init ends──▶ EXITED ─▶ (delete)
                   │                     │                                                       ▲
                   └─▶ (delete)          └───────────────────the start fails─────────────────────┘

    CREATED   its rootfs is mounted. A start that is refused before there is a process leaves it so.
    STARTING  it has a process, and its program does not run yet: hooks run, another runtime or criu is at work. It can
              only be killed, and be waited for. When its init ends meanwhile, the start fails, or the end is told after
              it.
    RUNNING   it can be signalled, have commands, onlookers and other limits, be frozen, and dumped by criu.
    EXITED    its exit status is on disk before anybody hears of it.

Containers of another runtime and restored ones live so, too. crispd draws what it makes of this in
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
    """One container's place in the picture; `name` is one of the above."""

    __slots__ = ("name",)

    def __init__(self) -> None:
        self.name = CREATED

    def become(self, name: str) -> None:
        """Follow an arrow. Raises ValueError, for a fault of ours, where there is none."""
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
        """Whether its program runs."""
        return self.name == RUNNING

    @property
    def has_processes(self) -> bool:
        """Whether there is something to kill before it can be deleted."""
        return self.name in (STARTING, RUNNING)

    @property
    def is_over(self) -> bool:
        return self.name == EXITED
