"""A command that runs in a container beside its own process: what ExecSync and Exec share."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from pods.errors import FailedPrecondition, PodError
from runtime.client import ShimClient, ShimGone
from runtime.errors import NotRunning, RuntimeCoreError
from runtime.wire import calls

if TYPE_CHECKING:
    pass

# Not the process's id: a daemon with a PID namespace of its own has the same after a restart, while commands of the
# one before it still run.
_DAEMON: Final = secrets.token_hex(4)
_numbers = itertools.count(1)


def fresh_key() -> str:
    """A name for a command or an attachment that its shim has not heard from any daemon yet."""
    return f"{_DAEMON}-{next(_numbers)}"


class Command:
    """Begun when it is made: its shim has been asked. `fds` are its standard streams, and may be closed after that."""

    def __init__(
        self, shim: ShimClient, container_id: str, argv: Sequence[str], fds: Sequence[int], *, terminal: bool = False
    ) -> None:
        self._shim = shim
        self._container_id = container_id
        self._key = fresh_key()
        self.answer = shim.begin(calls.Exec(container_id, self._key, tuple(argv), terminal), fds)

    async def running(self) -> int:
        """Wait until the program runs: the other end of its terminal, -1 without one. Raises RuntimeCoreError."""
        fds = await self._shim.call_for_descriptors(calls.WaitExecRunning(self._container_id, self._key))
        if self.answer.done() and self.answer.exception() is not None:
            self.answer.result()
        return fds[0] if fds else -1

    async def ended(self, timeout: float | None = None) -> bool:
        """Wait at most so many seconds for the end; whether it came."""
        # Not `await self.answer`: a cancellation of the caller would cancel the answer too, and look like the end.
        await asyncio.wait({self.answer}, timeout=timeout)
        return self.answer.done()

    def exit_code(self) -> int:
        """Of an ended command. Raises RuntimeCoreError when it never ran."""
        return self.answer.result().code

    def kill(self) -> None:
        """End it and all that it started, if it has not ended by itself."""
        if not self.answer.done():
            with contextlib.suppress(ShimGone):
                self._shim.begin(calls.KillExec(self._container_id, self._key))


@contextlib.contextmanager
def explained(operation: str, container_id: str) -> Iterator[None]:
    """Turn a shim's errors into those of this room."""
    try:
        yield
    except ShimGone as error:
        raise FailedPrecondition(f"container {container_id} is gone") from error
    except NotRunning as error:  # its exit has not reached the state yet
        raise FailedPrecondition(str(error)) from error
    except RuntimeCoreError as error:
        raise PodError(f"{operation} container {container_id}: {error}") from error
