"""The node's shims: forks them, connects again after a restart, passes on their events, and ends them.

A shim that does not answer is set apart (`runtime.client.ShimClient`): it harms its own pod alone, and no longer than
until that pod is stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

from linux import processes
from linux.mounts import unmount_if_mounted, unpin_namespace
from pods import pod_files
from pods.cgroups.driver import Cgroups
from pods.errors import PodError, Unavailable
from pods.settings import NodeSettings
from runtime.cgroups import SHIM_CGROUP
from runtime.client import AnswerOf, Call, ShimClient, ShimGone, ShimSilent, Zygote
from runtime.errors import RuntimeCoreError, failing
from runtime.wire.calls import (
    RENEW,
    SECOND_KEEPER_NAME,
    ZYGOTE_NAME,
    Event,
    Exited,
    GetState,
    InfraExited,
    Keep,
    Made,
    MakePod,
    ShimState,
    Shutdown,
    Sync,
)

_log = logging.getLogger("crisp.pods")

ExitHandler = Callable[[Exited], None]
LossHandler = Callable[[str], None]  # sandbox id
ReturnHandler = Callable[[str, ShimState], None]  # sandbox id

_ROLL_CALL_SECONDS: Final = 60.0
_MOST_SUCCESSORS: Final = 6  # a keeper starts no more in a short time
# After a pod's shim the next one is forked: not before the pod's containers run, for which the processor is needed.
_FORK_AHEAD_SECONDS: Final = 0.1
_END_SECONDS: Final = 10.0  # for a killed shim to go: the kernel may hold it in a system call


class Shims:
    """Connections to shims by sandbox id. `on_exit`, `on_loss` and `on_return` are called on the event loop.

    `on_return` gets the state of a shim that answers again.
    """

    def __init__(
        self,
        settings: NodeSettings,
        cgroups: Cgroups,
        on_exit: ExitHandler,
        on_loss: LossHandler,
        on_return: ReturnHandler,
    ) -> None:
        self._settings = settings
        self._cgroups = cgroups
        self._zygote = Zygote(cgroups.driver.place_shims, self._zygote_lost, settings.shim_sleep)
        self._clients: dict[str, ShimClient] = {}
        self.successions = 0  # shims that died and had a successor
        self.idmap_refusal = "not asked yet"  # why pods cannot have user namespaces; "" if they can
        self._on_exit = on_exit
        self._on_loss = on_loss
        self._on_return = on_return
        self._roll_call: asyncio.TimerHandle | None = None
        self._roll_calls = 0
        self._replacing: asyncio.Task[None] | None = None  # of the zygote

    def __len__(self) -> int:
        return len(self._clients)

    async def start(self) -> None:
        """Start the zygote, and test whether image layers can be id-mapped. Raises RuntimeCoreError, PodError."""
        await self._zygote.start()
        directory = self._settings.root / "image"
        self.idmap_refusal = await asyncio.to_thread(self._zygote.probe_idmap, directory)
        self._zygote.fork_ahead()
        self._call_the_roll()

    def _call_the_roll(self) -> None:
        """Ask every shim now and then: one that nobody needs right now may have stopped, and its logs with it.

        Of those that sleep one at a time, in turn: it is their keeper that may have stopped.
        """
        clients = [client for client in self._clients.values() if client.alive and not client.silent_since]
        resting = [client for client in clients if client.resting is not None]
        self._roll_calls += 1
        called = resting[self._roll_calls % len(resting)] if resting else None
        for client in clients:
            if client.resting is None or client is called:
                client.tell(Sync())
        self._roll_call = asyncio.get_running_loop().call_later(_ROLL_CALL_SECONDS, self._call_the_roll)

    async def states(self, seconds: float) -> list[ShimState]:
        """Return the states of all shims that tell them within some seconds, or have told them before they slept."""
        told = [state for one in self._clients.values() if (state := one.resting) is not None]
        awake = (one for one in self._clients.values() if one.alive and not one.silent_since and one.resting is None)
        if asked := [one.begin(GetState()) for one in awake]:
            done, _ = await asyncio.wait(asked, timeout=seconds)
            told += [answer.result() for answer in done if answer.exception() is None]
        return told

    def asleep(self) -> int:
        """Return how many shims have left until they are needed."""
        return sum(one.resting is not None for one in self._clients.values())

    def silent(self) -> Iterator[tuple[str, float]]:
        """Yield the sandbox of each shim that does not answer, and since when (time.monotonic())."""
        for sandbox_id, client in self._clients.items():
            if client.alive and client.silent_since:
                yield sandbox_id, client.silent_since

    async def make_pod(self, call: MakePod) -> Made:
        """Have a new shim make the pod's kernel objects. Raises RuntimeCoreError after undoing them."""
        try:
            return await self._make_pod(call)
        finally:
            asyncio.get_running_loop().call_later(_FORK_AHEAD_SECONDS, self._zygote.fork_ahead)

    async def _make_pod(self, call: MakePod) -> Made:
        generation = self._zygote.generation
        try:
            return await self._ask_new_shim(call)
        except (ShimGone, ShimSilent):
            # A dying zygote loses the requests that it has accepted, and may accept some more. A stopped one forks
            # nothing.
            self._drop(call.sandbox)
            await self._zygote.replace(generation)
        try:
            return await self._ask_new_shim(call)
        except ShimSilent:
            self._drop(call.sandbox)  # a shim without a pod ends with its connection
            raise

    async def _ask_new_shim(self, call: MakePod) -> Made:
        client = await self._fork(call.sandbox)
        made = await client.call(call)
        client.tell(Keep())
        return made

    def _drop(self, sandbox_id: str) -> None:
        if (client := self._clients.pop(sandbox_id, None)) is not None:
            client.close()

    async def _fork(self, sandbox_id: str) -> ShimClient:
        client = await self._zygote.spawn(*self._handlers(sandbox_id))
        self._clients[sandbox_id] = client
        return client

    def find(self, sandbox_id: str) -> ShimClient:
        """Connect to the sandbox's living shim: that of an earlier daemon, or a successor. Raises ShimGone."""
        client = ShimClient.connect(self._settings.sandbox_dir(sandbox_id), *self._handlers(sandbox_id))
        self._clients[sandbox_id] = client
        return client

    def of(self, sandbox_id: str) -> ShimClient:
        """Return the connected shim. Raises ShimGone."""
        client = self._clients.get(sandbox_id)
        if client is None or not client.alive:
            raise ShimGone(f"the shim of pod sandbox {sandbox_id} is gone")
        return client

    def has(self, sandbox_id: str) -> bool:
        """Whether a shim of the sandbox is connected."""
        client = self._clients.get(sandbox_id)
        return client is not None and client.alive

    async def ask(self, sandbox_id: str, call: Call[AnswerOf]) -> AnswerOf:
        """Make a call that may be made twice: if the shim dies meanwhile, of its successor. Raises as `call` does."""
        while True:
            client = self.of(sandbox_id)
            try:
                return await client.call(call)
            except ShimGone:
                if self._clients.get(sandbox_id) in (None, client):
                    raise

    def has_successor(self, sandbox_id: str, shim: ShimClient) -> bool:
        """Whether another shim has taken over from this one."""
        return self.has(sandbox_id) and self._clients[sandbox_id] is not shim

    # -- versions -----------------------------------------------------------------------------------------------------

    def of_other_versions(self) -> int:
        """Return how many shims have another version's code."""
        return sum(map(self._is_of_other_version, self._clients.values()))

    def renewable(self) -> list[str]:
        """Return the sandboxes whose shims have another version's code, and can be renewed."""
        return [
            sandbox_id
            for sandbox_id, client in self._clients.items()
            if self._is_of_other_version(client) and RENEW in client.abilities
        ]

    def _is_of_other_version(self, client: ShimClient) -> bool:
        return client.alive and client.code != self._zygote.code

    async def renew(self, sandbox_id: str) -> int:
        """Replace a shim by one of this version, and return its pid. Raises RuntimeCoreError if it has to stay."""
        client = self.of(sandbox_id)
        await self._zygote.renew(client)
        return client.pid

    # -- keepers ------------------------------------------------------------------------------------------------------

    def keep(self, sandbox_id: str) -> None:
        """Have the zygote keep what a successor of the shim needs. The shim's own keeper is dead."""
        self._zygote.keep(self.of(sandbox_id))

    def _zygote_lost(self) -> None:
        _log.error("the zygote died; starting another one, as the shims' keeper")
        self._replacing = asyncio.get_running_loop().create_task(self._replace_keeper(self._zygote.generation))

    async def _replace_keeper(self, generation: int) -> None:
        try:
            await self._zygote.replace(generation)
        except (RuntimeCoreError, PodError, OSError) as error:
            _log.error("could not start a zygote; the next pod tries again", extra={"error": error})
            return
        for sandbox_id, client in list(self._clients.items()):
            with contextlib.suppress(ShimGone, ShimSilent):
                if not (await client.call(GetState())).kept and self._clients.get(sandbox_id) is client:
                    self._zygote.keep(client)

    # -- the end ------------------------------------------------------------------------------------------------------

    async def end(self, sandbox_id: str) -> None:
        """Shut the shim down, or kill it if it does not answer; unmount what it left on the host.

        Raises RuntimeCoreError, Unavailable.
        """
        if not await self._shut_down(sandbox_id):
            _end_infra(sandbox_id)
        if (client := self._clients.pop(sandbox_id, None)) is not None:
            client.close()
        directory = self._settings.sandbox_dir(sandbox_id)
        unmount_if_mounted(str(directory / "shm"))
        pod_files.unmount(directory)

    async def _shut_down(self, sandbox_id: str) -> bool:
        """Return whether a shim has undone everything."""
        for _successor in range(_MOST_SUCCESSORS):
            try:
                await (self._clients.get(sandbox_id) or self.find(sandbox_id)).call(Shutdown())
                return True
            except ShimGone:
                client = self._clients.get(sandbox_id)
                if client is None or not client.alive:
                    return False
                _log.warning("shim died while it shut down", extra={"sandbox": sandbox_id})
            except ShimSilent:
                await self.kill(sandbox_id)
        return False

    async def kill(self, sandbox_id: str) -> None:
        """Kill a shim that does not answer; a successor, if there is one, is connected then.

        Raises Unavailable if the kernel does not let it go.
        """
        client = self._clients.get(sandbox_id)
        if client is None or not client.alive or not client.pid:
            return
        # A sandbox's processes have it in their titles.
        if (pidfd := processes.open_if(client.pid, lambda: sandbox_id in processes.title(client.pid))) < 0:
            self._drop(sandbox_id)  # its keeper does not answer either
            return
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, pidfd)
            _log.error("killing a shim that does not answer", extra={"sandbox": sandbox_id, "pid": client.pid})
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            ended = asyncio.Event()
            loop = asyncio.get_running_loop()
            loop.add_reader(pidfd, ended.set)
            undo.callback(loop.remove_reader, pidfd)
            try:
                await asyncio.wait_for(ended.wait(), _END_SECONDS)
            except TimeoutError:
                raise Unavailable(
                    f"end pod sandbox {sandbox_id}: the kernel holds its shim (pid {client.pid}) in a system call, as "
                    "for a file system whose server does not answer: end that server, or unmount it with `umount -f`"
                ) from None
        client.lose()

    def end_infra(self, sandbox_id: str) -> None:
        """End the infra process of a pod that has no shim any more."""
        _end_infra(sandbox_id)

    def lose(self, sandbox_id: str) -> None:
        """Handle a loss again that came before the sandbox was known."""
        self._on_loss(sandbox_id)

    def unpin(self, path: str | Path) -> None:
        """Unmount a pod's network namespace. Raises RuntimeCoreError."""
        with failing("unpin network namespace", str(path)):
            unpin_namespace(str(path))

    def close(self) -> None:
        """Disconnect; the shims run on."""
        if self._roll_call is not None:
            self._roll_call.cancel()
        if self._replacing is not None:
            self._replacing.cancel()
        for client in self._clients.values():
            client.close()
        self._clients.clear()
        self._zygote.close()
        self._cgroups.remove_unused(SHIM_CGROUP)  # stays while any shim, of this or another daemon, is in it

    def _handlers(
        self, sandbox_id: str
    ) -> tuple[Callable[[Event], None], Callable[[], None], Callable[[ShimState | None], None]]:
        def on_event(event: Event) -> None:
            if isinstance(event, Exited):
                self._on_exit(event)
            elif isinstance(event, InfraExited) and sandbox_id in self._clients:
                self._on_loss(sandbox_id)

        def on_lost() -> None:
            if self._clients.pop(sandbox_id, None) is None:
                return
            try:
                successor = self.find(sandbox_id)
            except ShimGone:
                self._on_loss(sandbox_id)
                return
            self.successions += 1
            _log.warning("shim died; a successor takes over", extra={"sandbox": sandbox_id})
            successor.begin(GetState()).add_done_callback(partial(succeeded, successor))

        def succeeded(successor: ShimClient, answer: asyncio.Future[ShimState]) -> None:
            if not answer.cancelled() and answer.exception() is None and self._clients.get(sandbox_id) is successor:
                self._on_return(sandbox_id, answer.result())

        def on_voice(state: ShimState | None) -> None:
            if state is None:
                _log.error("shim does not answer; its pod is set apart", extra={"sandbox": sandbox_id})
                if (client := self._clients.get(sandbox_id)) is not None and client.asleep is not None:
                    _end_keeper(client.asleep.keeper)
            else:
                _log.warning("shim answers again", extra={"sandbox": sandbox_id})
                self._on_return(sandbox_id, state)

        return on_event, on_lost, on_voice


def _end_keeper(pid: int) -> None:
    """Kill a keeper that does not start the successor of a shim that sleeps: the other one does it then."""
    if pid:
        _log.error("killing a keeper of shims that does not answer", extra={"pid": pid})
        processes.end(pid, lambda: processes.name(pid) in (ZYGOTE_NAME, SECOND_KEEPER_NAME))


def _end_infra(sandbox_id: str) -> None:
    processes.end_titled(f"crisp-infra {sandbox_id}")
