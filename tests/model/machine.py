"""The state machine: calls from several clients, alone, raced, given up, repeated; crashes; what is true after.

The model is a list of worlds, since a race may have ended in more than one way. After each step, worlds that the daemon
does not show are dropped; none may be left without.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Final

import grpc
from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cri.admin.v1 import admin_pb2
from cri.v1 import api_pb2 as cri
from cri.v1 import api_pb2_grpc
from tests import leaks
from tests.daemon import CALL_SECONDS, Daemon
from tests.model import calls
from tests.model.calls import Answer, Call, Part
from tests.model.kernel import leftovers
from tests.model.worlds import KILLED, PROGRAMS, ContainerFacts, ContainerKind, PodKind, Seen, World
from tests.waiting import SECONDS, until

CLIENTS: Final = 3
_CALL: Final[Mapping[str, Any]] = {"timeout": CALL_SECONDS}
_STRANGER: Final = "f" * 64  # an id that nobody has
_MOST_SUCCESSORS: Final = 4  # of a shim in one minute
_CALM_STEPS: Final = 6  # between crashes, which cost a second
_clients = st.integers(0, CLIENTS - 1)
_moments = st.sampled_from([0.0, 0.002, 0.01, 0.03])  # seconds into a call
_PROGRAMS: Final = ("sleeps", "traps", "ends", *PROGRAMS)  # those that run are more likely


class NodeMachine(RuleBasedStateMachine):
    """One example: from an empty node to an empty node."""

    daemon: ClassVar[Daemon]  # set by the test
    counts: ClassVar[Counter[str]]

    def __init__(self) -> None:
        super().__init__()
        self.worlds = [World()]
        self.gone: list[str] = []
        self.calm = 0
        self.shim_deaths: Counter[str] = Counter()
        self._connect()
        self._before = leaks.Snapshot.take()

    # -- clients ------------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        self._channels = [
            grpc.insecure_channel(self.daemon.listen, options=(("grpc.use_local_subchannel_pool", 1),))
            for _ in range(CLIENTS)
        ]
        self.stubs = [api_pb2_grpc.RuntimeServiceStub(channel) for channel in self._channels]

    def _disconnect(self) -> None:
        for channel in self._channels:
            channel.close()

    # -- drawing ------------------------------------------------------------------------------------------------------

    def _pod(self, data: st.DataObject) -> str:
        living = sorted(self.worlds[0].pods, reverse=True)
        return str(data.draw(st.sampled_from([*(living * 5), *self.gone[-1:], _STRANGER])))

    def _living_container(self, data: st.DataObject) -> str:
        """One that was created or runs, a new one perhaps."""
        there = self.worlds[0].containers.values()
        if living := [one.id for one in there if one.state != cri.CONTAINER_EXITED]:
            return str(data.draw(st.sampled_from(living)))
        ready = [pod.id for pod in self.worlds[0].pods.values() if pod.ready]
        if not ready:
            taken = {(pod.kind.name, pod.kind.attempt) for pod in self.worlds[0].pods.values()}
            number = next(number for number in itertools.count() if (f"pod{number}", 0) not in taken)
            kind = PodKind(f"pod{number}", 0, data.draw(st.booleans()), data.draw(st.booleans()), "sour")
            ready = [self._make(0, calls.RunPod(kind, str(self.daemon.logs))).message.pod_sandbox_id]
        names = {one.kind.name for one in there}
        name = next(name for number in itertools.count() if (name := f"c{number}") not in names)
        program = data.draw(st.sampled_from(["sleeps", "traps", "ends", "missing"]))
        made = self._make(0, calls.Create(ready[0], ContainerKind(name, 0, program, "sour"))).message.container_id
        if program in ("sleeps", "traps") and data.draw(st.booleans()):
            self._make(0, calls.Start(made))
        return str(made)

    def _grace(self, container: str) -> int:
        """Seconds for a stop: more than any that ends by itself needs, and few for others."""
        facts = self.worlds[0].containers.get(container)
        return 60 if facts is not None and facts.trap_set else 1

    def _container(self, data: st.DataObject) -> str:
        living = list(self.worlds[0].containers)
        return str(data.draw(st.sampled_from([*(living * 5), *self.gone[-1:], _STRANGER])))

    def _run_pod(self, data: st.DataObject) -> Call:
        kind = PodKind(
            name=f"pod{data.draw(st.integers(0, 2))}",
            attempt=data.draw(st.integers(0, 1)),
            own_network=data.draw(st.sampled_from([False, False, True])),
            own_pids=data.draw(st.booleans()),
            flavour=data.draw(st.sampled_from(["sweet", "sour"])),
        )
        return calls.RunPod(kind, str(self.daemon.logs))

    def _create(self, data: st.DataObject) -> Call:
        kind = ContainerKind(
            name=f"c{data.draw(st.integers(0, 1))}",
            attempt=data.draw(st.integers(0, 1)),
            program=data.draw(st.sampled_from(_PROGRAMS)),
            flavour=data.draw(st.sampled_from(["sweet", "sour"])),
        )
        return calls.Create(self._pod(data), kind)

    def _call(self, data: st.DataObject, *kinds: type[Call]) -> Call:
        chosen = data.draw(st.sampled_from(kinds or _MUTATING + _READING))
        if chosen is calls.RunPod:
            # A pod that is there, now and then: the same call repeated.
            there = [calls.RunPod(pod.kind, str(self.daemon.logs)) for pod in self.worlds[0].pods.values()]
            return data.draw(st.sampled_from(there)) if there and data.draw(st.booleans()) else self._run_pod(data)
        if chosen is calls.Create:
            known = [calls.Create(one.pod, one.kind) for one in self.worlds[0].containers.values()]
            return data.draw(st.sampled_from(known)) if known and data.draw(st.booleans()) else self._create(data)
        if chosen in (calls.StopPod, calls.RemovePod, calls.PodStatus):
            return chosen(self._pod(data))
        if chosen is calls.UpdatePod:
            return calls.UpdatePod(self._pod(data), data.draw(st.sampled_from([200, 400])))
        container = self._container(data)
        if chosen is calls.Stop:
            return calls.Stop(container, self._grace(container) if data.draw(st.booleans()) else 0)
        if chosen is calls.Exec:
            return calls.Exec(container, data.draw(st.sampled_from([0, 42])))
        if chosen is calls.Update:
            return calls.Update(container, data.draw(st.sampled_from([256, 512])))
        return chosen(container)

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        """A pod with a container that runs, each call made twice, and the creation once more: its name is held then."""
        answer = self._twice(0, self._run_pod(data))
        kind = ContainerKind("c0", 0, data.draw(st.sampled_from(["sleeps", "traps"])), "sour")
        self._container_made(0, calls.Create(answer.message.pod_sandbox_id, kind))

    def _container_made(self, client: int, create: Call) -> None:
        answer = self._twice(client, create)
        if answer.code is grpc.StatusCode.OK:
            self._twice(client, calls.Start(answer.message.container_id))
            self._make(client, create)

    # -- rules --------------------------------------------------------------------------------------------------------

    @rule(data=st.data(), client=_clients)
    def a_pod(self, data: st.DataObject, client: int) -> None:
        self._make(client, self._run_pod(data))

    @precondition(lambda self: self.worlds[0].pods)
    @rule(data=st.data(), client=_clients)
    def a_container(self, data: st.DataObject, client: int) -> None:
        """A container that is created and, if that went well, started; each twice."""
        self._container_made(client, self._create(data))

    @precondition(lambda self: self.worlds[0].pods)
    @rule(data=st.data(), client=_clients)
    def a_call(self, data: st.DataObject, client: int) -> None:
        self._make(client, self._call(data))

    @precondition(lambda self: self.worlds[0].pods)
    @rule(data=st.data(), client=_clients, other=_clients)
    def the_same_call_again(self, data: st.DataObject, client: int, other: int) -> None:
        call = self._call(data, *_MUTATING)
        self._make(client, call)
        self._make(other, call)

    @precondition(lambda self: self.worlds[0].pods)
    @rule(data=st.data())
    def two_calls_at_once(self, data: st.DataObject) -> None:
        self._race(self._call(data, *_MUTATING), self._call(data))

    @precondition(lambda self: self.worlds[0].pods)
    @rule(data=st.data())
    def the_same_call_twice_at_once(self, data: st.DataObject) -> None:
        call = self._call(data, *_MUTATING)
        self._race(call, call)

    @rule(data=st.data())
    def opposing_calls_on_a_container(self, data: st.DataObject) -> None:
        container = self._living_container(data)
        pod = self.worlds[0].containers[container].pod
        grace = self._grace(container)
        ends = [calls.Stop(container, 0), calls.Stop(container, grace), calls.Remove(container), calls.StopPod(pod)]
        begins = [calls.Start(container), calls.Exec(container, 0), calls.Update(container, 512), *ends]
        begins += [calls.Reopen(container), calls.Stats(container), calls.RemovePod(pod)]
        self._race(data.draw(st.sampled_from(begins)), data.draw(st.sampled_from(ends)))

    @rule(data=st.data())
    def a_container_made_while_its_pod_ends(self, data: st.DataObject) -> None:
        container = self._living_container(data)
        pod = self.worlds[0].containers[container].pod
        create = calls.Create(pod, ContainerKind("c2", 0, data.draw(st.sampled_from(_PROGRAMS)), "sweet"))
        self._race(create, data.draw(st.sampled_from([calls.StopPod(pod), calls.RemovePod(pod)])))

    @rule(data=st.data())
    def three_calls_on_a_container(self, data: st.DataObject) -> None:
        container = self._living_container(data)
        there = [calls.Start(container), calls.Update(container, 512), calls.Remove(container)]
        there += [calls.Stop(container, 0), calls.Exec(container, 42), calls.Reopen(container)]
        self._race(*(data.draw(st.sampled_from(there)) for _ in range(CLIENTS)))

    @precondition(lambda self: self.worlds[0].pods)
    @rule(data=st.data(), client=_clients, seconds=_moments)
    def a_call_that_its_client_gives_up(self, data: st.DataObject, client: int, seconds: float) -> None:
        call = self._call(data, *_MUTATING)
        future = call.send(self.stubs[client])
        time.sleep(seconds)
        future.cancel()
        note(f"{call} given up")
        self._repeat(client, call)

    @precondition(lambda self: self.worlds[0].pods and self.calm >= _CALM_STEPS)
    @rule(data=st.data(), client=_clients, seconds=_moments)
    def a_crash_during_a_call(self, data: st.DataObject, client: int, seconds: float) -> None:
        call = self._call(data, *_MUTATING)
        future = call.send(self.stubs[client])
        time.sleep(seconds)
        self._crash()
        future.exception()
        note(f"{call}: crispd killed")
        self._repeat(client, call)

    @precondition(lambda self: self.worlds[0].pods and self.calm >= _CALM_STEPS)
    @rule(killed=st.booleans())
    def a_restart(self, killed: bool) -> None:
        if killed:
            self._crash()
        else:
            self._disconnect()
            self.daemon.restart()
            self._connect()
            self.calm = 0

    @precondition(lambda self: any(one.runs for one in self.worlds[0].containers.values()))
    @rule(data=st.data())
    def a_process_that_dies(self, data: st.DataObject) -> None:
        running = [one.id for one in self.worlds[0].containers.values() if one.runs]
        container = data.draw(st.sampled_from(running))
        request = cri.ContainerStatusRequest(container_id=container, verbose=True)
        answer = self.stubs[0].ContainerStatus(request, **_CALL)
        os.kill(int(json.loads(answer.info["info"])["pid"]), signal.SIGKILL)
        for world in self.worlds:
            world.end(world.containers[container], KILLED)

    @precondition(lambda self: any(pod.ready for pod in self.worlds[0].pods.values()))
    @rule(data=st.data(), with_keeper=st.sampled_from([False, False, False, True]))
    def a_shim_that_dies(self, data: st.DataObject, with_keeper: bool) -> None:
        """Nobody notices, unless the zygote, which would start a successor, dies at the same moment."""
        pod = data.draw(st.sampled_from([pod.id for pod in self.worlds[0].pods.values() if pod.ready]))
        found = subprocess.run(["pgrep", "-f", f"^crisp-shim {pod}"], capture_output=True, text=True, check=True)
        shim = int(found.stdout.split()[0])
        self.shim_deaths[pod] += 1
        if with_keeper:
            _kill_zygotes()
        elif self.shim_deaths[pod] > _MOST_SUCCESSORS:
            return  # a keeper does not start them for ever
        os.kill(shim, signal.SIGKILL)
        self.counts["shims killed"] += 1
        for world in self.worlds:
            if with_keeper:
                world.lose(world.pods[pod])

    @precondition(lambda self: self.worlds[0].pods)
    @rule()
    def a_zygote_that_dies(self) -> None:
        _kill_zygotes()
        self.counts["zygotes killed"] += 1

    @precondition(lambda self: self.worlds[0].pods)
    @rule(data=st.data(), client=_clients)
    def lists(self, data: st.DataObject, client: int) -> None:
        """Every list with one filter: exactly what it selects."""
        stub, world = self.stubs[client], self.worlds[0]
        pod, container = self._pod(data), self._container(data)
        flavour = data.draw(st.sampled_from(["", "sweet", "sour"]))
        pod, container = (data.draw(st.sampled_from(["", one, one[:20]])) for one in (pod, container))
        labels = {"flavour": flavour} if flavour else {}
        of_pod = cri.PodSandboxFilter(id=pod, label_selector=labels)
        of_container = cri.ContainerFilter(id=container, pod_sandbox_id=pod, label_selector=labels)
        if data.draw(st.booleans()):
            of_pod.state.state = data.draw(st.sampled_from([cri.SANDBOX_READY, cri.SANDBOX_NOTREADY]))
            states = [cri.CONTAINER_CREATED, cri.CONTAINER_RUNNING, cri.CONTAINER_EXITED, cri.CONTAINER_UNKNOWN]
            of_container.state.state = data.draw(st.sampled_from(states))
        pods = {
            one.id
            for one in world.pods.values()
            if one.id.startswith(pod)
            and flavour in ("", one.kind.flavour)
            and (not of_pod.HasField("state") or (of_pod.state.state == cri.SANDBOX_READY) is one.ready)
        }
        containers = {
            one.id
            for one in world.containers.values()
            if one.id.startswith(container)
            and one.pod.startswith(pod)
            and flavour in ("", one.kind.flavour)
            and (not of_container.HasField("state") or of_container.state.state == one.state)
        }
        listed = stub.ListPodSandbox(cri.ListPodSandboxRequest(filter=of_pod), **_CALL).items
        assert {one.id for one in listed} == pods, of_pod
        streamed = stub.StreamPodSandboxes(cri.StreamPodSandboxesRequest(filter=of_pod), **_CALL)
        assert {one.id for page in streamed for one in page.pod_sandboxes} == pods, of_pod
        found = stub.ListContainers(cri.ListContainersRequest(filter=of_container), **_CALL).containers
        assert {one.id for one in found} == containers, of_container
        pages = stub.StreamContainers(cri.StreamContainersRequest(filter=of_container), **_CALL)
        assert {one.id for page in pages for one in page.containers} == containers, of_container

    @precondition(lambda self: self.worlds[0].pods)
    @rule(client=_clients)
    def statistics(self, client: int) -> None:
        stub, world = self.stubs[client], self.worlds[0]
        of_containers = stub.ListContainerStats(cri.ListContainerStatsRequest(), **_CALL).stats
        assert {one.attributes.id for one in of_containers} == world.containers.keys()
        of_pods = stub.ListPodSandboxStats(cri.ListPodSandboxStatsRequest(), **_CALL).stats
        assert {one.attributes.id for one in of_pods} == {pod.id for pod in world.pods.values() if pod.ready}

    # -- making calls -------------------------------------------------------------------------------------------------

    def _make(self, client: int, call: Call) -> Answer:
        answer = Answer.of(call.send(self.stubs[client]))
        note(f"{call}: {answer}")
        self._hold(f"{call}: {answer}", [call.parts(answer)])
        self._count("alone", call, answer)
        return answer

    def _twice(self, client: int, call: Call) -> Answer:
        """Make a call, and the same one again by the next client. Returns the first answer."""
        answer = self._make(client, call)
        self._make((client + 1) % CLIENTS, call)
        return answer

    def _race(self, *racing: Call) -> None:
        futures = [call.send(stub) for call, stub in zip(racing, self.stubs, strict=False)]
        answers = [Answer.of(future) for future in futures]
        told = ", and at once ".join(f"{call}: {answer}" for call, answer in zip(racing, answers, strict=True))
        note(told)
        for call, answer in zip(racing, answers, strict=True):
            self._count("at once", call, answer)
        self._hold(told, _orders(*(call.parts(answer) for call, answer in zip(racing, answers, strict=True))))

    def _repeat(self, client: int, call: Call) -> None:
        """Make a call again whose first answer nobody has."""
        answer = Answer.of(call.send(self.stubs[client]))
        note(f"{call} again: {answer}")
        self._count("again", call, answer)
        self._hold(f"{call} again: {answer}", [call.again(answer)])

    def _count(self, how: str, call: Call, answer: Answer) -> None:
        self.counts[f"{how}: {type(call).__name__} {answer.code.name}"] += 1

    def _crash(self) -> None:
        self.counts["crispd killed"] += 1
        self.daemon.kill9()
        self._disconnect()
        self.daemon.start()
        self._connect()
        self.calm = 0

    def _hold(self, told: str, orders: Iterable[Sequence[Part]]) -> None:
        """Keep the worlds in which the answers are possible."""
        possible: list[World] = []
        for world, parts in itertools.product(self.worlds, list(orders)):
            after = world.copy()
            if all(part(after) for part in parts) and after not in possible:
                possible.append(after)
        assert possible, f"{told}; this cannot be with {self.worlds[0]}\n{self.daemon.log()}"
        before = {*self.worlds[0].pods, *self.worlds[0].containers}
        self.worlds = possible
        self.gone += sorted(before - {*possible[0].pods, *possible[0].containers})
        self._settle(told)

    # -- what is true after each step ---------------------------------------------------------------------------------

    def _see(self) -> Seen:
        stub = self.stubs[0]
        pods = stub.ListPodSandbox(cri.ListPodSandboxRequest(), **_CALL).items
        containers = stub.ListContainers(cri.ListContainersRequest(), **_CALL).containers
        statuses = (
            stub.ContainerStatus(cri.ContainerStatusRequest(container_id=one.id), **_CALL).status for one in containers
        )
        both = zip(containers, statuses, strict=True)
        return Seen({one.id: one for one in pods}, {one.id: (one, of) for one, of in both})

    def _settle(self, told: str) -> None:
        """Wait until the daemon shows one of the worlds; drop the others."""
        deadline = time.monotonic() + SECONDS
        while True:
            seen = self._see()
            wrong = [world.disagreement(seen) for world in self.worlds]
            if agreeing := [world for world, text in zip(self.worlds, wrong, strict=True) if not text]:
                break
            assert time.monotonic() < deadline, f"after {told}: {wrong[0]}\n{self.daemon.log()}"
        self.worlds = [self._with_exact_codes(world, seen) for world in agreeing]
        for container in list(self.worlds[0].containers.values()):
            if container.runs and container.kind.program == "traps" and not container.trap_set:
                self._await_trap(container)

    def _with_exact_codes(self, world: World, seen: Seen) -> World:
        """An exit code that was seen never changes."""
        for container in list(world.containers.values()):
            status = seen.containers[container.id][1]
            if container.state == cri.CONTAINER_EXITED:
                known = replace(container, codes=frozenset({status.exit_code}), ran=bool(status.started_at))
                world.containers[container.id] = known
        return world

    def _await_trap(self, container: ContainerFacts) -> None:
        pod, kind = self.worlds[0].pods[container.pod], container.kind
        log = Path(self.daemon.logs, pod.kind.name, f"{kind.name}-{kind.attempt}.log")
        until(lambda: log.exists() and log.read_text().endswith(" set\n"))
        for world in self.worlds:
            if container.id in world.containers:
                world.containers[container.id] = replace(world.containers[container.id], trap_set=True)

    @invariant()
    def all_agree(self) -> None:
        """Daemon and model; records and machine, by crisp's own judge and by ours."""
        self._settle("the step")
        self.counts["steps"] += 1
        self.calm += 1
        deadline = time.monotonic() + SECONDS
        while wrong := [*leftovers(self.daemon, self.worlds[0]), *self._disagreements()]:
            assert time.monotonic() < deadline, "\n".join(wrong) + f"\n{self.daemon.log()}"

    def _disagreements(self) -> Iterator[str]:
        for one in self.daemon.admin.Check(admin_pb2.CheckRequest(), **_CALL).disagreements:
            yield f"crisp check: {one.kind} {one.object}: {one.text}"

    def teardown(self) -> None:
        """All gone at the end."""
        self._disconnect()
        self.daemon.empty()
        until(lambda: not leftovers(self.daemon, World()))  # a shim that has answered is about to exit
        left = leaks.settle(self._before, foreign=_OF_THE_DAEMON)
        assert not left, left
        self.counts["examples"] += 1


def _kill_zygotes() -> None:
    """Kill what forks shims, and starts successors of those that die."""
    for pid in subprocess.run(["pgrep", "-f", "crisp zygote"], capture_output=True, text=True).stdout.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


def _orders(*racing: Sequence[Part]) -> Iterator[list[Part]]:
    """Every order of the calls' parts that keeps each call's own."""
    if not any(racing):
        yield []
    for number, parts in enumerate(racing):
        if parts:
            after = (*racing[:number], parts[1:], *racing[number + 1 :])
            yield from ([parts[0], *order] for order in _orders(*after))


_MUTATING: Final[tuple[type[Any], ...]] = (
    calls.RunPod, calls.StopPod, calls.RemovePod, calls.UpdatePod, calls.Create, calls.Start, calls.Stop, calls.Remove,
    calls.Exec, calls.Update, calls.Reopen,
)  # fmt: skip
_READING: Final[tuple[type[Any], ...]] = (calls.PodStatus, calls.Status, calls.Stats)
# A daemon that was restarted is another process, with another zygote; its bridge comes with the first pod.
_OF_THE_DAEMON: Final = r"^processes: .* crisp zygote|^processes: .*-m cri\.daemon|^descriptors: |^links: crispt"
