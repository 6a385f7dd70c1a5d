"""A command executed in a container: the part common to ExecSync and Exec."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from pods.errors import FailedPrecondition, PodError, Unavailable
from runtime.client import ShimClient, ShimGone, ShimSilent
from runtime.errors import NotRunning, RuntimeCoreError
from runtime.wire import calls

# Not the daemon's pid: in a PID namespace of its own it has the same pid after a restart, while commands of its
# predecessor still run.
_DAEMON: Final = secrets.token_hex(4)
_numbers = itertools.count(1)


def fresh_key() -> str:
    """Return a key for a command or attachment that no daemon has used with this shim before."""
    return f"{_DAEMON}-{next(_numbers)}"


class Command:
    """An executed command. It is requested from the shim at once; `fds`, its standard streams, may be closed then."""

    def __init__(
        self, shim: ShimClient, container_id: str, argv: Sequence[str], fds: Sequence[int], *, terminal: bool = False
    ) -> None:
        self._shim = shim
        self._container_id = container_id
        self._key = fresh_key()
        # Who asked is the only one to enforce a timeout, and to read the output: the command must not outlive it.
        call = calls.Exec(container_id, self._key, tuple(argv), terminal, bound=True)
        self.answer = shim.begin(call, fds)

    async def running(self) -> int:
        """Wait until the program runs. Returns our end of its terminal, -1 without one. Raises RuntimeCoreError."""
        fds = await self._shim.call_for_descriptors(calls.WaitExecRunning(self._container_id, self._key))
        if self.answer.done() and self.answer.exception() is not None:
            self.answer.result()
        return fds[0] if fds else -1

    async def ended(self, timeout: float | None = None) -> bool:
        """Wait at most `timeout` seconds for the end. Returns whether it has ended."""
        # Not `await self.answer`: cancelling the caller would cancel the answer too, which would look like the end.
        await asyncio.wait({self.answer}, timeout=timeout)
        return self.answer.done()

    def exit_code(self) -> int:
        """Return the exit code of an ended command. Raises RuntimeCoreError if it never ran."""
        return self.answer.result().code

    def kill(self) -> None:
        """Kill the command and everything that it started, unless it has ended."""
        unheard = self.answer.done() and isinstance(self.answer.exception(), ShimSilent)  # it may run the command later
        if unheard or not self.answer.done():
            self._shim.tell(calls.KillExec(self._container_id, self._key))


@contextlib.contextmanager
def explained(operation: str, container_id: str, succeeded: Callable[[], bool]) -> Iterator[None]:
    """Turn a shim's errors into this room's. `succeeded` tells whether another shim has its container now.

    What the lost shim had begun is Unavailable: another try reaches the other shim. The message says that this one may
    have had its effects.
    """
    try:
        yield
    except ShimGone as error:
        if succeeded():
            raise Unavailable(
                f"{operation} container {container_id}: the pod's shim died meanwhile, and what it had begun is lost; "
                "the container runs on, with another shim"
            ) from error
        raise FailedPrecondition(f"container {container_id} is gone") from error
    except NotRunning as error:  # its exit is not recorded yet
        raise FailedPrecondition(str(error)) from error
    except RuntimeCoreError as error:
        raise PodError(f"{operation} container {container_id}: {error}") from error
