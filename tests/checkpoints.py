"""Checkpoints a pod of programs (tests/programs.py), and looks whether a restored one goes on with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cri.v1 import api_pb2 as cri
from tests.daemon import CALL_SECONDS, Daemon, Pod
from tests.programs import IMAGE, Program
from tests.waiting import until


def carried_over(daemon: Daemon, directory: Path, programs: Sequence[Program]) -> None:
    """Run the programs in one pod, checkpoint and remove it, restore it, and ask each again what it had answered."""
    output = directory / "checkpoint"
    output.mkdir()
    configs = {one.name: _config(one) for one in programs}
    with daemon.pod("programs") as pod:
        ids = {one.name: _create(pod, configs[one.name]) for one in programs}
        for container_id in ids.values():
            daemon.runtime.StartContainer(cri.StartContainerRequest(container_id=container_id), timeout=CALL_SECONDS)
        before = {one.name: _answer(pod, ids[one.name], one) for one in programs}
        request = cri.CheckpointPodRequest(
            pod_sandbox_id=pod.id, output_path=str(output), container_ids=list(ids.values())
        )
        daemon.runtime.CheckpointPod(request, timeout=CALL_SECONDS)
        # They run on there.
        assert {one.name: _answer(pod, ids[one.name], one) for one in programs} == before
    config = daemon.sandbox_config("programs-again")
    restore = cri.RestorePodRequest(checkpoint_path=str(output), config=config, container_configs=configs.values())
    answer = daemon.runtime.RestorePod(restore, timeout=CALL_SECONDS)
    pod = Pod(daemon, answer.pod_sandbox_id, config)
    try:
        ids = {one.name: one.container_id for one in answer.restored_containers}
        after = {}
        for one in programs:
            start = cri.StartContainerRequest(container_id=ids[one.name])
            daemon.runtime.StartContainer(start, timeout=CALL_SECONDS)
            after[one.name] = _answer(pod, ids[one.name], one)
        assert after == before
    finally:
        pod.remove()


def _config(program: Program) -> cri.ContainerConfig:
    return cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name=program.name), image=cri.ImageSpec(image=IMAGE), command=program.args,
        log_path=f"{program.name}.log", tty=program.tty, stdin=program.tty,
        linux=cri.LinuxContainerConfig(security_context=cri.LinuxContainerSecurityContext(
            namespace_options=cri.NamespaceOption(pid=cri.NamespaceMode.CONTAINER)
        )),
    )  # fmt: skip


def _create(pod: Pod, config: cri.ContainerConfig) -> str:
    request = cri.CreateContainerRequest(pod_sandbox_id=pod.id, config=config, sandbox_config=pod.config)
    return str(pod.daemon.runtime.CreateContainer(request, timeout=CALL_SECONDS).container_id)


def _answer(pod: Pod, container_id: str, program: Program) -> bytes:
    """What the program answers, once it listens."""
    found: list[bytes] = []

    def ask() -> list[bytes]:
        assert pod.daemon.status(container_id).state == cri.CONTAINER_RUNNING, (program.name, pod.log(program.name))
        done = pod.exec(container_id, *program.ask)
        if not done.exit_code and done.stdout.strip():
            found.append(done.stdout)
        return found

    until(ask)
    return found[0]
