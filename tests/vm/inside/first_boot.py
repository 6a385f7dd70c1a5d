"""The main path on the machine that users have. Run inside the guest, in order, by run.py; then the power is cut."""

from __future__ import annotations

import json
import os
import platform
import shutil
import stat
import subprocess
import tarfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from cri.v1 import api_pb2 as cri
from tests import leaks, programs
from tests.checkpoints import carried_over
from tests.daemon import BUSYBOX, CALL_SECONDS, Pod
from tests.disk_limits import enforced, look_at_limits, look_at_removal
from tests.images import build_image, write_layout
from tests.processes import kill_shim
from tests.vm.inside.node import CGROUPS, MACHINE, NETWORK, Process, Service, left_since, systemctl
from tests.waiting import until

EXPECTED = Path("/var/lib/crisp-guest-expected.json")  # what the second boot has to find
MEBIBYTE = 1 << 20
PROGRAMS = Path("/payload/programs-image")
NETWORK_SECONDS = 300.0
ALL_CAPABILITIES = f"CapEff:\t{(2 << int(Path('/proc/sys/kernel/cap_last_cap').read_text())) - 1:016x}"
PAGE = "a page from a pod"
LIMITS = cri.LinuxContainerResources(
    cpu_period=100_000,
    cpu_quota=50_000,
    cpu_shares=512,
    memory_limit_in_bytes=64 * MEBIBYTE,
    cpuset_cpus="1",
    oom_score_adj=-998,
    unified={"pids.max": "77", "memory.high": str(48 * MEBIBYTE)},
)
FILES_OF_LIMITS = {
    "cpu.max": "50000 100000",
    "cpuset.cpus": "1",
    "memory.high": str(48 * MEBIBYTE),
    "memory.max": str(64 * MEBIBYTE),
    "pids.max": "77",
}
# What kubelet asks for unless the pod shares its process namespace.
OWN_PIDS = cri.NamespaceOption(pid=cri.CONTAINER)
# A line lost while the daemon is away would be seen. It waits without a process that could be taken for a leak.
COUNTER = """
mkfifo /never; exec 3<>/never
i=0; while :; do echo $i; i=$((i+1)); [ $((i%100)) -gt 0 ] || read -t 1 x <&3; done
"""
EXIT_SECONDS = 300.0  # for what takes a moment where nothing else runs, and no emulation


@pytest.fixture(scope="module")
def service() -> Service:
    service = Service()
    service.start()
    return service


@dataclass(frozen=True, slots=True)
class Workload:
    """A pod with a limited container that serves a page and counts in its log."""

    pod: Pod
    container_id: str
    process: Process


@pytest.fixture(scope="module")
def workload(service: Service) -> Workload:
    security = cri.LinuxSandboxSecurityContext(namespace_options=OWN_PIDS)
    config = service.sandbox_config("workload", linux=cri.LinuxPodSandboxConfig(security_context=security))
    request = cri.RunPodSandboxRequest(config=config)
    pod = Pod(service, service.runtime.RunPodSandbox(request, timeout=CALL_SECONDS).pod_sandbox_id, config)
    script = f"mkdir /www; echo '{PAGE}' > /www/index.html; httpd -p 8080 -h /www; {COUNTER}"
    linux = cri.LinuxContainerConfig(
        resources=LIMITS, security_context=cri.LinuxContainerSecurityContext(namespace_options=OWN_PIDS)
    )
    container_id = pod.run("sh", "-c", script, linux=linux)
    return Workload(pod, container_id, Process.of(service, container_id))


def test_the_machine_is_the_one_that_users_have() -> None:
    machine = os.uname()
    assert (machine.machine, machine.release.split(".")[:2]) == (MACHINE["architecture"], MACHINE["kernel"].split("."))
    assert ".".join(platform.python_version_tuple()[:2]) == MACHINE["python"]
    assert Path("/proc/1/comm").read_text() == "systemd\n"
    assert {"cpu", "cpuset", "io", "memory", "pids"} <= set((CGROUPS / "cgroup.controllers").read_text().split())
    assert Path("/sys/module/apparmor/parameters/enabled").read_text() == "Y\n"
    assert ALL_CAPABILITIES in Path("/proc/self/status").read_text().splitlines()


def test_the_unit_starts_and_answers(service: Service) -> None:
    assert systemctl("is-active", "crispd") == "active"
    version = service.runtime.Version(cri.VersionRequest(), timeout=CALL_SECONDS)
    assert (version.runtime_name, version.runtime_api_version) == ("crisp", "v1")
    status = service.runtime.Status(cri.StatusRequest(verbose=True), timeout=CALL_SECONDS)
    assert service.ready().status, service.ready().message
    layers = json.loads(status.info["info"])["imageLayers"]
    assert layers["kind"] == MACHINE["layers"], layers
    assert status.runtime_handlers[0].features.user_namespaces == MACHINE["user_namespaces"]
    for socket in ("/run/crisp/crisp.sock", "/var/run/nri/nri.sock"):
        assert stat.S_IMODE(Path(socket).stat().st_mode) == 0o600


def test_the_network_is_ready_once_there_is_a_configuration(service: Service) -> None:
    before = service.network()
    assert not before.status
    assert "/etc/cni/net.d" in before.message
    service.cni_conf_dir.mkdir(parents=True, exist_ok=True)
    shutil.copy(NETWORK, service.cni_conf_dir)
    deadline = time.monotonic() + NETWORK_SECONDS
    while not service.network().status and time.monotonic() < deadline:
        time.sleep(0.1)
    assert service.network().status, service.network().message


def test_an_image_made_from_busybox_is_imported(service: Service) -> None:
    image_id = service.import_busybox()
    request = cri.ImageStatusRequest(image=cri.ImageSpec(image=BUSYBOX))
    image = service.images.ImageStatus(request, timeout=CALL_SECONDS).image
    assert image.id == image_id
    assert BUSYBOX in image.repo_tags


def test_limits_are_in_the_containers_cgroup(workload: Workload) -> None:
    assert limits(workload.process) == FILES_OF_LIMITS
    weight = int((workload.process.cgroup() / "cpu.weight").read_text())
    assert 1 < weight < 100  # 512 shares: half of the default


@pytest.mark.cri("CheckpointContainer", "location")
@pytest.mark.parametrize("pids", ["CONTAINER", "POD"])
def test_a_container_is_checkpointed_and_goes_on(service: Service, tmp_path: Path, pids: str) -> None:
    """In a pod's network, and with its processes in the pod's PID namespace or one of its own."""
    options = cri.NamespaceOption(pid=cri.NamespaceMode.Value(pids))
    linux = cri.LinuxContainerConfig(security_context=cri.LinuxContainerSecurityContext(namespace_options=options))
    script = f"words=kept-in-memory; echo kept >/changed; rm /etc/passwd; mkdir /d; {COUNTER}"
    sandbox = cri.LinuxPodSandboxConfig(security_context=cri.LinuxSandboxSecurityContext(namespace_options=options))
    archive = tmp_path / "checkpoint.tar"
    with service.pod(config=service.sandbox_config(f"checkpoint-{pids.lower()}", linux=sandbox)) as pod:
        container_id = pod.run("sh", "-c", script, name="main", linux=linux)
        before = Process.of(service, container_id)
        request = cri.CheckpointContainerRequest(container_id=container_id, location=str(archive), timeout=120)
        service.runtime.CheckpointContainer(request, timeout=CALL_SECONDS)
        counted = pod.log("main").count("\n")
        deadline = time.monotonic() + EXIT_SECONDS
        while pod.log("main").count("\n") <= counted:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert Process.of(service, container_id) == before
    assert stat.S_IMODE(archive.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["checkpoint.tar"]
    subprocess.run(["tar", "-xf", archive, "-C", tmp_path], check=True)
    described = json.loads((tmp_path / "config.dump").read_text())
    assert (described["id"], described["name"], described["rootfsImageName"]) == (container_id, "main", BUSYBOX)
    assert json.loads((tmp_path / "spec.dump").read_text())["process"]["args"][2] == script
    assert "etc/passwd" in json.loads((tmp_path / "deleted.files").read_text())
    changes = subprocess.run(["tar", "-tf", tmp_path / "rootfs-diff.tar"], check=True, capture_output=True, text=True)
    assert {"changed", "d/"} <= set(changes.stdout.splitlines())
    images = tmp_path / "checkpoint"
    assert (images / "inventory.img").exists()
    assert any(b"kept-in-memory" in pages.read_bytes() for pages in images.glob("pages-*.img"))
    assert "0" in (tmp_path / "ctr.log").read_text()


@dataclass(frozen=True, slots=True)
class Checkpointed:
    """An archive of a container that is gone, whose PID namespace was its own or the pod's; how far it had counted."""

    pids: str
    archive: Path
    counted: int
    volume: Path


@pytest.fixture(scope="module")
def checkpointed(service: Service, tmp_path_factory: pytest.TempPathFactory, request: Any) -> Checkpointed:
    """Of a container with a volume, in a pod's network."""
    directory = tmp_path_factory.mktemp("checkpointed")
    archive, volume = directory / "checkpoint.tar", directory / "volume"
    volume.mkdir()
    script = f"echo kept >/changed; rm /etc/passwd; rm -r /home; mkdir /home; touch /home/mine; {COUNTER}"
    with service.pod(config=_pod_with_pids(service, "origin", request.param)) as pod:
        container_id = pod.run("sh", "-c", script, name="main", **_restorable(volume, request.param))
        until(lambda: pod.log("main").count("\n") > 100, EXIT_SECONDS)
        checkpoint = cri.CheckpointContainerRequest(container_id=container_id, location=str(archive), timeout=120)
        service.runtime.CheckpointContainer(checkpoint, timeout=CALL_SECONDS)
        counted = pod.log("main").count("\n")
    return Checkpointed(request.param, archive, counted, volume)


def _whole_lines(pod: Pod, name: str) -> list[str]:
    """The lines of a log that is being written."""
    return pod.log(name).rpartition("\n")[0].splitlines()


def _pod_with_pids(service: Service, name: str, pids: str) -> cri.PodSandboxConfig:
    options = cri.NamespaceOption(pid=cri.NamespaceMode.Value(pids))
    security = cri.LinuxSandboxSecurityContext(namespace_options=options)
    return service.sandbox_config(f"{name}-{pids.lower()}", linux=cri.LinuxPodSandboxConfig(security_context=security))


def _restorable(volume: Path, pids: str) -> dict[str, Any]:
    options = cri.NamespaceOption(pid=cri.NamespaceMode.Value(pids))
    linux = cri.LinuxContainerConfig(security_context=cri.LinuxContainerSecurityContext(namespace_options=options))
    return {"linux": linux, "mounts": [cri.Mount(container_path="/volume", host_path=str(volume))]}


@pytest.mark.cri("CreateContainer", "config.image")
@pytest.mark.parametrize(
    ("checkpointed", "kind"), [("CONTAINER", "archive"), ("POD", "image")], indirect=["checkpointed"]
)
def test_a_container_is_made_from_a_checkpoint(service: Service, checkpointed: Checkpointed, kind: str) -> None:
    """In another pod, with another address, it counts on, in its own log."""
    image = str(checkpointed.archive)
    if kind == "image":
        image = "localhost/checkpoint:latest"
        layer = checkpointed.archive.read_bytes()
        built = build_image([layer], {}, annotations={"org.criu.checkpoint.container.name": "main"})
        layout = write_layout(checkpointed.archive.parent / "layout", {image: built})
        service.import_image(layout)
    pids = checkpointed.pids
    with service.pod(config=_pod_with_pids(service, f"copy-{kind}", pids)) as pod:
        container_id = pod.run(name="copy", image=image, **_restorable(checkpointed.volume, pids))
        until(lambda: pod.log("copy").count("\n") > 150, EXIT_SECONDS)
        numbers = [int(line.split()[3]) for line in _whole_lines(pod, "copy")]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        assert 0 < numbers[0] <= checkpointed.counted + 1
        assert service.status(container_id).state == cri.CONTAINER_RUNNING
        script = "cat /changed; ls /etc/passwd; ls -a /home; touch /volume/here; ip -4 -o address show eth0"
        seen = pod.exec(container_id, "sh", "-c", script)
        assert b"kept\n" in seen.stdout
        assert b"No such file" in seen.stderr
        assert b".\n..\nmine\n" in seen.stdout
        assert pod.status().network.ip.encode() in seen.stdout
        assert (checkpointed.volume / "here").exists()
        stats = cri.ContainerStatsRequest(container_id=container_id)
        assert service.runtime.ContainerStats(stats, timeout=CALL_SECONDS).stats.memory.usage_bytes.value > 0
        if kind == "archive":
            service.kill9()
        counted = pod.log("copy").count("\n")
        until(lambda: pod.log("copy").count("\n") > counted, EXIT_SECONDS)
        stop = cri.StopContainerRequest(container_id=container_id, timeout=0)
        service.runtime.StopContainer(stop, timeout=CALL_SECONDS)
        assert service.status(container_id).exit_code == 137
        if kind == "image":
            with pytest.raises(grpc.RpcError, match="1 containers use"):
                _remove_image(service, image)
    if kind == "image":
        _remove_image(service, image)


def test_programs_with_tcp_sockets_go_on(service: Service, tmp_path: Path) -> None:
    """The criu of this machine can capture them on its kernel. The others take minutes more, under emulation."""
    service.import_image(PROGRAMS, programs.IMAGE)
    carried_over(service, tmp_path, [one for one in programs.PROGRAMS if one.tcp or one.name == "threads"])
    _remove_image(service, programs.IMAGE)


def _remove_image(service: Service, name: str) -> None:
    service.images.RemoveImage(cri.RemoveImageRequest(image=cri.ImageSpec(image=name)), timeout=CALL_SECONDS)


@pytest.mark.parametrize("checkpointed", ["POD"], indirect=True)
def test_a_checkpoint_that_does_not_fit_or_is_damaged_leaves_nothing(
    service: Service, checkpointed: Checkpointed, tmp_path: Path
) -> None:
    pids, image = checkpointed.pids, str(checkpointed.archive)
    damaged = tmp_path / "damaged.tar"
    with tarfile.open(checkpointed.archive) as old, tarfile.open(damaged, "w") as new:
        for member in old:
            content = old.extractfile(member)
            if not member.name.startswith("checkpoint/core-"):
                new.addfile(member, content)
    damaged.chmod(0o600)
    with service.pod(config=_pod_with_pids(service, "misfit", pids)) as pod:
        for wrong, said in (
            ({"linux": _restorable(checkpointed.volume, pids)["linux"]}, "had mounts at /volume: add them"),
            (_restorable(checkpointed.volume, "CONTAINER"), "had the pod's pid namespace, the new one has its own"),
        ):
            with pytest.raises(grpc.RpcError, match=said) as refused:
                pod.create(name="misfit", image=image, **wrong)
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        mine = cri.ListContainersRequest(filter=cri.ContainerFilter(pod_sandbox_id=pod.id))
        assert not service.runtime.ListContainers(mine, timeout=CALL_SECONDS).containers
        with pytest.raises(grpc.RpcError, match="criu failed"):
            pod.run(name="damaged", image=str(damaged), **_restorable(checkpointed.volume, pids))


def limits(process: Process) -> dict[str, str]:
    """What the kernel has for FILES_OF_LIMITS."""
    cgroup = process.cgroup()
    return {name: (cgroup / name).read_text().strip() for name in FILES_OF_LIMITS}


def test_limits_are_seen_from_inside(service: Service, workload: Workload) -> None:
    names = " ".join(f"/sys/fs/cgroup/{name}" for name in FILES_OF_LIMITS)
    shown = workload.pod.exec(workload.container_id, "sh", "-c", f"cat {names}; nproc; cat /proc/self/cgroup")
    assert shown.stdout.decode().splitlines() == [*FILES_OF_LIMITS.values(), "1", "0::/"]
    written = workload.pod.exec(workload.container_id, "sh", "-c", "echo max > /sys/fs/cgroup/memory.max")
    assert written.exit_code != 0
    assert b"Read-only" in written.stderr


def test_stats_are_read_from_version_2(service: Service, workload: Workload) -> None:
    request = cri.PodSandboxStatsRequest(pod_sandbox_id=workload.pod.id)
    linux = service.runtime.PodSandboxStats(request, timeout=CALL_SECONDS).stats.linux
    (container,) = linux.containers
    assert 0 < container.cpu.usage_core_nano_seconds.value <= linux.cpu.usage_core_nano_seconds.value
    assert container.cpu.psi.Some.Total >= 0
    memory = container.memory
    assert 0 < memory.rss_bytes.value <= memory.usage_bytes.value < 64 * MEBIBYTE
    assert memory.available_bytes.value == 64 * MEBIBYTE - memory.working_set_bytes.value
    assert memory.page_faults.value > 0
    assert linux.process.process_count.value >= 2
    assert linux.network.default_interface.rx_bytes.value > 0


def test_a_score_that_takes_privilege_is_set(workload: Workload) -> None:
    assert workload.process.read("oom_score_adj") == "-998\n"


def test_the_shim_is_outside_of_the_units_and_the_pods_cgroups(service: Service, workload: Workload) -> None:
    """Else systemd kills it with the service, and kubelet with the pod."""
    shim = workload.process.parent().cgroup()
    pod = workload.process.cgroup().parent
    assert "crispd.service" not in str(shim)
    assert not shim.is_relative_to(pod)
    assert "crispd.service" in str(Process.at(service.pid()).cgroup())


def test_apparmor_confines_what_asks_for_nothing(workload: Workload) -> None:
    assert workload.process.read("attr/current").strip() == "crisp-default (enforce)"
    # Root, and no seccomp filter: what refuses is the profile. An exec is confined too.
    for script in ("echo 1 > /proc/sysrq-trigger", "mount -t tmpfs tmpfs /mnt", "cat /proc/kcore"):
        assert workload.pod.exec(workload.container_id, "sh", "-c", script).exit_code != 0
    answer = workload.pod.exec(workload.container_id, "cat", "/proc/self/attr/current")
    assert answer.stdout == b"crisp-default (enforce)\n"


@pytest.mark.parametrize(
    ("security", "label"),
    [
        ({"apparmor": {"profile_type": "RuntimeDefault"}}, "crisp-default (enforce)"),
        ({"apparmor": {"profile_type": "Unconfined"}}, "unconfined"),
        ({"apparmor": {"profile_type": "Localhost", "localhost_ref": "guest-no-tmp"}}, "guest-no-tmp (enforce)"),
        ({"apparmor_profile": "localhost/guest-no-tmp"}, "guest-no-tmp (enforce)"),
        ({"apparmor_profile": "unconfined"}, "unconfined"),
    ],
)
def test_an_apparmor_profile_is_in_force(
    service: Service, workload: Workload, security: dict[str, Any], label: str
) -> None:
    profile = "profile guest-no-tmp flags=(attach_disconnected) { file, signal, deny /tmp/** w, }"
    subprocess.run(["apparmor_parser", "--replace", "--skip-cache"], input=profile.encode(), check=True)
    linux = cri.LinuxContainerConfig(security_context=cri.LinuxContainerSecurityContext(**security))
    script = "cat /proc/self/attr/current; mkdir -p /tmp; touch /tmp/new"
    container_id = workload.pod.run("sh", "-c", script, name="confined", linux=linux)
    status = service.wait_exited(container_id, EXIT_SECONDS)
    assert workload.pod.log("confined").splitlines()[0].endswith(f" F {label}")
    assert (status.exit_code != 0) == label.startswith("guest-no-tmp")
    service.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container_id), timeout=CALL_SECONDS)
    Path(workload.pod.config.log_directory, "confined.log").unlink()


def test_an_apparmor_profile_that_is_not_loaded_is_refused(workload: Workload) -> None:
    profile = cri.SecurityProfile(profile_type=cri.SecurityProfile.Localhost, localhost_ref="nobodys")
    linux = cri.LinuxContainerConfig(security_context=cri.LinuxContainerSecurityContext(apparmor=profile))
    with pytest.raises(grpc.RpcError, match="profile 'nobodys' is not loaded") as refusal:
        workload.pod.create("true", name="refused", linux=linux)
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_the_default_seccomp_profile_filters(service: Service, workload: Workload) -> None:
    profile = cri.SecurityProfile(profile_type=cri.SecurityProfile.RuntimeDefault)
    security = cri.LinuxContainerSecurityContext(seccomp=profile)
    linux = cri.LinuxContainerConfig(security_context=security)
    script = "unshare -U true; grep Seccomp: /proc/self/status"
    container_id = workload.pod.run("sh", "-c", script, name="seccomp", linux=linux)
    service.wait_exited(container_id, EXIT_SECONDS)
    log = workload.pod.log("seccomp")
    assert "Seccomp:\t2" in log
    assert "Operation not permitted" in log


def test_an_exec_answers_with_output_and_status(workload: Workload) -> None:
    answer = workload.pod.exec(workload.container_id, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (answer.stdout, answer.stderr, answer.exit_code) == (b"out\n", b"err\n", 7)


def test_the_pod_answers_on_its_address(workload: Workload) -> None:
    address = workload.pod.status().network.ip
    assert address.startswith("10.85.")
    with urllib.request.urlopen(f"http://{address}:8080/", timeout=CALL_SECONDS) as answer:
        assert answer.read().decode().strip() == PAGE


def test_a_device_that_was_not_given_cannot_be_opened(workload: Workload) -> None:
    """mknod is allowed, as runc has it; opening is for the device filter to refuse."""
    disk = os.stat("/dev/vda").st_rdev
    script = f"mknod /tmp/disk b {os.major(disk)} {os.minor(disk)} && head -c 1 /tmp/disk"
    refused = workload.pod.exec(workload.container_id, "sh", "-c", script)
    assert refused.exit_code != 0
    assert refused.stderr == b"head: /tmp/disk: Operation not permitted\n"
    script = "mknod /tmp/zero c 1 5 && head -c 3 /tmp/zero | wc -c"
    allowed = workload.pod.exec(workload.container_id, "sh", "-c", script)
    assert allowed.stdout == b"3\n"


@pytest.mark.cri("CreateContainer", "security_context.cgroup_mount_mode")
@pytest.mark.parametrize("owners", ["root", *["user namespace"] * MACHINE["user_namespaces"]])
def test_a_container_manages_cgroups_below_its_own(service: Service, owners: str) -> None:
    """With a writable cgroup filesystem it makes cgroups and limits them; its own limits stay as they are."""
    # As systemd mounts it. criu, which ran before, mounts it without, and that counts for all mounts of it.
    subprocess.run(["mount", "-o", "remount,nsdelegate,memory_recursiveprot", CGROUPS], check=True)
    options = cri.NamespaceOption(pid=cri.CONTAINER)
    if owners != "root":
        lines = [cri.IDMapping(container_id=0, host_id=1 << 20, length=65536)]
        options.userns_options.CopyFrom(cri.UserNamespace(mode=cri.POD, uids=lines, gids=lines))
    pod_security = cri.LinuxSandboxSecurityContext(namespace_options=options)
    config = service.sandbox_config("manager", linux=cri.LinuxPodSandboxConfig(security_context=pod_security))
    security = cri.LinuxContainerSecurityContext(
        namespace_options=options, cgroup_mount_mode=cri.CGROUP_MOUNT_MODE_READ_WRITE
    )
    linux = cri.LinuxContainerConfig(security_context=security, resources=LIMITS)
    script = """
    cd /sys/fs/cgroup && mkdir leaf work && echo 1 > leaf/cgroup.procs && echo $$ > leaf/cgroup.procs &&
    echo +memory > cgroup.subtree_control && echo 16777216 > work/memory.max && cat work/memory.max
    echo max 2>/dev/null > memory.max || echo kept
    """
    with service.pod("manager", config) as pod:
        container_id = pod.run("sleep", "1000", linux=linux)
        answer = pod.exec(container_id, "sh", "-c", script)
        assert answer.stdout.decode().split() == ["16777216", "kept"], answer.stderr
        cgroup = Process.of(service, container_id).cgroup().parent
        assert (cgroup / "memory.max").read_text().strip() == str(64 * MEBIBYTE)


@pytest.mark.cri("CreateContainer", "namespace_options.cgroupns_options")
def test_the_nodes_cgroups_are_seen_without_a_namespace(service: Service) -> None:
    """What /proc names is there in the mount."""
    with service.pod("node") as pod:
        node = cri.LinuxContainerConfig(
            security_context=cri.LinuxContainerSecurityContext(
                namespace_options=cri.NamespaceOption(
                    pid=cri.CONTAINER, cgroupns_options=cri.CgroupNamespace(mode=cri.NODE)
                )
            )
        )
        seen = pod.run("sleep", "1000", name="node", linux=node)
        shown = pod.exec(seen, "sh", "-c", "d=$(cut -d: -f3 /proc/1/cgroup); cat /sys/fs/cgroup$d/cgroup.procs")
        assert len(shown.stdout.split()) >= 1, shown.stderr


def test_a_containers_own_files_have_a_limit(service: Service) -> None:
    assert enforced(service.root)
    look_at_limits(service)
    look_at_removal(service)


def test_a_privileged_container_opens_the_hosts_devices(service: Service, workload: Workload) -> None:
    security = cri.LinuxSandboxSecurityContext(privileged=True)
    config = service.sandbox_config("privileged", linux=cri.LinuxPodSandboxConfig(security_context=security))
    with service.pod(config=config) as pod:
        linux = cri.LinuxContainerConfig(security_context=cri.LinuxContainerSecurityContext(privileged=True))
        container_id = pod.run("sh", "-c", "head -c 4 /dev/vda | wc -c; grep CapEff /proc/self/status", linux=linux)
        assert service.wait_exited(container_id, EXIT_SECONDS).exit_code == 0
        assert [line.split(" ", 3)[3] for line in pod.log().splitlines()] == ["4", ALL_CAPABILITIES]


def test_a_container_out_of_memory_says_so(service: Service, workload: Workload) -> None:
    linux = cri.LinuxContainerConfig(resources=cri.LinuxContainerResources(memory_limit_in_bytes=16 * MEBIBYTE))
    container_id = workload.pod.run("sh", "-c", "tail /dev/zero", name="hungry", linux=linux)
    status = service.wait_exited(container_id, EXIT_SECONDS)
    assert (status.reason, status.exit_code) == ("OOMKilled", 137)


def test_pods_do_not_notice_that_the_service_is_stopped(service: Service, workload: Workload) -> None:
    """Without the service no unit asks for the cpu controller any more, and a reload makes systemd reconsider."""
    unit = Process.at(service.pid()).cgroup()
    service.stop()
    try:
        systemctl("daemon-reload")
        assert not unit.exists()
        assert limits(workload.process) == FILES_OF_LIMITS
    finally:
        service.start()
    assert_goes_on(service, workload)


def test_pods_do_not_notice_that_the_daemon_is_killed(service: Service, workload: Workload) -> None:
    service.kill9()
    assert limits(workload.process) == FILES_OF_LIMITS
    assert_goes_on(service, workload)


def test_pods_do_not_notice_that_their_shim_is_killed(service: Service, workload: Workload) -> None:
    """Alone, then while crispd is away. Exit codes arrive; what was created is started."""
    script = "trap 'exit 6' TERM; echo ready; while :; do usleep 10000; done"
    leaving = workload.pod.run("sh", "-c", script, name="leaver")
    until(lambda: "ready" in workload.pod.log("leaver"), EXIT_SECONDS)
    created = workload.pod.create("sh", "-c", "exit 7", name="created")
    kill_shim(workload.pod.id, CALL_SECONDS)
    assert_goes_on(service, workload)
    assert limits(workload.process) == FILES_OF_LIMITS
    stop = cri.StopContainerRequest(container_id=leaving, timeout=300)
    service.runtime.StopContainer(stop, timeout=CALL_SECONDS)
    assert service.status(leaving).exit_code == 6
    service.stop()
    kill_shim(workload.pod.id, CALL_SECONDS)
    service.start()
    assert_goes_on(service, workload)
    service.runtime.StartContainer(cri.StartContainerRequest(container_id=created), timeout=CALL_SECONDS)
    assert service.wait_exited(created, EXIT_SECONDS).exit_code == 7


def assert_goes_on(service: Service, workload: Workload) -> None:
    """The same process as before, known as running, and reachable."""
    assert Process.of(service, workload.container_id) == workload.process
    assert service.status(workload.container_id).state == cri.CONTAINER_RUNNING
    assert workload.pod.status().state == cri.SANDBOX_READY
    assert workload.pod.exec(workload.container_id, "echo", "still here").stdout == b"still here\n"


def test_no_line_of_the_log_is_lost(service: Service, workload: Workload) -> None:
    """Over all that the daemon went through above."""
    lines = [line.split(" ", 3) for line in _whole_lines(workload.pod, "main")]
    assert {(stream, tag) for _, stream, tag, _ in lines} == {("stdout", "F")}
    assert [int(text) for _, _, _, text in lines] == list(range(len(lines)))
    assert len(lines) >= 1000


def test_what_is_torn_down_leaves_nothing(service: Service, workload: Workload) -> None:
    """A pod like those above, from nothing to nothing; the crisp0 bridge and the leases' directory exist by now."""
    before = leaks.Snapshot.take()
    with service.pod("passing") as pod:
        pod.run("sleep", "1000", linux=cri.LinuxContainerConfig(resources=LIMITS))
        pod.run("yes", name="noisy")
        address = pod.status().network.ip
        assert (service.leases / address).exists()
    assert left_since(before) == []
    assert not (service.leases / address).exists()


def test_the_stop_signal_is_obeyed(service: Service, workload: Workload) -> None:
    script = "trap 'exit 4' TERM; echo ready; while :; do usleep 10000; done"
    container_id = workload.pod.run("sh", "-c", script, name="polite")
    deadline = time.monotonic() + CALL_SECONDS
    while "ready" not in workload.pod.log("polite") and time.monotonic() < deadline:
        time.sleep(0.05)
    request = cri.StopContainerRequest(container_id=container_id, timeout=300)
    service.runtime.StopContainer(request, timeout=CALL_SECONDS)
    status = service.status(container_id)
    assert (status.exit_code, status.reason) == (4, "Error")


def by_crun(service: Service, name: str) -> Path:
    """A limited container that crun makes, from its start to its end; the cgroup that it had."""
    config = service.sandbox_config(name)
    request = cri.RunPodSandboxRequest(config=config, runtime_handler="crun")
    pod = Pod(service, service.runtime.RunPodSandbox(request, timeout=CALL_SECONDS).pod_sandbox_id, config)
    try:
        container_id = pod.run("sh", "-c", COUNTER, linux=cri.LinuxContainerConfig(resources=LIMITS))
        process = Process.of(service, container_id)
        cgroup = process.cgroup()
        assert limits(process) == FILES_OF_LIMITS
        assert os.listdir("/run/crisp/handlers/crun") == [container_id]
        kill_shim(pod.id, CALL_SECONDS)
        answer = pod.exec(container_id, "sh", "-c", "echo in; exit 4")
        assert (answer.stdout, answer.exit_code) == (b"in\n", 4)
        assert "stdout F 0\n" in pod.log("main")
        service.runtime.StopContainer(cri.StopContainerRequest(container_id=container_id), timeout=CALL_SECONDS)
        assert service.status(container_id).exit_code == 137
    finally:
        pod.remove()
    assert os.listdir("/run/crisp/handlers/crun") == []
    return cgroup


def test_crun_makes_a_pods_containers(service: Service) -> None:
    before = leaks.Snapshot.take()
    by_crun(service, "by-crun")
    assert left_since(before) == []


POD_SLICE = "/kubelet.slice/kubelet-pods.slice/kubelet-pods-podguest.slice"  # as kubelet names a pod's parent


@pytest.fixture(scope="module")
def scoped(service: Service, workload: Workload) -> Iterator[Workload]:
    """A limited container made with the systemd cgroup driver, which the daemon has meanwhile."""
    drop_in = Path("/etc/crisp/crisp.toml.d/driver.toml")
    drop_in.parent.mkdir(parents=True, exist_ok=True)
    drop_in.write_text('cgroup_driver = "systemd"\n')
    service.stop()
    service.start()
    config = service.sandbox_config("scoped", linux=cri.LinuxPodSandboxConfig(cgroup_parent=POD_SLICE))
    with service.pod(config=config) as pod:
        container_id = pod.run("sleep", "10000", linux=cri.LinuxContainerConfig(resources=LIMITS))
        yield Workload(pod, container_id, Process.of(service, container_id))
    drop_in.unlink()
    service.stop()
    service.start()


def test_with_systemd_a_container_is_a_scope(service: Service, workload: Workload, scoped: Workload) -> None:
    assert service.runtime.RuntimeConfig(cri.RuntimeConfigRequest()).linux.cgroup_driver == cri.CgroupDriver.SYSTEMD
    unit = f"crisp-{scoped.container_id}.scope"
    assert scoped.process.cgroup() == CGROUPS / POD_SLICE[1:] / unit
    assert (scoped.process.cgroup() / "cgroup.procs").read_text().split() == [str(scoped.process.pid)]
    shown = systemctl("show", "--property=ActiveState,Delegate,MemoryMax,MemoryHigh,TasksMax,Slice", unit)
    assert set(shown.splitlines()) == {
        "ActiveState=active", "Delegate=yes", f"MemoryMax={64 * MEBIBYTE}", f"MemoryHigh={48 * MEBIBYTE}",
        "TasksMax=77", "Slice=kubelet-pods-podguest.slice",
    }  # fmt: skip
    assert scoped.process.parent().cgroup().parent == CGROUPS / "system.slice"
    assert_goes_on(service, workload)  # of the other driver


def test_with_systemd_limits_outlive_its_reload(service: Service, scoped: Workload) -> None:
    systemctl("daemon-reload")
    assert limits(scoped.process) == FILES_OF_LIMITS
    resources = cri.LinuxContainerResources(memory_limit_in_bytes=80 * MEBIBYTE, cpu_quota=33_333)
    request = cri.UpdateContainerResourcesRequest(container_id=scoped.container_id, linux=resources)
    service.runtime.UpdateContainerResources(request, timeout=CALL_SECONDS)
    changed = {"memory.max": str(80 * MEBIBYTE), "cpu.max": "33333 100000"}
    assert limits(scoped.process) == FILES_OF_LIMITS | changed
    systemctl("daemon-reload")
    changed["cpu.max"] = limits(scoped.process)["cpu.max"]
    assert changed["cpu.max"] in ("33333 100000", "34000 100000")  # never less: systemd keeps whole percents
    assert limits(scoped.process) == FILES_OF_LIMITS | changed


def test_with_systemd_memory_in_use_is_not_taken_away(service: Service, scoped: Workload) -> None:
    script = "mkfifo /full; sleep 1000 < /full & dd if=/dev/zero of=/full bs=32M"  # keeps a buffer of 32 MiB
    container_id = scoped.pod.run("sh", "-c", script, name="full")
    cgroup = Process.of(service, container_id).cgroup()
    deadline = time.monotonic() + EXIT_SECONDS
    while int((cgroup / "memory.current").read_text()) < 32 * MEBIBYTE and time.monotonic() < deadline:
        time.sleep(0.1)
    resources = cri.LinuxContainerResources(memory_limit_in_bytes=16 * MEBIBYTE)
    request = cri.UpdateContainerResourcesRequest(container_id=container_id, linux=resources)
    with pytest.raises(grpc.RpcError, match="busy"):
        service.runtime.UpdateContainerResources(request, timeout=CALL_SECONDS)
    assert (cgroup / "memory.max").read_text() == "max\n"
    assert service.status(container_id).state == cri.CONTAINER_RUNNING


def test_with_systemd_devices_and_memory_are_limited(service: Service, scoped: Workload) -> None:
    disk = os.stat("/dev/vda").st_rdev
    script = f"mknod /tmp/disk b {os.major(disk)} {os.minor(disk)} && head -c 1 /tmp/disk"
    assert scoped.pod.exec(scoped.container_id, "sh", "-c", script).exit_code != 0
    hungry = cri.LinuxContainerConfig(resources=cri.LinuxContainerResources(memory_limit_in_bytes=16 * MEBIBYTE))
    container_id = scoped.pod.run("sh", "-c", "tail /dev/zero", name="hungry", linux=hungry)
    assert service.wait_exited(container_id, EXIT_SECONDS).reason == "OOMKilled"


def test_with_systemd_the_daemon_may_die(service: Service, scoped: Workload) -> None:
    service.kill9()
    assert limits(scoped.process)["pids.max"] == FILES_OF_LIMITS["pids.max"]
    assert_goes_on(service, scoped)


def test_with_systemd_crun_asks_for_scopes(service: Service, scoped: Workload) -> None:
    before = leaks.Snapshot.take()
    cgroup = by_crun(service, "by-crun-in-scopes")
    assert cgroup.name == "container"  # crun's own, below its scope
    assert cgroup.parent.name.startswith("crisp-")
    assert cgroup.parent.name.endswith(".scope")
    assert left_since(before) == []


def test_with_systemd_nothing_is_left(service: Service, scoped: Workload) -> None:
    before = leaks.Snapshot.take()
    with service.pod("passing-scopes") as pod:
        container_id = pod.run("sleep", "1000", linux=cri.LinuxContainerConfig(resources=LIMITS))
        assert Process.of(service, container_id).cgroup().parent == CGROUPS / f"crisp.slice/crisp-{pod.id}.slice"
        pod.create("true", name="never-started")
    assert left_since(before) == []
    living = {f"crisp-{one}.scope" for one in (scoped.container_id, _full(service, scoped))}

    def left() -> set[str]:
        """Of ended containers that are still in the lists, too."""
        units = systemctl("list-units", "--all", "--plain", "--no-legend", "crisp-*.scope", "crisp-*.slice")
        names = {line.split()[0] for line in units.splitlines()}
        return {name for name in names - living if not name.startswith(("crisp-shims-", "crisp-streams-"))}

    until(lambda: not left(), EXIT_SECONDS)


def _full(service: Service, scoped: Workload) -> str:
    """The id of the container of the memory test."""
    containers = service.runtime.ListContainers(cri.ListContainersRequest(), timeout=CALL_SECONDS).containers
    return next(one.id for one in containers if one.metadata.name == "full")


def test_the_workload_is_left_for_a_power_cut(service: Service, workload: Workload) -> None:
    """The last one. Nothing is synced after the exit but by crispd itself; a moment later the machine is off."""
    done = workload.pod.create("sh", "-c", "exit 3", name="done")
    expected = {
        "sandbox": workload.pod.id,
        "running": workload.container_id,
        "exited": done,
        "address": workload.pod.status().network.ip,
    }
    EXPECTED.write_text(json.dumps(expected))
    subprocess.run(["sync", EXPECTED, EXPECTED.parent], check=True)
    service.runtime.StartContainer(cri.StartContainerRequest(container_id=done), timeout=CALL_SECONDS)
    service.wait_exited(done, EXIT_SECONDS)
