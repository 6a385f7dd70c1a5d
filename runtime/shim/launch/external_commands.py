"""Runs execs in a container of another OCI runtime, with its `exec --detach`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Final

from runtime.errors import RuntimeCoreError
from runtime.light import contextlib, json, signal
from runtime.shim.execs import kill_family
from runtime.shim.holdings import Holdings
from runtime.shim.launch.external_program import NO_STREAMS, ConsoleSocket, Program, adopted, console_flag
from runtime.shim.reply import Reply
from runtime.spec.values import with_term
from runtime.wire.calls import Descriptors, Exec, ExecEnded

_INNER: Final = ".inner"  # suffix of the file with a process's pid inside the sandbox


class DetachedCommands:
    """Lets the runtime's command start each exec, and adopts the process.

    In a sandbox, that is not the process itself, but a command of the runtime that ends with it.
    """

    def __init__(self, held: Holdings, program: Program, *, in_sandbox: bool = False) -> None:
        self._held = held
        self._program = program
        self._in_sandbox = in_sandbox
        self._running: dict[str, _Command] = {}

    @property
    def running(self) -> bool:
        return bool(self._running)

    def begin(self, call: Exec, fds: Sequence[int], reply: Reply) -> None:
        bundle = self._held.bundle
        place = os.path.join(bundle, f"exec-{call.exec}")
        with open(f"{place}.json", "w") as file:
            file.write(json.dumps(self._process(call)))
        console = ConsoleSocket(bundle, os.path.basename(place)) if call.terminal else None
        kind = _SandboxedCommand if self._in_sandbox else _Command
        command = kind(self._held, self._program, place, console, reply, lambda: self._running.pop(call.exec, None))
        self._running[call.exec] = command
        words = ["exec", "--process", f"{place}.json", "--pid-file", f"{place}.pid", "--detach", *command.words()]
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

    def words(self) -> list[str]:
        """Return more flags for `exec`."""
        return []

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
        for suffix in (".json", ".pid", _INNER):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._place + suffix)
        for fd in (self._pidfd, self._master):
            if fd >= 0:
                os.close(fd)


class _SandboxedCommand(_Command):
    """An exec in a sandbox, whose process only the runtime can kill."""

    def words(self) -> list[str]:
        return ["--internal-pid-file", self._place + _INNER]

    def _kill_family(self) -> None:
        """Kill the process and those in its process group."""
        try:
            with open(self._place + _INNER) as file:
                pid = int(file.read())
        except (FileNotFoundError, ValueError):  # it does not run yet, or not any more
            return
        words = ["kill", "--pgid", str(pid), self._held.id, str(int(signal.SIGKILL))]
        self._program.run(words, NO_STREAMS, lambda _status: None)
