"""Runs execs in a container of another OCI runtime, with its `exec --detach`."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

from runtime.errors import RuntimeCoreError
from runtime.shim.execs import kill_family
from runtime.shim.holdings import Holdings
from runtime.shim.launch.external_program import NO_STREAMS, ConsoleSocket, Program, adopted, console_flag
from runtime.shim.reply import Reply
from runtime.spec.values import with_term
from runtime.wire.calls import Descriptors, Exec, ExecEnded


class DetachedCommands:
    """Lets the runtime's command start each exec, and adopts the process."""

    def __init__(self, held: Holdings, program: Program) -> None:
        self._held = held
        self._program = program
        self._running: dict[str, _Command] = {}

    def begin(self, call: Exec, fds: Sequence[int], reply: Reply) -> None:
        bundle = self._held.bundle
        place = os.path.join(bundle, f"exec-{call.exec}")
        with open(f"{place}.json", "w") as file:
            json.dump(self._process(call), file)
        console = ConsoleSocket(bundle, os.path.basename(place)) if call.terminal else None
        command = _Command(
            self._held, self._program, place, console, reply, lambda: self._running.pop(call.exec, None)
        )
        self._running[call.exec] = command
        words = ["exec", "--process", f"{place}.json", "--pid-file", f"{place}.pid", "--detach"]
        streams = NO_STREAMS if call.terminal else (fds[0], fds[1], fds[2])
        try:
            self._program.run([*words, *console_flag(console), self._held.id], streams, command.made)
        except BaseException:
            command.close()
            raise

    def _process(self, call: Exec) -> dict[str, Any]:
        with open(os.path.join(self._held.bundle, "config.json"), "rb") as file:
            process: dict[str, Any] = json.load(file)["process"]
        process |= {"args": list(call.args), "terminal": call.terminal}
        process.pop("consoleSize", None)
        if call.terminal:
            process["env"] = list(with_term(process.get("env", ())))
        return process

    def wait_running(self, key: str, reply: Reply) -> None:
        command = self._running.get(key)
        if command is None:
            reply(Descriptors())
        else:
            command.wait_running(reply)

    def kill(self, key: str) -> None:
        if (command := self._running.get(key)) is not None:
            command.kill()

    def forget(self) -> None:
        """Do nothing: each command is removed when it exits."""


class _Command:
    """A detached exec, from the runtime's command to the process's exit."""

    def __init__(
        self,
        held: Holdings,
        program: Program,
        place: str,
        console: ConsoleSocket | None,
        reply: Reply,
        forget: Callable[[], object],
    ) -> None:
        self._held = held
        self._program = program
        self._place = place
        self._console = console
        self._reply = reply
        self._forget = forget
        self._running_reply: Reply | None = None
        self._master = -1
        self._pid = 0
        self._pidfd = -1
        self._killed = False

    def wait_running(self, reply: Reply) -> None:
        """Reply when the process runs, with its terminal's master if it has one; or when it never will."""
        self._running_reply = reply
        if self._pid:
            self._tell_running()

    def kill(self) -> None:
        """Kill the process and everything that it started, now or as soon as it exists."""
        self._killed = True
        self._kill_family()

    def _kill_family(self) -> None:
        if self._pidfd >= 0 and self._held.cgroup is not None:
            kill_family(self._pid, self._pidfd, self._held.cgroup)

    def made(self, status: int) -> None:
        try:
            if status:
                raise self._program.failure("exec", status)
            self._pid, self._pidfd = adopted(f"{self._place}.pid")
            self._held.supervisor.on_exit(self._pid, self._exited)
            if self._console is not None:
                self._master = self._console.master()
        except RuntimeCoreError as error:
            if self._pid == 0:
                self._reply(error)
                self._tell_running()
                self.close()
                return
            self._killed = True
        self._tell_running()
        if self._killed:
            self._kill_family()

    def _tell_running(self) -> None:
        reply, self._running_reply = self._running_reply, None
        if reply is not None:
            reply(Descriptors((self._master,) if self._master >= 0 else ()))

    def _exited(self, status: int) -> None:
        self._reply(ExecEnded(128 - status if status < 0 else status))
        self._tell_running()
        self.close()

    def close(self) -> None:
        self._forget()
        if self._console is not None:
            self._console.close()
        for suffix in (".json", ".pid"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._place + suffix)
        for fd in (self._pidfd, self._master):
            if fd >= 0:
                os.close(fd)
