"""Runs a container's hooks in a process of their own, because the shim's loop must not wait."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, Protocol

from linux import syscalls
from runtime.errors import RuntimeCoreError, failing
from runtime.logs.writer import complain
from runtime.process.hooks import run_hooks
from runtime.process.init import leave_the_loop
from runtime.spec.values import Hook, Spec
from runtime.wire.reports import Failed, decode, encode

Failure = RuntimeCoreError | None


class Children(Protocol):
    """The part of a shim that watches its children."""

    def on_exit(self, pid: int, callback: Callable[[int], None]) -> None: ...


class ContainerHooks:
    """The hooks that init does not run. Callbacks get the first failure, or None if all succeeded."""

    def __init__(self, spec: Spec, container_id: str, bundle: str, children: Children, *, ran: bool = False) -> None:
        """`ran`: creation hooks have run already."""
        self._spec = spec
        self._id = container_id
        self._bundle = bundle
        self._children = children
        self._have_run = ran

    @property
    def have_run(self) -> bool:
        """Whether any of the hooks before poststop has run."""
        return self._have_run

    def begin_creation(self, pid: int, done: Callable[[dict[str, Any], Failure], None]) -> None:
        """Start prestart and createRuntime hooks. `done` also gets the state for the init's own hooks."""
        self._have_run = True
        hooks, state = self._spec.hooks, self._state("creating", pid)
        events = (("prestart", hooks.prestart), ("createRuntime", hooks.create_runtime))
        self._begin(events, state, lambda failure: done(state, failure))

    def run_creation(self, pid: int) -> None:
        """Run prestart and createRuntime hooks, for a process that may wait. Raises the first failure."""
        state = self._state("creating", pid)
        run_hooks("prestart", self._spec.hooks.prestart, state)
        run_hooks("createRuntime", self._spec.hooks.create_runtime, state)

    def begin_poststart(self, pid: int, done: Callable[[Failure], None]) -> None:
        """Start poststart hooks. Calls `done` at once if there are none."""
        self._have_run = True
        self._begin((("poststart", self._spec.hooks.poststart),), self._state("running", pid), done)

    def begin_poststop(self) -> None:
        """Start poststop hooks if creation hooks have run. A failure is logged, and the next hook runs."""
        if self._have_run:
            events = (("poststop", self._spec.hooks.poststop),)
            self._begin(events, self._state("stopped", 0), lambda _failure: None, self._log)

    def _log(self, failure: RuntimeCoreError) -> None:
        complain(f"container {self._id}: {failure}")

    def _state(self, status: str, pid: int) -> dict[str, Any]:
        """Return the state that hooks read on standard input (runtime-spec runtime.md "State")."""
        return {
            "ociVersion": self._spec.oci_version,
            "id": self._id,
            "status": status,
            "pid": pid,
            "bundle": self._bundle,
            "annotations": dict(self._spec.annotations),
        }

    def _begin(
        self,
        events: Sequence[tuple[str, Sequence[Hook]]],
        state: Mapping[str, Any],
        done: Callable[[Failure], None],
        on_failure: Callable[[RuntimeCoreError], None] | None = None,
    ) -> None:
        """Run the hooks in a child process up to the first failure, or with `on_failure` all of them."""
        if not any(hooks for _kind, hooks in events):
            done(None)
            return
        try:
            pid, report_fd = _fork()
        except RuntimeCoreError as error:
            if on_failure is not None:
                on_failure(error)
            done(error)
            return
        if pid == 0:
            _run(events, state, report_fd, go_on=on_failure is not None)

        def ended(status: int) -> None:
            os.lseek(report_fd, 0, os.SEEK_SET)
            with os.fdopen(report_fd, "rb") as file:
                failures = [report.error for line in file if isinstance(report := decode(line), Failed)]
            if status and not failures:
                failures = [RuntimeCoreError(f"run hooks: the process that runs them exited with {status}")]
            for failure in failures:
                if on_failure is not None:
                    on_failure(failure)
            done(failures[0] if failures else None)

        self._children.on_exit(pid, ended)


def _fork() -> tuple[int, int]:
    """Fork, and return the pid and a memfd for the child's reports. Raises OperationFailed.

    Not a pipe: nobody reads before the child has exited, and all output of the hooks may not fit into a pipe.
    """
    with failing("make process for", "hooks"):
        report_fd = os.memfd_create("hooks", os.MFD_CLOEXEC)
        try:
            return syscalls.fork(), report_fd
        except OSError:
            os.close(report_fd)
            raise


def _run(
    events: Sequence[tuple[str, Sequence[Hook]]], state: Mapping[str, Any], report_fd: int, *, go_on: bool
) -> NoReturn:
    """Run the hooks in the child. Write a line to `report_fd` for each failure."""
    status = 1
    try:
        leave_the_loop()
        syscalls.close_all_from(3, keep=(report_fd,))
        for kind, hooks in events:
            for index, hook in enumerate(hooks):
                try:
                    run_hooks(kind, (hook,), state, first=index)
                except RuntimeCoreError as error:
                    os.write(report_fd, encode(Failed(error)) + b"\n")
                    if not go_on:
                        os._exit(status)
        status = 0
    finally:
        os._exit(status)
