"""Pods on a machine where SELinux is enforcing. Run inside the guest by run.py; then the power is cut."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from cri.admin.v1 import admin_pb2
from cri.v1 import api_pb2 as cri
from tests import leaks
from tests.daemon import CALL_SECONDS, Pod
from tests.images import build_image, busybox_layer, write_layout
from tests.processes import kill_shim
from tests.vm.inside.node import NETWORK, Process, Service, left_since
from tests.waiting import until

EXPECTED = Path("/var/lib/crisp-guest-selinux.json")  # what the second boot has to find
VOLUMES = Path("/var/lib/kubelet/pods/uid/volumes")  # where kubelet has them
NOBODYS = Path("/var/lib/nobodys")
_IMAGE = "localhost/volume:1"


@dataclass(frozen=True, slots=True)
class Labelled:
    """A pod whose main container has a volume of its own, and sees another's."""

    pod: Pod
    container_id: str
    process: Process
    level: str


def label_of(path: str | Path) -> str:
    return os.getxattr(path, "security.selinux", follow_symlinks=False).rstrip(b"\0").decode()


def said(pod: Pod, container_id: str, script: str) -> tuple[int, str]:
    """What a command in a container said, errors as well."""
    answer = pod.exec(container_id, "sh", "-c", script)
    return answer.exit_code, (answer.stdout + answer.stderr).decode()


def denials() -> list[str]:
    """What the kernel denied to crisp and to containers."""
    log = subprocess.run(["dmesg"], check=True, stdout=subprocess.PIPE, text=True).stdout
    ours = re.compile(r"avc:  denied .*scontext=\S*:(container|crio)_t:")
    return [line for line in log.splitlines() if ours.search(line)]


def main(service: Service, name: str, **security: Any) -> Labelled:
    """A pod, whose container's own volume is relabelled for it; it sees all volumes, and a directory of the host."""
    own = VOLUMES / name
    own.mkdir(parents=True, exist_ok=True)
    (own / "secret").write_text(f"of {name}\n")
    config = service.sandbox_config(name, linux=cri.LinuxPodSandboxConfig(**security))
    request = cri.RunPodSandboxRequest(config=config)
    pod = Pod(service, service.runtime.RunPodSandbox(request, timeout=CALL_SECONDS).pod_sandbox_id, config)
    mounts = [
        cri.Mount(container_path="/own", host_path=str(own), selinux_relabel=True),
        cri.Mount(container_path="/nobodys", host_path=str(NOBODYS)),
        cri.Mount(container_path="/all", host_path=str(VOLUMES)),
    ]
    container_id = pod.run("sleep", "100000", mounts=mounts)
    process = Process.of(service, container_id)
    return Labelled(pod, container_id, process, process.read("attr/current").strip(" \0\n").split(":", 3)[3])


@pytest.fixture(scope="module")
def service() -> Service:
    for place in (VOLUMES, NOBODYS):
        place.mkdir(parents=True)
    (NOBODYS / "file").write_text("of the host\n")
    subprocess.run(["restorecon", "-RF", "/var/lib/kubelet"], check=True)
    Path("/proc/sys/kernel/printk_ratelimit").write_text("0")  # for `denials`
    service = Service()
    service.start()
    service.cni_conf_dir.mkdir(parents=True, exist_ok=True)
    shutil.copy(NETWORK, service.cni_conf_dir)
    until(lambda: service.network().status)
    service.import_busybox()
    return service


@pytest.fixture(scope="module")
def first(service: Service) -> Labelled:
    return main(service, "first")


@pytest.fixture(scope="module")
def second(service: Service) -> Labelled:
    return main(service, "second")


def test_the_policy_is_enforced_and_the_daemon_is_not_exempt(service: Service) -> None:
    assert Path("/sys/fs/selinux/enforce").read_text() == "1"
    assert Path(f"/proc/{service.pid()}/attr/current").read_text().startswith("system_u:system_r:crio_t:")


def test_processes_and_files_have_the_policys_types_and_their_pods_categories(first: Labelled) -> None:
    assert first.process.read("attr/current").strip(" \0\n") == f"system_u:system_r:container_t:{first.level}"
    files = f"system_u:object_r:container_file_t:{first.level}"
    assert label_of(VOLUMES / "first/secret") == files
    paths = (
        "/", "/bin/busybox", "/own/secret", "/dev", "/dev/null", "/dev/shm", "/dev/pts", "/etc/hosts",
        "/etc/resolv.conf",
    )  # fmt: skip
    root = f"/proc/{first.process.pid}/root"
    assert {path: label_of(root + path) for path in paths} == dict.fromkeys(paths, files)
    assert label_of(NOBODYS / "file") != files
    exec_label = said(first.pod, first.container_id, "cat /proc/self/attr/current")
    assert exec_label[1].strip(" \0\n") == f"system_u:system_r:container_t:{first.level}"


def test_a_container_does_what_containers_do(first: Labelled) -> None:
    before = denials()
    script = """set -e
    echo new >/own/new; mkdir /tmp/d; echo x >/tmp/d/f; rm -r /tmp/d; cp /bin/busybox /own/true; /own/true
    echo x >/dev/shm/x; cat /etc/hosts /etc/resolv.conf >/dev/null; ls /dev/mqueue /sys >/dev/null
    cat /proc/self/status /proc/meminfo >/dev/null
    mkfifo /own/pipe; (echo through >/own/pipe) & cat /own/pipe; wait; ip addr show eth0 >/dev/null; echo done"""
    assert said(first.pod, first.container_id, script) == (0, "through\ndone\n")
    assert denials() == before


def test_two_pods_are_kept_apart(service: Service, first: Labelled, second: Labelled) -> None:
    assert first.level != second.level
    for one, other in ((first, "second"), (second, "first")):
        assert said(one.pod, one.container_id, "cat /own/secret")[0] == 0
        for script in (f"cat /all/{other}/secret", f"echo x >/all/{other}/secret", f"ls /all/{other}"):
            status, told = said(one.pod, one.container_id, script)
            assert status != 0
            assert "Permission denied" in told
        status, told = said(one.pod, one.container_id, "cat /nobodys/file")
        assert (status != 0, "Permission denied" in told) == (True, True)
        assert (VOLUMES / other / "secret").read_text() == f"of {other}\n"


def test_containers_of_a_pod_share_its_level_unless_they_ask_for_another(service: Service, first: Labelled) -> None:
    pod = first.pod
    volume = [cri.Mount(container_path="/own", host_path=str(VOLUMES / "first"))]

    def run(name: str, **options: str) -> tuple[str, str]:
        wanted = cri.LinuxContainerSecurityContext()
        if options:
            wanted.selinux_options.CopyFrom(cri.SELinuxOption(**options))
        linux = cri.LinuxContainerConfig(security_context=wanted)
        container_id = pod.run("sleep", "1000", name=name, linux=linux, mounts=volume)
        return container_id, Process.of(service, container_id).read("attr/current").strip(" \0\n")

    sidecar, label = run("sidecar")
    assert label.endswith(f":container_t:{first.level}")
    assert said(pod, sidecar, "cat /own/secret")[0] == 0
    stranger, label = run("stranger", level="s0:c1,c1000")
    assert label.endswith(":container_t:s0:c1,c1000")
    assert said(pod, stranger, "cat /own/secret")[0] != 0


def test_a_privileged_container_is_not_confined(service: Service) -> None:
    security = cri.LinuxSandboxSecurityContext(privileged=True)
    config = service.sandbox_config("privileged", linux=cri.LinuxPodSandboxConfig(security_context=security))
    with service.pod(config=config) as pod:
        own = cri.LinuxContainerConfig(security_context=cri.LinuxContainerSecurityContext(privileged=True))
        mounts = [cri.Mount(container_path="/all", host_path=str(NOBODYS))]
        container_id = pod.run("sleep", "1000", linux=own, mounts=mounts)
        assert ":spc_t:" in Process.of(service, container_id).read("attr/current")
        assert said(pod, container_id, "cat /all/file; echo x >/new; cat /new") == (0, "of the host\nx\n")


@pytest.mark.parametrize("users", ["node", "pod"])
def test_terminals_images_as_volumes_and_user_namespaces_have_the_label(
    service: Service, tmp_path: Path, users: str
) -> None:
    built = build_image([busybox_layer()])
    service.import_image(write_layout(tmp_path / "layout", {_IMAGE: built}))
    options = cri.NamespaceOption(pid=cri.CONTAINER)
    if users == "pod":
        lines = [cri.IDMapping(container_id=0, host_id=1 << 20, length=65536)]
        options.userns_options.CopyFrom(cri.UserNamespace(mode=cri.POD, uids=lines, gids=lines))
    of_pod = cri.LinuxSandboxSecurityContext(namespace_options=options)
    config = service.sandbox_config(f"more-{users}", linux=cri.LinuxPodSandboxConfig(security_context=of_pod))
    with service.pod(config=config) as pod:
        linux = cri.LinuxContainerConfig(security_context=cri.LinuxContainerSecurityContext(namespace_options=options))
        image = cri.Mount(container_path="/image", image=cri.ImageSpec(image=_IMAGE), readonly=True)
        script = "test -t 1 && echo terminal; sleep 1000"
        container_id = pod.run("sh", "-c", script, tty=True, linux=linux, mounts=[image])
        until(lambda: "terminal" in pod.log("main"))
        assert said(pod, container_id, "/image/bin/busybox echo in; echo x >/changed; cat /changed") == (0, "in\nx\n")
        label = Process.of(service, container_id).read("attr/current").strip(" \0\n")
        assert label.startswith("system_u:system_r:container_t:s0:c")


def test_a_denial_is_told_where_the_label_is_the_cause(service: Service, first: Labelled) -> None:
    """Of a program on a volume that is not for containers, and of a file that a program was not let into."""
    program = NOBODYS / "run"
    program.write_text("#!/bin/sh\nexit 0\n")
    program.chmod(0o755)
    volume = [cri.Mount(container_path="/nobodys", host_path=str(NOBODYS))]
    refused = first.pod.create("/nobodys/run", name="refused", mounts=volume)
    denied = f"labelled {label_of(NOBODYS)}"  # the policy does not report all that it denies: crispd looks, too
    with pytest.raises(grpc.RpcError, match=r"permission denied: .*SELinux denied ") as failure:
        service.runtime.StartContainer(cri.StartContainerRequest(container_id=refused), timeout=CALL_SECONDS)
    assert denied in str(failure.value)
    assert _cause(service, refused).name == "selinux"
    reader = first.pod.run("cat", "/nobodys/file", name="reader", mounts=volume)
    assert service.wait_exited(reader).exit_code == 1
    assert denied in _cause(service, reader).cause


def _cause(service: Service, container_id: str) -> admin_pb2.WhyResponse:
    return service.admin.Why(admin_pb2.WhyRequest(query=container_id), timeout=CALL_SECONDS)


def test_they_go_on_through_kills_of_daemon_and_shim_and_new_containers_keep_the_level(
    service: Service, first: Labelled
) -> None:
    for kill in (service.kill9, lambda: kill_shim(first.pod.id, CALL_SECONDS)):
        kill()
        assert said(first.pod, first.container_id, "cat /own/new") == (0, "new\n")
        assert Process.of(service, first.container_id) == first.process
    later = first.pod.run("sleep", "1000", name="later")
    assert Process.of(service, later).read("attr/current").strip(" \0\n").endswith(f":container_t:{first.level}")


def test_nothing_is_left(service: Service) -> None:
    before = leaks.Snapshot.take()
    passing = main(service, "passing")
    passing.pod.remove()
    assert left_since(before) == []
    told = [line for line in denials() if ":crio_t:" in line.partition("tcontext=")[0]]
    assert told == []


def test_the_pods_are_left_for_a_power_cut(first: Labelled, second: Labelled) -> None:
    """The last one."""
    levels = {name: [one.pod.id, one.container_id, one.level] for name, one in (("first", first), ("second", second))}
    EXPECTED.write_text(json.dumps(levels))
    subprocess.run(["sync", EXPECTED, EXPECTED.parent], check=True)
