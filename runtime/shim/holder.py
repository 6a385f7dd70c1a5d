"""Starts a placeholder process for a scope: systemd makes no scope without a process (systemd.scope(5))."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final, NoReturn

from linux import syscalls
from runtime.errors import failing
from runtime.light import contextlib, signal
from runtime.process.infra import OUTLIVE, infra_main
from runtime.process.init import leave_the_loop
from runtime.process.parent import own_pidfd

_NOBODY: Final = 65535


def start_holder(program: int, empty_mount_namespace: int, sandbox: str) -> tuple[int, int]:
    """Clone a placeholder: return its pid and pidfd. It does nothing, takes a page or two, and dies with the caller."""
    with failing("clone", "placeholder process of a scope"), own_pidfd() as caller, _blocked(OUTLIVE):
        pid, pidfd = syscalls.clone(0)
        if pid == 0:
            try:
                _hold(caller, program, empty_mount_namespace, f"crisp-scope {sandbox}")
            finally:
                os._exit(1)
    return pid, pidfd


@contextlib.contextmanager
def _blocked(number: int) -> Iterator[None]:
    """Block a signal, also in the process that is born meanwhile: it may come before its program knows it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _hold(caller: int, program: int, empty_mount_namespace: int, title: str) -> NoReturn:
    leave_the_loop()
    infra_main(
        parent=caller,
        program_fd=program,
        mount_namespace=empty_mount_namespace,
        title=title,
        hostname="",
        new_network=False,
        last_pid=0,
        new_uts=False,
        sysctls={},
        default_sysctls={},
        uid=_NOBODY,
        gid=_NOBODY,
    )
