"""Sessions of clients while systemd stops, kills and starts crispd, with both cgroup drivers. Run inside by run.py."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cri.v1 import api_pb2 as cri
from tests.daemon import BUSYBOX, CALL_SECONDS, Pod
from tests.processes import titled
from tests.sessions import exec_url
from tests.stream_clients import STDERR, STDIN, STDOUT, Command
from tests.vm.inside.node import Process, Service, systemctl
from tests.waiting import until

DROP_IN = Path("/etc/crisp/crisp.toml.d/driver.toml")
ECHO = "while read line; do echo got $line; done; exit 7"


def test_sessions_go_on_while_the_service_ends_and_starts() -> None:
    with _pod("cgroupfs") as (service, pod):
        assert _goes_on(service, pod) == "/crisp-shims"


def test_with_systemd_sessions_go_on_in_a_scope() -> None:
    with _pod("systemd") as (service, pod):
        assert _goes_on(service, pod).startswith("/system.slice/crisp-streams-")


@contextmanager
def _pod(driver: str) -> Iterator[tuple[Service, Pod]]:
    DROP_IN.parent.mkdir(parents=True, exist_ok=True)
    DROP_IN.write_text(f'cgroup_driver = "{driver}"\n')
    service = Service()
    service.start()
    try:
        service.import_busybox()
        namespaces = cri.NamespaceOption(network=cri.NODE)  # there is no other one yet
        security = cri.LinuxSandboxSecurityContext(namespace_options=namespaces)
        config = service.sandbox_config("sessions", linux=cri.LinuxPodSandboxConfig(security_context=security))
        with service.pod(config=config) as pod:
            yield service, pod
        request = cri.RemoveImageRequest(image=cri.ImageSpec(image=BUSYBOX))
        service.images.RemoveImage(request, timeout=CALL_SECONDS)
    finally:
        DROP_IN.unlink()
        service.stop()
    until(lambda: not titled("^crisp-streams"), CALL_SECONDS)


def _goes_on(service: Service, pod: Pod) -> str:
    """Use a session over two ends of the service; the cgroup of the process that serves it."""
    namespaces = cri.NamespaceOption(network=cri.NODE)
    linux = cri.LinuxContainerConfig(security_context=cri.LinuxContainerSecurityContext(namespace_options=namespaces))
    container = pod.run("sleep", "1000", linux=linux)
    url = exec_url(service, container, "sh", "-c", ECHO)
    command = Command.over("spdy", url, "v4.channel.k8s.io", STDIN, STDOUT, STDERR)
    _ask(command, "one")
    (pid,) = titled("^crisp-streams")
    until(lambda: "crispd.service" not in Process.at(pid).read("cgroup"), CALL_SECONDS)
    place = Process.at(pid).read("cgroup").strip().removeprefix("0::")
    service.stop()
    _ask(command, "two")
    service.start()
    _ask(command, "three")
    service.kill9()
    _ask(command, "four")
    assert systemctl("is-active", "crispd") == "active"
    command.end()
    assert command.exit_code(CALL_SECONDS) == 7
    until(lambda: not os.path.exists(f"/proc/{pid}"), CALL_SECONDS)
    return place


def _ask(command: Command, word: str) -> None:
    command.send(f"{word}\n".encode())
    command.client.until(lambda: f"got {word}".encode() in command.output(), CALL_SECONDS)
