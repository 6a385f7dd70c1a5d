"""The node: the only object of `pods` that `cri` talks to."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from image.store import ImageStore
from network.errors import NetworkError
from network.network import Network
from pods import disk_quotas, handlers
from pods.cgroups.driver import Cgroups, workers_memory
from pods.check.check import Check, Disagreement, Parts
from pods.checkpoint.write import Checkpoints
from pods.diagnosis.bulletin import Bulletins
from pods.diagnosis.inquiry import Diagnosis, Present, inquire, survey
from pods.diagnosis.troubles import SECCOMP
from pods.host import HostFacts
from pods.inflight import Background
from pods.life import end_clues, information, last_words, overtaken
from pods.life.creation import Creations, Means
from pods.life.end_clues import EndClues
from pods.life.exit import Exits
from pods.life.network_upkeep import NetworkUpkeep
from pods.life.pod_checkpoints import PodCheckpoints
from pods.life.pod_end import PodEnd
from pods.life.pod_restores import PodRestores
from pods.life.recovery import Recovery
from pods.life.removal import Removals
from pods.life.renewals import Renewals
from pods.life.resource_updates import ResourceUpdates
from pods.life.sandboxes import Sandboxes
from pods.life.shims import Shims
from pods.life.start import Starts
from pods.life.stop import Stops
from pods.log_fields import pod_name
from pods.model import (
    ApartPlugin,
    Container,
    ContainerConfig,
    ExecResult,
    Resources,
    Sandbox,
    SandboxConfig,
    SilentShim,
)
from pods.recorder.entry import Runs
from pods.recorder.recorder import Bounds, Recorder, Teller
from pods.security.apparmor import load_default_profile
from pods.security.denials import ALLOWED, Call, Denials, DeniedIn
from pods.security.filter_cache import FilterCache
from pods.security.pulled_profiles import SecurityProfiles
from pods.settings import NodeSettings
from pods.state.memory import State
from pods.state.plugins import Plugins, RequiredPlugins
from pods.stats.holdings import Holding, name_of
from pods.stats.stats import Stats
from pods.streams.exec_sync import exec_sync
from pods.streams.logs import reopen_log
from pods.streams.places import ContainerPlace, PodPlace
from pods.trace import Around, StepReport, Trace
from runtime.wire.calls import Exited, Logged, ShimState

_CLOSE_SECONDS = 10.0
_STATES_SECONDS = 1.0  # that shims have to tell how much was logged: a scrape waits for them

_KILLED: Final = 128 + signal.SIGKILL  # an exit code


class Node:
    """The sandboxes, containers, images and network of one machine. A cancelled method leaves nothing half done."""

    def __init__(
        self,
        settings: NodeSettings,
        cgroups: Cgroups,
        images: ImageStore,
        network: Network,
        recorder: Recorder,
        bulletins: Bulletins,
        plugin_runs: Mapping[int, tuple[str, Runs]],
    ) -> None:
        self.settings = settings
        self.images = images
        self.network = network
        self._background = Background()
        self._state = State(settings, recorder)
        self.events = self._state.events
        self.bulletins = bulletins
        self._commands: dict[int, tuple[str, Runs]] = {}  # of ExecSync, that have not ended, with their sandboxes' ids
        self._plugin_runs = plugin_runs  # of network plugins, that have not ended, likewise
        self.gate = self._state.gate
        self.trace_start = settings.trace_start
        self.step_reports: list[StepReport] = []  # each is called for each step of a start
        self.plugins_apart: Callable[[], list[ApartPlugin]] | None = None  # of who serves plugins
        self.stats = Stats(self._state)
        self._cgroups = cgroups
        self._shims = Shims(settings, self._cgroups, self._exited, self._lost, self._returned)
        self.host = HostFacts.detect()
        filters = FilterCache(log=settings.seccomp_denials)
        means = Means(self._state, self._shims, images, self.host, self._cgroups, self._background, filters)
        self.denials = Denials(self._state.containers.__contains__, self._denied)
        self._exits = Exits(self._state, self._cgroups, self._background, EndClues(self._state, images))
        self._stops = Stops(self._state, self._shims, self._exits, self._background)
        self._removals = Removals(
            self._state, self._shims, images, self._stops, self._cgroups, self._background
        )
        self._creations = Creations(means, self._removals)
        self._starts = Starts(self._state, self._shims, images, means.filters, self._background)
        end = PodEnd(self._state, self._shims, network, self._exits, self._cgroups)
        self._sandboxes = Sandboxes(end, self._stops, self._removals, self.host, self._background)
        self._renewals = Renewals(self._shims)
        self._upkeep = NetworkUpkeep(self._state, network, self._sandboxes)
        self._resources = ResourceUpdates(self._state, self._shims, self.host, self._cgroups, self._background)
        self._pod_checkpoints = PodCheckpoints(self._state, self._shims, self._background)
        self._pod_restores = PodRestores(self._state, self._shims, images, self._sandboxes, self._creations)
        self.profiles = SecurityProfiles(images, self.host)
        self._checkpoints = Checkpoints(self._state, self._background)
        self._recovery = Recovery(
            *(self._state, self._shims, network, self._sandboxes),
            *(self._exits, self._stops, self._removals, self._background),
            self._creations,
        )

        self._check = Check(
            Parts(
                *(self._state, self._shims, network, images, self._cgroups),
                *(self._sandboxes, self._creations, self._recovery, self._upkeep),
            )
        )

    @classmethod
    async def open(cls, settings: NodeSettings, around: Around | None = None) -> Node:
        """Open the stores and the network, start the zygote, and recover what an earlier daemon left.

        `around` is entered around each run of a network plugin and each part of a pull.
        """
        async with contextlib.AsyncExitStack() as undo:
            if settings.container_disk_limit:
                disk_quotas.require(settings.root, "container_disk_limit in crisp.toml")
            pinned = [settings.pause_image] if settings.pause_image else []
            cgroups = Cgroups(settings.cgroup_driver)
            undo.push_async_callback(cgroups.close)
            memory = settings.pull_memory_limit or workers_memory()
            images = await ImageStore.open(
                *(settings.root / "image", settings.registries_conf, settings.images),
                pinned=pinned,
                around=around,
                place_workers=lambda warm: cgroups.place_workers(warm, memory),
                workers_memory=memory,
            )
            undo.push_async_callback(images.close)
            bounds = Bounds(settings.recording_bytes, settings.recordings_kept, settings.recordings_hours * 3600)
            bulletins = Bulletins()
            recorder = Recorder(settings.root / "recorder", bounds, bulletins.hear)
            await recorder.open()
            undo.callback(recorder.close)
            plugins = _Plugins(recorder, around)
            network = Network(
                *(settings.cni_conf_dir, settings.cni_bin_dirs, settings.root / "network"),
                around_plugin=plugins.run,
            )
            await network.open()
            undo.push_async_callback(network.close)
            node = cls(settings, cgroups, images, network, recorder, bulletins, plugins.running)
            undo.callback(node._state.garbage.close)
            records = await node._state.store.open()
            undo.callback(node._state.store.close)
            await node._cgroups.driver.open()
            node._cgroups.report_restrictions()
            await node._shims.start()
            undo.callback(node._shims.close)
            undo.callback(node.stats.close)
            node.denials.open()
            undo.callback(node.denials.close)
            await asyncio.gather(node._recovery.recover(images, records), load_default_profile(node.host))
            node._upkeep.start()
            node._renewals.start()
            undo.pop_all()
            return node

    async def close(self) -> None:
        """Release everything; containers and shims live on."""
        await self._renewals.close()
        await self._upkeep.close()
        await self._background.drain(_CLOSE_SECONDS)
        self._state.garbage.close()
        self._shims.close()
        self.stats.close()
        self.denials.close()
        await self.network.close()
        await self.images.close()
        await self._cgroups.close()
        self.recorder.close()
        await asyncio.get_running_loop().run_in_executor(None, self._state.store.close)

    @property
    def plugins(self) -> Plugins | None:
        """The NRI plugins, which hear of pods and may change containers; None when none is connected."""
        return self._state.plugins

    @plugins.setter
    def plugins(self, plugins: Plugins | None) -> None:
        self._state.plugins = plugins

    @property
    def required_plugins(self) -> RequiredPlugins | None:
        """The NRI plugins without which no pod or container is made; None if there are none such."""
        return self._state.required

    @required_plugins.setter
    def required_plugins(self, required: RequiredPlugins | None) -> None:
        self._state.required = required

    def apart_plugins(self) -> list[ApartPlugin] | None:
        """Return the plugins that are not asked for a while, since they did not answer; None if none are served."""
        return None if self.plugins_apart is None else self.plugins_apart()

    def missing_plugins(self) -> list[str] | None:
        """Return the required plugins that are not connected; None if none is required."""
        return None if self._state.required is None else self._state.required.missing()

    def _exited(self, event: Exited) -> None:
        self._state.log_counts.heard(event.container, event.logged)
        self._exits.exited(event.container, event.exit)

    def _lost(self, sandbox_id: str) -> None:
        lost = self._recovery.sandbox_lost(sandbox_id)
        self._background.detach(lost, f"record the loss of pod sandbox {sandbox_id}")

    def _returned(self, sandbox_id: str, state: ShimState) -> None:
        heard = self._recovery.heard_again(sandbox_id, state)
        self._background.detach(heard, f"learn what happened in pod sandbox {sandbox_id}")

    async def check(self, *, repair: bool) -> list[Disagreement]:
        """Hold records and machine against each other; mend what can be mended if `repair`. Raises PodError."""
        return await self._check.run(repair=repair)

    def silent_shims(self) -> list[SilentShim]:
        """Return the pods whose shims do not answer."""
        now = time.monotonic()
        return [
            SilentShim(sandbox_id=sandbox_id, pod=pod_name(record.sandbox.config), seconds=now - since)
            for sandbox_id, since in self._shims.silent()
            if (record := self._state.sandboxes.get(sandbox_id)) is not None
        ]

    def shims_of_other_versions(self) -> int:
        """Return how many shims have the code of another version."""
        return self._shims.of_other_versions()

    def shims_asleep(self) -> int:
        """Return how many shims have left until they are needed."""
        return self._shims.asleep()

    def successions(self) -> int:
        """Return how many shims have died since the start and had a successor."""
        return self._shims.successions

    def _denied(self, container_id: str, call: Call, program: str) -> None:
        if call.action != ALLOWED:
            self.recorder.part(container_id).said(f"{SECCOMP}{call.name} ({call.action}), first called by {program!r}")

    async def logged(self) -> Logged:
        """Return what all containers have logged since crispd started."""
        counts = self._state.log_counts
        for state in await self._shims.states(_STATES_SECONDS):
            for container_id, status in state.containers.items():
                counts.heard(container_id, status.logged)
        counts.forget_but(self._state.containers)
        return counts.total

    def shim_count(self) -> int:
        """Return how many shims the node is connected to."""
        return len(self._shims)

    @property
    def recorder(self) -> Recorder:
        """The recordings of what happened to pods, removed ones included."""
        return self._state.recorder

    def _trace(self, operation: str, teller: Teller) -> Trace:
        return Trace(operation, on=self.trace_start, reports=(teller.step, *self.step_reports))

    def why(self, query: str) -> Diagnosis:
        """Diagnose a pod, container or image by id or name, also one that is gone. Raises NotFound, InvalidArgument."""
        return inquire(query, self.recorder.recordings(), self._present())

    async def survey(self, *, everything: bool) -> list[Diagnosis]:
        """Diagnose all that is in trouble, or everything that is recorded."""
        return await survey(list(self.recorder.recordings()), self._present(), everything=everything)

    def _present(self) -> Present:
        return Present(self.containers(), [*self._commands.values(), *self._plugin_runs.values()])

    def denied(self, container_id: str = "") -> list[DeniedIn]:
        """Return the calls that seccomp profiles denied or reported, by container. Raises NotFound."""
        wanted = [self.container(container_id).id, ""] if container_id else self.denials.containers()
        pods = {one.id: one for one in self.sandboxes()}
        found = {one.id: name_of(one, pods) for one in self.containers()}
        return [DeniedIn(one, found.get(one, ""), self.denials.of(one)) for one in wanted]

    async def holdings(self) -> list[Holding]:
        """Return what holds the disk."""
        return await self.stats.holdings(self.images)

    # -- sandboxes ----------------------------------------------------------------------------------------------------

    async def run_sandbox(self, config: SandboxConfig, handler: str) -> str:
        await self.profiles.require(config.security.seccomp)
        trace = self._trace("run pod sandbox", self.recorder.of_pod(config.metadata))
        sandbox_id = await self._sandboxes.run(config, handler, trace)
        trace.finish(sandbox_id)
        return sandbox_id

    async def stop_sandbox(self, sandbox_id: str) -> None:
        await self._sandboxes.stop(sandbox_id)

    async def remove_sandbox(self, sandbox_id: str) -> None:
        await self._sandboxes.remove(sandbox_id)

    async def update_sandbox(self, sandbox_id: str, overhead: Resources | None, resources: Resources | None) -> None:
        with overtaken.in_sandbox(self._state, sandbox_id):
            await self._resources.update_sandbox(sandbox_id, overhead, resources)

    def sandbox(self, sandbox_id: str) -> Sandbox:
        """Look up a sandbox by id or unique prefix. Raises NotFound."""
        return self._state.find_sandbox(sandbox_id).sandbox

    def sandboxes(self) -> list[Sandbox]:
        """Return all sandboxes except unfinished ones."""
        return [record.sandbox for record in self._state.sandboxes.values() if record.finished]

    def sandbox_info(self, sandbox_id: str) -> dict[str, Any]:
        """Return what `crictl inspectp` shows beside the status."""
        return information.of_sandbox(self._state.find_sandbox(sandbox_id), self.settings)

    # -- containers ---------------------------------------------------------------------------------------------------

    async def create_container(self, sandbox_id: str, config: ContainerConfig) -> str:
        trace = self._trace("create container", self.recorder.within(sandbox_id, config.metadata.name))
        with overtaken.in_sandbox(self._state, sandbox_id):
            container_id = await self._creations.create(sandbox_id, config, trace)
        trace.finish(container_id)
        return container_id

    async def start_container(self, container_id: str) -> None:
        trace = self._trace("start container", self.recorder.part(container_id))
        with overtaken.in_container(self._state, container_id):
            await self._starts.start(container_id, trace)
        trace.finish(container_id)

    async def stop_container(self, container_id: str, timeout: float) -> None:
        await self._stops.stop(container_id, timeout)

    async def remove_container(self, container_id: str) -> None:
        await self._removals.remove(container_id)

    async def update_container(self, container_id: str, wanted: Resources) -> None:
        with overtaken.in_container(self._state, container_id):
            await self._resources.update_container(container_id, wanted)

    async def update_container_for_plugin(self, container_id: str, wanted: Resources) -> None:
        """Update a container at a plugin's request, without asking the plugins."""
        await self._resources.update_for_plugin(container_id, wanted)

    async def checkpoint_container(self, container_id: str, location: str, timeout: int) -> None:
        with overtaken.in_container(self._state, container_id):
            await self._checkpoints.checkpoint(container_id, location, timeout)

    async def checkpoint_sandbox(
        self, sandbox_id: str, output: Path, container_ids: Sequence[str], seconds: float
    ) -> None:
        """Checkpoint the containers as of one instant, within `seconds`, into an empty directory."""
        with overtaken.in_sandbox(self._state, sandbox_id):
            await self._pod_checkpoints.checkpoint(sandbox_id, output, container_ids, seconds)

    async def restore_sandbox(
        self,
        directory: Path,
        config: SandboxConfig,
        handler: str,
        containers: Sequence[ContainerConfig],
        seconds: float,
    ) -> tuple[str, dict[str, str]]:
        """Create a pod and containers that will resume from a checkpoint. Returns its id, and theirs by name."""
        trace = self._trace("restore pod sandbox", self.recorder.of_pod(config.metadata))
        restored = await self._pod_restores.restore(directory, config, handler, containers, seconds, trace)
        trace.finish(restored[0])
        return restored

    def container(self, container_id: str) -> Container:
        """Look up a container by id or unique prefix. Raises NotFound."""
        return self._state.find_container(container_id).container

    def running_container(self, container_id: str) -> Container:
        """Look up a running container. Raises NotFound, FailedPrecondition if it does not run."""
        return self._state.running_container(container_id)

    def containers(self) -> list[Container]:
        return [record.container for record in self._state.containers.values()]

    def container_info(self, container_id: str) -> dict[str, Any]:
        """Return what `crictl inspect` shows beside the status."""
        container = self._state.find_container(container_id).container
        record = self._state.sandboxes.get(container.sandbox_id)
        return information.of_container(container, record.sandbox if record else None, self.settings)

    async def exec_sync(self, container_id: str, argv: Sequence[str], timeout: float) -> ExecResult:
        """Run a command in a running container. `timeout` is in seconds, 0 for none."""
        begun = time.monotonic_ns()
        # Arguments may hold passwords and tokens, which a recording would keep longer than the pod is there.
        command = argv[0] if len(argv) == 1 else f"{argv[0]} (arguments: {len(argv) - 1})"
        container = self.running_container(container_id)
        runs = Runs(time.time_ns(), container.config.metadata.name, command, max(timeout, 0))
        self._commands[id(runs)] = container.sandbox_id, runs
        try:
            with overtaken.in_container(self._state, container.id):
                result = await exec_sync(self._state, self._shims, container.id, argv, timeout)
        finally:
            del self._commands[id(runs)]
        took = time.monotonic_ns() - begun
        told = bool(result.exit_code) and self.settings.record_last_words
        words = last_words.of_output(result.stderr or result.stdout) if told else ""
        killed = result.exit_code == _KILLED
        if killed and (clue := await end_clues.of_memory(container.id, self._state.containers, begun)):
            words = f"{words}; {clue}" if words else clue
        self.recorder.part(container.id).ran(command, result.exit_code, took, words)
        return result

    def container_place(self, container_id: str) -> ContainerPlace:
        """Return where a running container's streams are. Raises NotFound, FailedPrecondition if it does not run."""
        container = self.running_container(container_id)
        shim = str(self.settings.sandbox_dir(container.sandbox_id))
        return ContainerPlace(container.id, shim, container.config.stdin, container.config.tty)

    def pod_place(self, sandbox_id: str) -> PodPlace:
        """Return where the ports of a ready sandbox are. Raises NotFound, FailedPrecondition if it is not ready."""
        sandbox = self._state.ready_sandbox(sandbox_id)
        in_sandbox = handlers.has_sandbox(sandbox, self.settings.runtime_handlers)
        return PodPlace(sandbox.id, str(self.settings.sandbox_dir(sandbox.id)), in_sandbox)

    async def place_streams(self, pid: int) -> None:
        """Move a process that serves streams out of the daemon's cgroup."""
        await self._cgroups.place_streams(pid)

    async def reopen_log(self, container_id: str) -> None:
        with overtaken.in_container(self._state, container_id):
            await reopen_log(self._state, self._shims, container_id)

    @property
    def user_namespaces(self) -> bool:
        """Whether pods can have user namespaces, tried when the daemon started."""
        return not self._shims.idmap_refusal


class _Plugins:
    """Records each run of a network plugin in its pod's recording, and makes a span of it if tracing is on."""

    def __init__(self, recorder: Recorder, around: Around | None) -> None:
        self._recorder = recorder
        self._around = around
        self.running: dict[int, tuple[str, Runs]] = {}  # with their sandboxes' ids

    @contextlib.contextmanager
    def run(self, command: str, plugin: str, sandbox_id: str) -> Iterator[None]:
        begun, failure = time.monotonic_ns(), ""
        runs = Runs(time.time_ns(), "", f"network plugin {plugin!r} ({command})", 0)
        self.running[id(runs)] = sandbox_id, runs
        try:
            if self._around is None:
                yield
            else:
                with self._around(f"CNI {command} {plugin}", {}):
                    yield
        except NetworkError as error:
            failure = str(error)
            raise
        finally:
            del self.running[id(runs)]
            self._recorder.plugin(sandbox_id, command, plugin, time.monotonic_ns() - begun, failure)
