"""Pod sandboxes through CRI: namespaces, files, network, names, states."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from cri.v1 import api_pb2 as cri
from tests.daemon import Daemon
from tests.waiting import until

_CALL = {"timeout": 120}


def _run(daemon: Daemon, config: cri.PodSandboxConfig, timeout: float = 30, handler: str = "") -> str:
    request = cri.RunPodSandboxRequest(config=config, runtime_handler=handler)
    return str(daemon.runtime.RunPodSandbox(request, timeout=timeout).pod_sandbox_id)


def _linux(**options: int) -> cri.LinuxPodSandboxConfig:
    namespaces = cri.NamespaceOption(**options)
    return cri.LinuxPodSandboxConfig(
        security_context=cri.LinuxSandboxSecurityContext(namespace_options=namespaces)
    )


def _security(**options: int) -> cri.LinuxContainerConfig:
    return cri.LinuxContainerConfig(
        security_context=cri.LinuxContainerSecurityContext(namespace_options=cri.NamespaceOption(**options))
    )


@pytest.mark.cri("RunPodSandbox", "metadata")
@pytest.mark.cri("PodSandboxStatus")
def test_a_pod_has_an_address_that_answers(daemon: Daemon) -> None:
    with daemon.pod() as pod:
        address = pod.status().network.ip
        web = "mkdir -p /www && echo page > /www/index.html && exec httpd -f -p 80 -h /www"
        container = pod.run("sh", "-c", web)
        fetched = pod.exec(container, "sh", "-c", "for i in 1 2 3 4 5 6 7 8 9; do wget -qO- 127.0.0.1 && break; done")
        assert fetched.stdout == b"page\n"
        probe = subprocess.run(["busybox", "wget", "-qO-", f"http://{address}/"], capture_output=True, check=True)
        assert probe.stdout == b"page\n"


@pytest.mark.cri("RunPodSandbox", "dns_config", "namespace_options")
@pytest.mark.cri("RunPodSandbox", "hostname")
@pytest.mark.cri("CreateContainer", "namespace_options.network", "namespace_options.pid", "namespace_options.ipc")
def test_containers_of_a_pod_share_its_namespaces_and_files(daemon: Daemon) -> None:
    config = daemon.sandbox_config("shared", dns_config=cri.DNSConfig(
        servers=["10.0.0.10"], searches=["a.example", "b.example"], options=["ndots:5"]
    ))
    config.linux.CopyFrom(_linux(pid=cri.CONTAINER))
    with daemon.pod(config=config) as pod:
        first = pod.run("sleep", "100", name="one", linux=_security(pid=cri.CONTAINER))
        second = pod.run("sleep", "100", name="two", linux=_security(pid=cri.CONTAINER))
        look = "readlink /proc/self/ns/net /proc/self/ns/ipc /proc/self/ns/uts"
        assert pod.exec(first, "sh", "-c", look).stdout == pod.exec(second, "sh", "-c", look).stdout
        own = [pod.exec(c, "readlink", "/proc/self/ns/pid").stdout for c in (first, second)]
        assert own[0] != own[1]
        pod.exec(first, "sh", "-c", "echo through shm > /dev/shm/file")
        assert pod.exec(second, "cat", "/dev/shm/file").stdout == b"through shm\n"
        assert pod.exec(first, "hostname").stdout == b"shared\n"
        assert pod.exec(first, "cat", "/etc/hostname").stdout == b"shared\n"
        assert pod.exec(first, "cat", "/etc/resolv.conf").stdout.decode().splitlines() == [
            "search a.example b.example", "nameserver 10.0.0.10", "options ndots:5",
        ]


@pytest.mark.cri("RunPodSandbox", "namespace_options.pid")
def test_a_shared_pid_namespace_has_the_infra_process_as_its_reaper(daemon: Daemon) -> None:
    config = daemon.sandbox_config("pids")
    config.linux.CopyFrom(_linux(pid=cri.POD))
    with daemon.pod(config=config) as pod:
        first = pod.run("sleep", "1000", name="one", linux=_security(pid=cri.POD))
        second = pod.run("sleep", "2000", name="two", linux=_security(pid=cri.POD))
        seen = pod.exec(second, "ps").stdout.decode()
        assert "sleep 1000" in seen
        assert "sleep 2000" in seen
        assert "crisp-infra" in next(line for line in seen.splitlines() if line.split()[0] == "1")
        pod.exec(first, "sh", "-c", "(sleep 0.2 &) ; true")  # orphaned: goes to PID 1 and must not stay a zombie
        until(lambda: not re.search(r" Z |sleep 0\.2", pod.exec(second, "ps", "-o", "pid,stat,args").stdout.decode()))
        # The infra process lends nobody the host.
        assert pod.exec(second, "sh", "-c", "ls /proc/1/root/ 2>&1; cat /proc/1/environ 2>&1").stdout.decode().count(
            "denied"
        ) == 2
        daemon.runtime.StopContainer(cri.StopContainerRequest(container_id=first, timeout=0), **_CALL)
        assert "sleep 1000" not in pod.exec(second, "ps").stdout.decode()


@pytest.mark.cri("CreateContainer", "namespace_options.target_id")
def test_a_target_container_is_joined(daemon: Daemon) -> None:
    config = daemon.sandbox_config("target")
    config.linux.CopyFrom(_linux(pid=cri.CONTAINER))
    with daemon.pod(config=config) as pod:
        app = pod.run("sleep", "1234", name="app", linux=_security(pid=cri.CONTAINER))
        options = cri.NamespaceOption(pid=cri.TARGET, target_id=app)
        debug = pod.run("sleep", "100", name="debug", linux=cri.LinuxContainerConfig(
            security_context=cri.LinuxContainerSecurityContext(namespace_options=options)
        ))
        assert "sleep 1234" in pod.exec(debug, "ps").stdout.decode()
        daemon.runtime.StopContainer(cri.StopContainerRequest(container_id=debug, timeout=0), **_CALL)
        assert daemon.status(app).state == cri.CONTAINER_RUNNING


@pytest.mark.cri("RunPodSandbox", "namespace_options.network", "namespace_options.pid", "namespace_options.ipc")
def test_the_hosts_namespaces(daemon: Daemon) -> None:
    config = daemon.sandbox_config("host")
    config.linux.CopyFrom(_linux(network=cri.NODE, pid=cri.NODE, ipc=cri.NODE))
    with daemon.pod(config=config) as pod:
        assert pod.status().network.ip == ""
        container = pod.run("sleep", "100", linux=_security(network=cri.NODE, pid=cri.NODE, ipc=cri.NODE))
        for kind in ("net", "pid", "ipc", "uts"):
            inside = pod.exec(container, "readlink", f"/proc/self/ns/{kind}").stdout.decode().strip()
            assert inside == Path(f"/proc/self/ns/{kind}").readlink().name, kind


@pytest.mark.cri("RunPodSandbox", "linux.sysctls")
def test_sysctls_are_the_pods_own(daemon: Daemon) -> None:
    before = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()
    config = daemon.sandbox_config("sysctl")
    config.linux.sysctls.update({"net.ipv4.ip_unprivileged_port_start": "77", "kernel.shm_rmid_forced": "1"})
    with daemon.pod(config=config) as pod:
        container = pod.run("sleep", "100")
        look = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced"
        assert pod.exec(container, "sh", "-c", look).stdout == b"77\n1\n"
    assert Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text() == before


def test_two_address_families_are_reported() -> None:
    with Daemon.running(ipv6=True) as daemon:
        daemon.import_busybox()
        with daemon.pod() as pod:
            network = pod.status().network
            assert network.ip.startswith("10.200.")
            assert [address.ip[:2] for address in network.additional_ips] == ["fd"]


@pytest.mark.cri("RunPodSandbox", "labels", "annotations")
@pytest.mark.cri("ListPodSandbox", "filter")
@pytest.mark.cri("StopPodSandbox")
def test_status_and_lists_show_what_was_asked(daemon: Daemon) -> None:
    config = daemon.sandbox_config("shown", labels={"app": "x"}, annotations={"note": "n"})
    with daemon.pod(config=config) as pod, daemon.pod("other"):
        status = pod.status()
        assert status.state == cri.SANDBOX_READY
        assert status.metadata == config.metadata
        assert dict(status.labels) == {"app": "x"}
        assert dict(status.annotations) == {"note": "n"}
        assert abs(status.created_at - time.time_ns()) < 60e9

        def listed(**fields: object) -> list[str]:
            request = cri.ListPodSandboxRequest(filter=cri.PodSandboxFilter(**fields))
            return [item.id for item in daemon.runtime.ListPodSandbox(request, **_CALL).items]

        assert listed(label_selector={"app": "x"}) == [pod.id]
        assert listed(id=pod.id[:12]) == [pod.id]
        assert pod.id not in listed(state=cri.PodSandboxStateValue(state=cri.SANDBOX_NOTREADY))
        daemon.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod.id), **_CALL)
        daemon.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod.id), **_CALL)
        assert listed(state=cri.PodSandboxStateValue(state=cri.SANDBOX_NOTREADY)) == [pod.id]
        with pytest.raises(grpc.RpcError) as raised:
            pod.create("true")
        assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.cri("RemovePodSandbox")
def test_a_name_is_held_until_removal(daemon: Daemon) -> None:
    config = daemon.sandbox_config("held")
    with daemon.pod(config=config) as pod:
        assert _run(daemon, config) == pod.id  # the answer to the first may have been lost on its way
        other = daemon.sandbox_config("held", labels={"another": "config"})
        with pytest.raises(grpc.RpcError) as raised:
            _run(daemon, other)
        assert raised.value.code() is grpc.StatusCode.ALREADY_EXISTS
        assert pod.id in raised.value.details()
        daemon.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=pod.id), **_CALL)
        with pytest.raises(grpc.RpcError) as raised:
            _run(daemon, config)
        assert raised.value.code() is grpc.StatusCode.ALREADY_EXISTS
    with daemon.pod(config=other) as pod:
        assert pod.status().state == cri.SANDBOX_READY


@pytest.fixture
def slow_daemon(tmp_path: Path):  # type: ignore[no-untyped-def]
    with Daemon.running(f"--cni-bin-dir={tmp_path}") as daemon:
        plugin = tmp_path / "slow"
        plugin.write_text(f"#!/bin/sh\ncat >/dev/null\nif [ $CNI_COMMAND = ADD ]; then echo >{tmp_path}/begun\n"
                          f"while [ ! -e {tmp_path}/go ]; do sleep 0.02; done; fi\n"
                          f"echo $CNI_COMMAND >>{tmp_path}/calls\n"
                          'echo \'{"cniVersion":"1.0.0","ips":[{"address":"10.9.9.9/24"}]}\'\n')
        plugin.chmod(0o755)
        (daemon.cni_conf_dir / "10-test.conflist").write_text(
            '{"cniVersion":"1.0.0","name":"slow","plugins":[{"type":"slow"}]}'
        )
        yield daemon


def _sandboxes(daemon: Daemon) -> list[str]:
    return [item.id for item in daemon.runtime.ListPodSandbox(cri.ListPodSandboxRequest(), **_CALL).items]


def _leave(daemon: Daemon, config: cri.PodSandboxConfig, directory: Path) -> None:
    """Ask for a sandbox, and be gone when its network is being made."""
    request = daemon.runtime.RunPodSandbox.future(cri.RunPodSandboxRequest(config=config), **_CALL)
    until((directory / "begun").exists)
    request.cancel()


def test_a_request_repeated_after_a_timeout_joins_the_first(slow_daemon: Daemon, tmp_path: Path) -> None:
    config = slow_daemon.sandbox_config("again")
    _leave(slow_daemon, config, tmp_path)
    assert _sandboxes(slow_daemon) == []  # kubelet would raise `attempt` if it saw one
    again = slow_daemon.runtime.RunPodSandbox.future(cri.RunPodSandboxRequest(config=config), **_CALL)
    (tmp_path / "go").touch()
    sandbox = again.result().pod_sandbox_id
    assert (tmp_path / "calls").read_text().split() == ["ADD"]
    assert _sandboxes(slow_daemon) == [sandbox]


def test_a_request_whose_caller_is_gone_for_good_is_undone(slow_daemon: Daemon, tmp_path: Path) -> None:
    _leave(slow_daemon, slow_daemon.sandbox_config("gone"), tmp_path)
    directory = slow_daemon.state / "sandboxes"
    assert len(list(directory.iterdir())) == 1
    (tmp_path / "go").touch()
    until(lambda: not list(directory.iterdir()))
    assert _sandboxes(slow_daemon) == []


def test_a_crash_during_the_undoing_leaves_the_name_free(slow_daemon: Daemon, tmp_path: Path) -> None:
    plugin = tmp_path / "slow"
    plugin.write_text(plugin.read_text().replace("ADD ]", "DEL ]"))
    # The answer is on its way when its caller leaves, or was not: either way the sandbox is undone.
    config = slow_daemon.sandbox_config("interrupted")
    future = slow_daemon.runtime.RunPodSandbox.future(cri.RunPodSandboxRequest(config=config), timeout=30)
    directory = slow_daemon.state / "sandboxes"
    until(lambda: directory.is_dir() and list(directory.iterdir()), pause=0.0005)
    future.cancel()
    until((tmp_path / "begun").exists)  # the DEL
    assert _sandboxes(slow_daemon) == []
    slow_daemon.kill9()
    (tmp_path / "go").touch()
    slow_daemon.start()
    made = _run(slow_daemon, config)
    assert _sandboxes(slow_daemon) == [made]


def test_identical_requests_at_once_make_one_pod(slow_daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "go").touch()
    config = slow_daemon.sandbox_config("twins")
    with ThreadPoolExecutor(4) as pool:
        made = set(pool.map(lambda _: _run(slow_daemon, config), range(4)))
    assert len(made) == 1
    assert _sandboxes(slow_daemon) == list(made)


def test_a_failing_plugin_leaves_nothing_and_the_name_free(tmp_path: Path) -> None:
    with Daemon.running(f"--cni-bin-dir={tmp_path}") as daemon:
        plugin = tmp_path / "broken"
        plugin.write_text("#!/bin/sh\ncat >/dev/null\n[ $CNI_COMMAND = DEL ] && exit 0\n"
                          'echo \'{"cniVersion":"1.0.0","code":100,"msg":"out of cheese"}\'; exit 1\n')
        plugin.chmod(0o755)
        conflist = daemon.cni_conf_dir / "00-broken.conflist"
        conflist.write_text('{"cniVersion":"1.0.0","name":"broken","plugins":[{"type":"broken"}]}')
        config = daemon.sandbox_config("unlucky")
        with pytest.raises(grpc.RpcError) as raised:
            _run(daemon, config)
        assert "out of cheese" in raised.value.details()
        assert _sandboxes(daemon) == []
        assert list((daemon.state / "sandboxes").iterdir()) == []
        conflist.unlink()
        made = _run(daemon, config)
        assert _sandboxes(daemon) == [made]


def test_without_a_network_configuration_the_node_says_so(tmp_path: Path) -> None:
    with Daemon.running() as daemon:
        conflist = daemon.cni_conf_dir / "10-test.conflist"
        text = conflist.read_text()
        conflist.unlink()

        def network_ready() -> cri.RuntimeCondition:
            conditions = daemon.runtime.Status(cri.StatusRequest(), **_CALL).status.conditions
            return next(condition for condition in conditions if condition.type == "NetworkReady")

        until(lambda: not network_ready().status)
        assert str(daemon.cni_conf_dir) in network_ready().message
        with pytest.raises(grpc.RpcError) as raised:
            _run(daemon, daemon.sandbox_config("lonely"))
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        conflist.write_text(text)
        until(lambda: network_ready().status)


@pytest.mark.cri("RunPodSandbox", "runtime_handler")
def test_an_unknown_handler_is_refused_before_anything_is_made(daemon: Daemon) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        _run(daemon, daemon.sandbox_config("handler"), handler="gvisor")
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "gvisor" in raised.value.details()


@pytest.mark.cri("StopPodSandbox", "unknown ids")
@pytest.mark.cri("RemovePodSandbox", "unknown ids")
@pytest.mark.cri("StopContainer", "unknown ids")
@pytest.mark.cri("RemoveContainer", "unknown ids")
def test_unknown_ids(daemon: Daemon) -> None:
    ghost = "f" * 64
    daemon.runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=ghost), **_CALL)
    daemon.runtime.RemovePodSandbox(cri.RemovePodSandboxRequest(pod_sandbox_id=ghost), **_CALL)
    daemon.runtime.StopContainer(cri.StopContainerRequest(container_id=ghost), **_CALL)
    daemon.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=ghost), **_CALL)
    for call in (
        lambda: daemon.runtime.PodSandboxStatus(cri.PodSandboxStatusRequest(pod_sandbox_id=ghost), **_CALL),
        lambda: daemon.runtime.ContainerStatus(cri.ContainerStatusRequest(container_id=ghost), **_CALL),
        lambda: daemon.runtime.StartContainer(cri.StartContainerRequest(container_id=ghost), **_CALL),
        lambda: daemon.runtime.ExecSync(cri.ExecSyncRequest(container_id=ghost, cmd=["true"]), **_CALL),
    ):
        with pytest.raises(grpc.RpcError) as raised:
            call()
        assert raised.value.code() is grpc.StatusCode.NOT_FOUND


def test_fifty_pods_come_survive_a_crash_and_go(fresh_daemon: Daemon) -> None:
    daemon = fresh_daemon

    def start(number: int) -> tuple[str, str]:
        config = daemon.sandbox_config(f"many{number}")
        sandbox = _run(daemon, config, timeout=60)
        request = cri.CreateContainerRequest(pod_sandbox_id=sandbox, sandbox_config=config, config=cri.ContainerConfig(
            metadata=cri.ContainerMetadata(name="main"), image=cri.ImageSpec(image="localhost/busybox:latest"),
            command=["sleep", "1000"], log_path="main.log",
        ))
        container = daemon.runtime.CreateContainer(request, timeout=60).container_id
        daemon.runtime.StartContainer(cri.StartContainerRequest(container_id=container), timeout=60)
        return sandbox, container

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(start, range(50)))
    pids = {container: daemon.status(container) for _sandbox, container in made}
    daemon.kill9()
    daemon.start()
    assert sorted(_sandboxes(daemon)) == sorted(sandbox for sandbox, _container in made)
    running = daemon.runtime.ListContainers(cri.ListContainersRequest(filter=cri.ContainerFilter(
        state=cri.ContainerStateValue(state=cri.CONTAINER_RUNNING)
    )), **_CALL).containers
    assert sorted(container.id for container in running) == sorted(pids)

    def check(pair: tuple[str, str]) -> bytes:
        request = cri.ExecSyncRequest(container_id=pair[1], cmd=["echo", "alive"], timeout=20)
        return bytes(daemon.runtime.ExecSync(request, timeout=60).stdout)

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(check, made)) == {b"alive\n"}
    # `empty`, and the check for leaks after it, are the rest of this test.


def test_pods_of_two_daemons_do_not_mix(daemon: Daemon) -> None:
    with Daemon.running() as other:
        other.import_busybox()
        with daemon.pod("same") as first, other.pod("same") as second:
            assert first.id != second.id
            assert _sandboxes(daemon) == [first.id]
            barrier = threading.Barrier(2)

            def run(pod):  # type: ignore[no-untyped-def]
                barrier.wait(60)
                return pod.exec(pod.run("sleep", "100"), "hostname").stdout

            with ThreadPoolExecutor(2) as pool:
                assert list(pool.map(run, (first, second))) == [b"same\n"] * 2
