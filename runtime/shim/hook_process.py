"""Hooks of a container in its shim: run by a process of their own, since the shim's loop waits for nobody."""

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
    """The part of a shim that knows its children."""

    def on_exit(self, pid: int, callback: Callable[[int], None]) -> None: ...


class ContainerHooks:
    """The hooks that are not init's to run. Callbacks get the first failure, or None once all have ended well."""

    def __init__(self, spec: Spec, container_id: str, bundle: str, children: Children) -> None:
        self._spec = spec
        self._id = container_id
        self._bundle = bundle
        self._children = children
        self._have_run = False

    def begin_creation(self, pid: int, done: Callable[[dict[str, Any], Failure], None]) -> None:
        """prestart and createRuntime; `done` also gets the state that init hands to its own hooks."""
        self._have_run = True
        hooks, state = self._spec.hooks, self._state("creating", pid)
        moments = (("prestart", hooks.prestart), ("createRuntime", hooks.create_runtime))
        self._begin(moments, state, lambda failure: done(state, failure))

    def run_creation(self, pid: int) -> None:
        """The same for a process that may wait. Raises the first failure."""
        state = self._state("creating", pid)
        run_hooks("prestart", self._spec.hooks.prestart, state)
        run_hooks("createRuntime", self._spec.hooks.create_runtime, state)

    def begin_poststart(self, pid: int, done: Callable[[Failure], None]) -> None:
        """poststart; at once `done` if there are none."""
        self._have_run = True
        self._begin((("poststart", self._spec.hooks.poststart),), self._state("running", pid), done)

    def begin_poststop(self) -> None:
        """poststop, for a container that came to be. One that fails is told of, and the next one runs."""
        if self._have_run:
            moments = (("poststop", self._spec.hooks.poststop),)
            self._begin(moments, self._state("stopped", 0), lambda _failure: None, self._tell)

    def _tell(self, failure: RuntimeCoreError) -> None:
        complain(f"container {self._id}: {failure}")

    def _state(self, status: str, pid: int) -> dict[str, Any]:
        """What hooks get on their standard input (runtime-spec runtime.md "State")."""
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
        moments: Sequence[tuple[str, Sequence[Hook]]],
        state: Mapping[str, Any],
        done: Callable[[Failure], None],
        tell: Callable[[RuntimeCoreError], None] | None = None,
    ) -> None:
        """Have a process run them, to the first that fails; to the last, if there is a `tell` for each failure."""
        if not any(hooks for _kind, hooks in moments):
            done(None)
            return
        try:
            pid, told = _fork()
        except RuntimeCoreError as error:
            if tell is not None:
                tell(error)
            done(error)
            return
        if pid == 0:
            _run(moments, state, told, go_on=tell is not None)

        def ended(status: int) -> None:
            os.lseek(told, 0, os.SEEK_SET)
            with os.fdopen(told, "rb") as file:
                failures = [report.error for line in file if isinstance(report := decode(line), Failed)]
            if status and not failures:
                failures = [RuntimeCoreError(f"run hooks: their process ended with {status}")]
            for failure in failures:
                if tell is not None:
                    tell(failure)
            done(failures[0] if failures else None)

        self._children.on_exit(pid, ended)


def _fork() -> tuple[int, int]:
    """A child, and a nameless file for what it has to tell. Raises OperationFailed.

    Nobody reads before it has ended, and a pipe may take less than all that the hooks have printed.
    """
    with failing("make process for", "hooks"):
        told = os.memfd_create("hooks", os.MFD_CLOEXEC)
        try:
            return syscalls.fork(), told
        except OSError:
            os.close(told)
            raise


def _run(
    moments: Sequence[tuple[str, Sequence[Hook]]], state: Mapping[str, Any], telling: int, *, go_on: bool
) -> NoReturn:
    """Each failure is a line on `telling`."""
    status = 1
    try:
        leave_the_loop()
        syscalls.close_all_from(3, keep=(telling,))
        for kind, hooks in moments:
            for index, hook in enumerate(hooks):
                try:
                    run_hooks(kind, (hook,), state, first=index)
                except RuntimeCoreError as error:
                    os.write(telling, encode(Failed(error)) + b"\n")
                    if not go_on:
                        os._exit(status)
        status = 0
    finally:
        os._exit(status)
