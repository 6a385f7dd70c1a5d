"""The faults, each as a context that it lasts in. What was asked of the faulty thing must end once it is over."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cri.v1 import api_pb2 as cri
from tests import cgroups, faulty_registry
from tests.daemon import BUSYBOX, CALL_SECONDS, Daemon, Pod
from tests.faults.fuse import dead_directory, silent_directory
from tests.faulty_registry import FaultyRegistry
from tests.images import build_image, entry, layer
from tests.nri_plugin import HANG, Plugin
from tests.waiting import until

_CALL: Final[dict[str, Any]] = {"timeout": CALL_SECONDS}
_AT_ONCE: Final = 8  # calls that hang on the fault


@dataclass(frozen=True)
class Node:
    """A daemon, and what the faults need of its surroundings."""

    daemon: Daemon
    plugins: Path  # a directory of CNI plugins
    nri_socket: Path
    criu_pids: Path  # where the criu that hangs writes its pids


@contextmanager
def _ending(calls: list[Any]) -> Iterator[None]:
    """Calls end, well or with an error, after the fault."""
    yield
    for call in calls:
        call.exception(timeout=CALL_SECONDS)


def shim_of(pod: Pod) -> int:
    """The pid of its shim."""
    found = subprocess.run(["pgrep", "-f", f"^crisp-shim {pod.id}"], capture_output=True, text=True, check=True)
    return int(found.stdout.split()[0])


def pid_of(daemon: Daemon, container: str) -> int:
    """The pid of its first process."""
    request = cri.ContainerStatusRequest(container_id=container, verbose=True)
    return int(json.loads(daemon.runtime.ContainerStatus(request, **_CALL).info["info"])["pid"])


@contextmanager
def stopped_shim(node: Node) -> Iterator[None]:
    daemon = node.daemon
    with daemon.pod("victim") as pod, ExitStack() as after:
        container = pod.run("sleep", "1000")
        shim = shim_of(pod)
        os.kill(shim, signal.SIGSTOP)
        request = cri.ExecSyncRequest(container_id=container, cmd=["true"], timeout=60)
        calls = [daemon.runtime.ExecSync.future(request, **_CALL) for _ in range(_AT_ONCE)]
        after.enter_context(_ending(calls))
        after.callback(os.kill, shim, signal.SIGCONT)
        yield


def _with_volume(daemon: Daemon, pod: Pod, place: Path, number: int, *command: str) -> cri.CreateContainerRequest:
    config = cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name=f"volume{number}"),
        image=cri.ImageSpec(image=BUSYBOX),
        command=command,
        log_path=f"volume{number}.log",
        mounts=[cri.Mount(host_path=str(place), container_path="/data")],
    )
    return cri.CreateContainerRequest(pod_sandbox_id=pod.id, config=config, sandbox_config=pod.config)


@contextmanager
def dead_volume(node: Node) -> Iterator[None]:
    """The root of a FUSE file system whose server never answered."""
    daemon = node.daemon
    with tempfile.TemporaryDirectory(dir=daemon.directory) as place, daemon.pod("victim") as pod, ExitStack() as after:
        calls: list[Any] = []
        after.enter_context(_ending(calls))
        after.enter_context(dead_directory(Path(place)))
        for number in range(_AT_ONCE):
            request = _with_volume(daemon, pod, Path(place), number, "sleep", "1000")
            calls.append(daemon.runtime.CreateContainer.future(request, **_CALL))
        yield


@contextmanager
def process_in_state_d(node: Node) -> Iterator[None]:
    """A container's process that no signal ends, and that is to be stopped."""
    daemon = node.daemon
    with tempfile.TemporaryDirectory(dir=daemon.directory) as place, daemon.pod("victim") as pod, ExitStack() as after:
        calls: list[Any] = []
        after.enter_context(_ending(calls))
        asked = after.enter_context(silent_directory(Path(place)))
        request = _with_volume(daemon, pod, Path(place), 0, "ls", "/data")
        container = daemon.runtime.CreateContainer(request, **_CALL).container_id
        daemon.runtime.StartContainer(cri.StartContainerRequest(container_id=container), **_CALL)
        stat = Path("/proc", str(pid_of(daemon, container)), "stat")
        until(asked.is_set)
        stop = cri.StopContainerRequest(container_id=container, timeout=0)
        calls += [daemon.runtime.StopContainer.future(stop, **_CALL) for _ in range(_AT_ONCE)]
        # Until it is told to die it waits as any other.
        until(lambda: stat.read_text().rpartition(") ")[2].startswith("D"))
        yield


@contextmanager
def frozen_cgroup(node: Node) -> Iterator[None]:
    daemon = node.daemon
    with daemon.pod("victim") as pod, ExitStack() as after:
        container = pod.run("sleep", "1000")
        request = cri.ExecSyncRequest(container_id=container, cmd=["true"], timeout=60)
        calls: list[Any] = []
        after.enter_context(_ending(calls))
        after.enter_context(cgroups.frozen(pid_of(daemon, container)))
        calls += [daemon.runtime.ExecSync.future(request, **_CALL) for _ in range(_AT_ONCE)]
        yield


@contextmanager
def hung_network_plugin(node: Node) -> Iterator[None]:
    daemon, pids = node.daemon, node.plugins / "pids"
    plugin = node.plugins / "hangs"
    plugin.write_text(f'#!/bin/sh\n[ "$CNI_COMMAND" = DEL ] && exit\necho $$ >>{pids}\nexec sleep 86399\n')
    plugin.chmod(0o755)
    conflist = daemon.cni_conf_dir / "10-test.conflist"
    well = conflist.read_text()
    network = json.loads(well)
    network["plugins"].append({"type": "hangs"})
    conflist.write_text(json.dumps(network))
    with ExitStack() as after:
        after.callback(pids.unlink, missing_ok=True)
        requests = [cri.RunPodSandboxRequest(config=daemon.sandbox_config(f"hung{one}")) for one in range(_AT_ONCE)]
        calls = [daemon.runtime.RunPodSandbox.future(request, **_CALL) for request in requests]
        after.enter_context(_ending(calls))
        after.callback(lambda: _kill(pids))
        until(lambda: pids.exists() and len(pids.read_text().split()) == len(calls))
        conflist.write_text(well)
        yield


def _kill(pids: Path) -> None:
    for pid in pids.read_text().split() if pids.exists() else ():
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


@contextmanager
def hung_nri_plugin(node: Node) -> Iterator[None]:
    """One that hangs at each container, the victim's first, and comes back each time that it is dropped for it."""
    over, connected, back = threading.Event(), threading.Event(), threading.Event()

    def come_back() -> None:
        while not over.is_set():
            with Plugin.connected(node.nri_socket, apart=connected.is_set(), CreateContainer=HANG) as plugin:
                (back if connected.is_set() else connected).set()
                while not over.is_set() and not plugin.closed.wait(0.05):
                    pass

    coming = threading.Thread(target=come_back)
    coming.start()
    try:
        until(connected.is_set)
        with node.daemon.pod("victim") as pod:
            pod.create("true")
            until(back.is_set)
            yield
    finally:
        over.set()
        coming.join()


@contextmanager
def trickling_registry(node: Node) -> Iterator[None]:
    daemon = node.daemon
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # clients that leave are what it tells of
    image = build_image([layer(entry(str(number), os.urandom(200_000))) for number in range(6)])
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    registry = FaultyRegistry({f"slow{number}:1": image for number in range(_AT_ONCE)})
    running = registry.running()
    with ExitStack() as after:
        after.callback(loop.close)
        after.callback(thread.join)
        after.callback(loop.call_soon_threadsafe, loop.stop)
        asyncio.run_coroutine_threadsafe(running.__aenter__(), loop).result(60)
        after.callback(lambda: asyncio.run_coroutine_threadsafe(running.__aexit__(None, None, None), loop).result(60))
        for number in range(_AT_ONCE):
            for blob in set(image.blobs) - {image.id}:
                registry.always[registry.blob_path(f"slow{number}", blob)] = faulty_registry.drip
        names = [f"{registry.host}/slow{number}:1" for number in range(_AT_ONCE)]
        requests = [cri.PullImageRequest(image=cri.ImageSpec(image=name)) for name in names]
        calls = [daemon.images.PullImage.future(request, **_CALL) for request in requests]
        for call in calls:
            after.callback(call.cancel)
        until(lambda: sum("/blobs/" in seen.path for seen in registry.seen) >= _AT_ONCE)
        yield


@contextmanager
def hung_criu(node: Node) -> Iterator[None]:
    daemon = node.daemon
    with daemon.pod("victim") as pod, ExitStack() as after:
        container = pod.run("sleep", "1000")
        place = str(daemon.directory / "checkpoint.tar")
        after.callback(node.criu_pids.unlink, missing_ok=True)
        request = cri.CheckpointContainerRequest(container_id=container, location=place, timeout=100)
        after.enter_context(_ending([daemon.runtime.CheckpointContainer.future(request, **_CALL)]))
        after.callback(lambda: _kill(node.criu_pids))
        until(node.criu_pids.exists)
        yield


FAULTS: Final[dict[str, Callable[[Node], AbstractContextManager[None]]]] = {
    "shim stopped": stopped_shim,
    "dead FUSE root as a volume": dead_volume,
    "process in state D": process_in_state_d,
    "frozen cgroup": frozen_cgroup,
    "CNI plugin hung": hung_network_plugin,
    "NRI plugin hung": hung_nri_plugin,
    "registry trickling": trickling_registry,
    "criu hung": hung_criu,
}
