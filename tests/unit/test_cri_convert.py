"""Requests become values of pods.model, or are refused by a message that names the field and its value."""

from __future__ import annotations

from typing import Any

import pytest

from cri.convert.container import container_config
from cri.convert.container_status import container_status
from cri.convert.image import credentials, image_message
from cri.convert.metrics import sandbox_metrics
from cri.convert.sandbox import sandbox_config, sandbox_status
from cri.v1 import api_pb2
from image.model import Image, ImageConfig
from pods.errors import InvalidArgument
from pods.model import (
    CgroupMountMode,
    Container,
    ContainerSecurity,
    ContainerState,
    ContainerUser,
    DNSConfig,
    GroupsPolicy,
    IDMapping,
    Mount,
    NamespaceMode,
    PortMapping,
    ProfileType,
    Propagation,
    Resources,
    Sandbox,
    SandboxState,
    SecurityProfile,
    UserNamespace,
)
from pods.stats.stats import ContainerStats, SandboxStats
from runtime.cgroups.usage import CpuUse, HugePageUse, Usage

PINNED = f"registry.test/profile@sha256:{'0' * 64}"
METADATA = {"name": "web", "uid": "u-1", "namespace": "default"}


def pod(**members: Any) -> api_pb2.PodSandboxConfig:
    return api_pb2.PodSandboxConfig(**{"metadata": METADATA, **members})


def container(**members: Any) -> api_pb2.ContainerConfig:
    return api_pb2.ContainerConfig(**{"metadata": {"name": "app"}, "image": {"image": "busybox"}, **members})


def in_pod(**context: Any) -> api_pb2.PodSandboxConfig:
    return pod(linux={"security_context": context})


def in_container(**context: Any) -> api_pb2.ContainerConfig:
    return container(linux={"security_context": context})


def limited(**limits: Any) -> api_pb2.ContainerConfig:
    return container(linux={"resources": limits})


def mounted(**mount: Any) -> api_pb2.ContainerConfig:
    return container(mounts=[{"container_path": "/c", "host_path": "/h", **mount}])


@pytest.mark.cri("RunPodSandbox", "linux.overhead", "linux.resources", "security_context.readonly_rootfs")
@pytest.mark.cri("RunPodSandbox", "security_context.run_as_user", "security_context.run_as_group")
@pytest.mark.cri("RunPodSandbox", "security_context.supplemental_groups", "security_context.selinux_options")
@pytest.mark.cri("RunPodSandbox", "security_context.supplemental_groups_policy")
@pytest.mark.cri("RunPodSandbox", "security_context.seccomp", "security_context.apparmor")
def test_every_member_of_a_pods_configuration_is_kept() -> None:
    config = sandbox_config(
        "config",
        pod(
            metadata={**METADATA, "attempt": 3},
            hostname="web-0.example",
            log_directory="/var/log/pods/x",
            dns_config={"servers": ["10.0.0.10"], "searches": ["svc.local"], "options": ["ndots:5"]},
            port_mappings=[{"protocol": 1, "container_port": 53, "host_port": 5353, "host_ip": "::1"}],
            labels={"a": "b"},
            annotations={"c": "d"},
            linux={
                "cgroup_parent": "/kubepods/pod1",
                "sysctls": {"net.ipv4.ip_local_port_range": "1 2", "net/ipv4/conf/eth0.1/x": "1"},
                "overhead": {"memory_limit_in_bytes": 7},
                "resources": {"cpu_shares": 9},
                "security_context": {
                    "namespace_options": {
                        "network": "NODE",
                        "pid": "CONTAINER",
                        "ipc": "NODE",
                        "userns_options": {"mode": "POD", "uids": [{"host_id": 65536, "length": 65536}]},
                    },
                    "run_as_user": {"value": 0},
                    "run_as_group": {"value": 5},
                    "supplemental_groups": [7],
                    "supplemental_groups_policy": "Strict",
                    "readonly_rootfs": True,
                    "privileged": True,
                    "selinux_options": {"level": "s0:c1"},
                    "seccomp": {"profile_type": "Localhost", "localhost_ref": "localhost//p.json"},
                    "apparmor": {"profile_type": "Unconfined"},
                },
            },
        ),
    )
    assert config.metadata.attempt == 3
    assert config.hostname == "web-0.example"
    assert config.log_directory == "/var/log/pods/x"
    assert config.dns == DNSConfig(servers=("10.0.0.10",), searches=("svc.local",), options=("ndots:5",))
    assert config.port_mappings == (PortMapping(protocol="udp", container_port=53, host_port=5353, host_ip="::1"),)
    assert (config.labels, config.annotations) == ({"a": "b"}, {"c": "d"})
    assert config.cgroup_parent == "/kubepods/pod1"
    assert config.sysctls == {"net.ipv4.ip_local_port_range": "1 2", "net/ipv4/conf/eth0.1/x": "1"}
    assert config.overhead == Resources(memory_limit_in_bytes=7)
    assert config.resources == Resources(cpu_shares=9)
    security = config.security
    assert security.namespaces.network is NamespaceMode.NODE
    assert security.namespaces.pid is NamespaceMode.CONTAINER
    assert security.namespaces.userns == UserNamespace(
        mode=NamespaceMode.POD, uids=(IDMapping(host_id=65536, container_id=0, length=65536),)
    )
    assert (security.run_as_user, security.run_as_group, security.supplemental_groups) == (0, 5, (7,))
    assert security.groups_policy is GroupsPolicy.STRICT
    assert security.readonly_rootfs
    assert security.privileged
    assert security.selinux is not None
    assert security.selinux.level == "s0:c1"
    assert security.seccomp == SecurityProfile(type=ProfileType.LOCALHOST, localhost_ref="/p.json")
    assert security.apparmor == SecurityProfile(type=ProfileType.UNCONFINED)


def test_every_member_of_a_containers_configuration_is_kept() -> None:
    config = container_config(
        "config",
        container(
            metadata={"name": "app", "attempt": 2},
            image={"image": "sha256:1", "user_specified_image": "busybox"},
            command=["sh"],
            args=["-c", ""],
            working_dir="/w",
            envs=[{"key": "A", "value": b"=\xc3\xa9"}, {"key": "B"}],
            mounts=[
                {"container_path": "/c", "host_path": "/h", "readonly": True, "recursive_read_only": True},
                {"container_path": "/d", "host_path": "/i", "propagation": "PROPAGATION_BIDIRECTIONAL"},
                {"container_path": "/e", "image": {"image": "data"}, "image_sub_path": "sub/dir"},
                {"container_path": "/f", "host_path": "/j", "mount_options": ["noexec", "nodev", "noexec"]},
            ],
            devices=[{"container_path": "/dev/a", "host_path": "/dev/b", "permissions": "rw"}],
            CDI_devices=[{"name": "vendor.com/gpu=0"}],
            log_path="app/0.log",
            stdin=True,
            stdin_once=True,
            tty=True,
            stop_signal="SIGNAL_SIGRTMINPLUS3",
            linux={
                "resources": {
                    "cpu_period": 100000,
                    "cpu_quota": -1,
                    "oom_score_adj": -998,
                    "cpuset_cpus": "0-1,3",
                    "memory_swap_limit_in_bytes": -1,
                    "hugepage_limits": [{"page_size": "2MB", "limit": 2**63}],
                    "unified": {"memory.high": "max"},
                },
                "security_context": {
                    "capabilities": {"add_capabilities": ["NET_ADMIN"], "drop_capabilities": ["ALL"]},
                    "namespace_options": {"pid": "TARGET", "target_id": "c1", "cgroupns_options": {"mode": "NODE"}},
                    "cgroup_mount_mode": "CGROUP_MOUNT_MODE_READ_ONLY",
                    "run_as_username": "www-data",
                    "run_as_group": {"value": 33},
                    "no_new_privs": True,
                    "masked_paths": ["/proc/kcore"],
                    "readonly_paths": ["/proc/sys"],
                },
            },
        ),
    )
    assert (config.metadata.attempt, config.image.user_specified_image) == (2, "busybox")
    assert (config.command, config.args, config.working_dir) == (("sh",), ("-c", ""), "/w")
    assert config.envs == (("A", "=é"), ("B", ""))
    assert config.mounts[0] == Mount(container_path="/c", host_path="/h", readonly=True, recursive_read_only=True)
    assert config.mounts[1].propagation is Propagation.BIDIRECTIONAL
    assert config.mounts[2].image is not None
    assert (config.mounts[2].image.image, config.mounts[2].image_sub_path) == ("data", "sub/dir")
    assert config.mounts[3].mount_options == ("noexec", "nodev")
    assert config.devices[0].permissions == "rw"
    assert config.cdi_devices == ("vendor.com/gpu=0",)
    assert (config.log_path, config.stdin, config.stdin_once, config.tty) == ("app/0.log", True, True, True)
    assert config.stop_signal == "SIGRTMIN+3"
    assert config.resources == Resources(
        cpu_period=100000,
        cpu_quota=-1,
        oom_score_adj=-998,
        cpuset_cpus="0-1,3",
        memory_swap_limit_in_bytes=-1,
        hugepage_limits={"2MB": 2**63},
        unified={"memory.high": "max"},
    )
    security = config.security
    assert (security.add_capabilities, security.drop_capabilities) == (("NET_ADMIN",), ("ALL",))
    assert (security.namespaces.pid, security.namespaces.target_id) == (NamespaceMode.TARGET, "c1")
    assert security.namespaces.cgroup is NamespaceMode.NODE
    assert security.cgroup_mount_mode is CgroupMountMode.READ_ONLY
    assert (security.run_as_username, security.run_as_user, security.run_as_group) == ("www-data", None, 33)
    assert security.no_new_privs
    assert (security.masked_paths, security.readonly_paths) == (("/proc/kcore",), ("/proc/sys",))
    assert security.seccomp is None


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (api_pb2.PodSandboxConfig(), "config.metadata: is required"),
        (pod(metadata={"uid": "u", "namespace": "n"}), "config.metadata.name: is required"),
        (pod(metadata={"name": "n", "namespace": "n"}), "config.metadata.uid: is required"),
        (pod(metadata={"name": "n", "uid": "u"}), "config.metadata.namespace: is required"),
        (pod(metadata={**METADATA, "name": "a\0b"}), "config.metadata.name: 'a\\x00b' contains a NUL byte"),
        (pod(hostname="../x"), "config.hostname: '../x' must be a host name"),
        (pod(hostname="a b"), "config.hostname: 'a b' must be a host name"),
        (pod(hostname="a\nb"), "config.hostname: 'a\\nb' must be a host name"),
        (pod(hostname="-a"), "config.hostname: '-a' must be a host name"),
        (pod(hostname="h" * 65), "length of config.hostname: 65 must be between 1 and 64"),
        (pod(log_directory="logs"), "config.log_directory: 'logs' must be an absolute path"),
        (pod(log_directory="/logs/../etc"), "config.log_directory: '/logs/../etc' must not contain '..'"),
        (pod(dns_config={"servers": ["1.1.1.1\nx"]}), "config.dns_config.servers[0]: '1.1.1.1\\nx' must be one word"),
        (pod(port_mappings=[{"host_port": 80}]), "config.port_mappings[0].container_port: 0 must be between"),
        (
            pod(port_mappings=[{"container_port": 1, "host_port": 65536}]),
            "config.port_mappings[0].host_port: 65536 must be between 0 and 65535",
        ),
        (
            pod(port_mappings=[{"container_port": 1, "host_ip": "localhost"}]),
            "config.port_mappings[0].host_ip: 'localhost' must be an IP address",
        ),
        (
            pod(port_mappings=[{"container_port": 1, "protocol": 9}]),
            "config.port_mappings[0].protocol: 9 is not a Protocol of CRI v1",
        ),
        (pod(labels={"": "x"}), "config.labels key: is required"),
        (pod(labels={"k": "v" * 4096}), "config.labels['k']: is too long"),
        (pod(annotations={"k": "\0"}), "config.annotations['k']: contains a NUL byte"),
        (pod(dns_config={"searches": ["a", ""]}), "config.dns_config.searches[1]: '' must be one word"),
        (pod(linux={"cgroup_parent": "/a\0"}), "config.linux.cgroup_parent: '/a\\x00' contains a NUL byte"),
        (pod(linux={"cgroup_parent": "/a/../.."}), "config.linux.cgroup_parent: '/a/../..' must not contain '..'"),
        (pod(linux={"sysctls": {"net..x": "1"}}), "config.linux.sysctls key: 'net..x' must be the name of a sysctl"),
        *(
            (pod(linux={"sysctls": {name: "1"}}), f"config.linux.sysctls key: {name!r} must be the name of a sysctl")
            for name in ("net/../kernel/core_pattern", "net.ipv4/../..", "net", "net.a b")
        ),
        (pod(linux={"overhead": {"cpu_shares": -1}}), "config.linux.overhead.cpu_shares: -1 must be 0 or more"),
        (
            in_pod(namespace_options={"network": 7}),
            "config.linux.security_context.namespace_options.network: 7 is not a NamespaceMode of CRI v1",
        ),
        (
            in_pod(namespace_options={"pid": "TARGET"}),
            "config.linux.security_context.namespace_options.pid: 'TARGET' is not supported here",
        ),
        (in_pod(run_as_user={"value": -1}), "config.linux.security_context.run_as_user: -1 must be between"),
        (in_pod(supplemental_groups=[2**32 - 1]), "supplemental_groups[0]: 4294967295 must be between"),
        (in_pod(seccomp_profile_path="evil"), "seccomp_profile_path: 'evil' must be runtime/default, unconfined or"),
        (in_pod(seccomp={"profile_type": "Localhost"}), "security_context.seccomp.localhost_ref: is required"),
        (
            in_pod(seccomp={"profile_type": "Localhost", "localhost_ref": "x.json"}),
            "security_context.seccomp: 'x.json' must be an absolute path",
        ),
        (
            in_pod(namespace_options={"cgroupns_options": {"mode": "CONTAINER"}}),
            "security_context.namespace_options.cgroupns_options: is for containers",
        ),
        (
            in_pod(seccomp={"profile_type": "Localhost", "localhost_ref": "/a\0b"}),
            "security_context.seccomp.localhost_ref: '/a\\x00b' contains a NUL byte",
        ),
        (in_pod(seccomp={"profile_type": "OCI"}), "seccomp.oci_ref: '' must be a reference with its digest"),
        (
            in_pod(seccomp={"profile_type": "OCI", "oci_ref": PINNED, "base_profile": {"type": "Localhost"}}),
            "seccomp.base_profile.localhost_ref: is required",
        ),
        (
            in_pod(seccomp={"profile_type": "OCI", "oci_ref": PINNED, "base_profile": {"localhost_ref": "/p"}}),
            "seccomp.base_profile.localhost_ref: '/p' belongs to type Localhost",
        ),
        (in_pod(seccomp={"oci_ref": "r.test/p@sha256:1"}), "seccomp: oci_ref and base_profile belong to"),
        (in_pod(seccomp={"base_profile": {}}), "seccomp: oci_ref and base_profile belong to"),
    ],
)
@pytest.mark.cri("RunPodSandbox", "namespace_options.target_id", "namespace_options.cgroupns_options")
def test_a_pod_that_cannot_work_is_refused(message: api_pb2.PodSandboxConfig, said: str) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        sandbox_config("config", message)
    assert said in str(refusal.value)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (api_pb2.ContainerConfig(), "config.metadata: is required"),
        (container(metadata={"attempt": 1}), "config.metadata.name: is required"),
        (container(image={}), "config.image.image: is required"),
        (container(command=["a", "b\0"]), "config.command[1]: contains a NUL byte"),
        (container(args=["a\0b"]), "config.args[0]: contains a NUL byte"),
        (container(working_dir="w"), "config.working_dir: 'w' must be an absolute path"),
        (container(envs=[{"value": b"v"}]), "config.envs[0].key: is required"),
        (container(envs=[{"key": "A=B"}]), "config.envs[0].key: 'A' must not contain '='"),
        (container(envs=[{"key": "A", "value": b"\xff\0"}]), "config.envs[0].value: contains a NUL byte"),
        (container(log_path="/abs"), "config.log_path: '/abs' must be a relative path"),
        (container(log_path="a/../../b"), "config.log_path: 'a/../../b' must not contain '..'"),
        (container(stop_signal=66), "config.stop_signal: 66 is not a Signal of CRI v1"),
        (container(devices=[{"host_path": "/dev/x"}]), "config.devices[0].container_path: is required"),
        (
            container(devices=[{"container_path": "/d", "host_path": "/d", "permissions": "x"}]),
            "config.devices[0].permissions: 'x' must be made of r, w and m",
        ),
        (
            container(devices=[{"container_path": "/dev/..", "host_path": "/dev/null"}]),
            "config.devices[0].container_path: '/dev/..' must be an absolute path below '/'",
        ),
        (
            container(devices=[{"container_path": "/d", "host_path": "/a\0b"}]),
            "config.devices[0].host_path: '/a\\x00b' contains a NUL byte",
        ),
        (container(CDI_devices=[{"name": "gpu"}]), "config.CDI_devices[0].name: 'gpu' must be of the form"),
        (mounted(container_path="data"), "config.mounts[0].container_path: 'data' must be an absolute path"),
        (mounted(container_path="/a/../.."), "mounts[0].container_path: '/a/../..' must be an absolute path below"),
        (mounted(container_path="/./"), "config.mounts[0].container_path: '/./' must be an absolute path below '/'"),
        (mounted(host_path=""), "config.mounts[0].host_path: is required"),
        (mounted(host_path="h"), "config.mounts[0].host_path: 'h' must be an absolute path"),
        (mounted(propagation=3), "config.mounts[0].propagation: 3 is not a Propagation of CRI v1"),
        (mounted(image={"image": "x"}), "config.mounts[0].host_path: '/h' cannot be set together with"),
        (mounted(recursive_read_only=True), "config.mounts[0].recursive_read_only: needs config.mounts[0].readonly"),
        (
            mounted(readonly=True, recursive_read_only=True, propagation=1),
            "config.mounts[0].recursive_read_only: needs config.mounts[0].propagation PRIVATE",
        ),
        (mounted(mount_options=["nodev", "exec"]), "config.mounts[0].mount_options[1]: 'exec' must be one of noexec,"),
        (mounted(mount_options=["rw"]), "config.mounts[0].mount_options[0]: 'rw' must be one of noexec,"),
        (mounted(uidMappings=[{"host_id": 1}]), "config.mounts[0].uidMappings[0].length: 0 must be 1 or more"),
        (limited(cpu_quota=-2), "config.linux.resources.cpu_quota: -2 must be -1 or more"),
        (limited(oom_score_adj=1001), "config.linux.resources.oom_score_adj: 1001 must be between -1000 and 1000"),
        (limited(cpuset_mems="0,"), "config.linux.resources.cpuset_mems: '0,' must be a list"),
        (limited(cpuset_cpus="\u0663"), "config.linux.resources.cpuset_cpus: '\u0663' must be a list"),
        (limited(hugepage_limits=[{"page_size": "0MB"}]), "hugepage_limits[0].page_size: '0MB' must be a size"),
        (limited(unified={"Cgroup.procs": "1"}), "linux.resources.unified key: 'Cgroup.procs' must be the name of"),
        (limited(hugepage_limits=[{"page_size": "9" * 5000 + "KB"}]), "hugepage_limits[0].page_size: '9999"),
        (limited(hugepage_limits=[{"page_size": "huge"}]), "hugepage_limits[0].page_size: 'huge' must be a size"),
        (limited(unified={"../x": "1"}), "config.linux.resources.unified key: '../x' must be the name of a cgroup v2"),
        (in_container(run_as_group={"value": 1}), "security_context.run_as_group: 1 needs run_as_user or"),
        (in_container(namespace_options={"pid": "TARGET"}), "namespace_options.target_id: is required when"),
        (
            in_container(namespace_options={"cgroupns_options": {"mode": "POD"}}),
            "namespace_options.cgroupns_options.mode: 'POD' is not supported here",
        ),
        (
            in_container(namespace_options={"cgroupns_options": {"mode": "TARGET"}}),
            "namespace_options.cgroupns_options.mode: 'TARGET' is not supported here",
        ),
        (
            in_container(privileged=True, cgroup_mount_mode="CGROUP_MOUNT_MODE_READ_ONLY"),
            "security_context.cgroup_mount_mode: 'READ_ONLY' is impossible in a privileged container",
        ),
        (
            in_container(
                namespace_options={"cgroupns_options": {"mode": "NODE"}},
                cgroup_mount_mode="CGROUP_MOUNT_MODE_READ_WRITE",
            ),
            "security_context.cgroup_mount_mode: 'READ_WRITE' needs",
        ),
        (in_container(cgroup_mount_mode=3), "security_context.cgroup_mount_mode: 3 is not a CgroupMountMode of CRI v1"),
        (in_container(apparmor={"profile_type": "OCI"}), "apparmor.profile_type: OCI profiles are for seccomp only"),
        (in_container(capabilities={"add_capabilities": ["A B"]}), "add_capabilities[0]: 'A B' must be the name of"),
        (in_container(capabilities={"drop_capabilities": ["", "CHOWN"]}), "drop_capabilities[0]: '' must be the name"),
        (
            in_container(capabilities={"add_ambient_capabilities": ["chown", "CAP_NOPE"]}),
            "add_ambient_capabilities[1]: 'CAP_NOPE' must be the name of",
        ),
        (in_container(masked_paths=["proc"]), "security_context.masked_paths[0]: 'proc' must be an absolute path"),
        (
            in_container(apparmor={"profile_type": "Localhost", "localhost_ref": "localhost/"}),
            "apparmor.localhost_ref: is required",
        ),
        (in_container(apparmor_profile="localhost/"), "apparmor_profile: 'localhost/' must be runtime/default"),
    ],
)
def test_a_container_that_cannot_work_is_refused(message: api_pb2.ContainerConfig, said: str) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        container_config("config", message)
    assert said in str(refusal.value)


def test_a_file_of_a_cgroup_may_have_a_hyphen_in_its_name() -> None:
    unified = {"io.bfq-weight": "100", "hugetlb.2MB.max": "0"}
    assert container_config("c", limited(unified=unified)).resources.unified == unified


def test_a_device_without_permissions_has_all() -> None:
    (device,) = container_config("c", container(devices=[{"container_path": "/d", "host_path": "/d"}])).devices
    assert device.permissions == "rwm"


def _entries(count: int) -> dict[str, api_pb2.ContainerConfig | api_pb2.PodSandboxConfig]:
    """A request of so many entries in one list, for each list whose entries cost something."""
    paths = [f"/p{number}" for number in range(count)]
    names = {f"net.a{number}": "1" for number in range(count)}
    mappings = [{"host_id": number, "length": 1} for number in range(count)]
    userns = {"mode": "POD", "uids": mappings}
    return {
        "config.mounts": container(mounts=[{"container_path": path, "host_path": "/h"} for path in paths]),
        "config.mounts[0].uidMappings": mounted(uidMappings=mappings),
        "config.devices": container(devices=[{"container_path": path, "host_path": "/dev/null"} for path in paths]),
        "config.CDI_devices": container(CDI_devices=[{"name": f"v/c=d{number}"} for number in range(count)]),
        "config.linux.security_context.masked_paths": in_container(masked_paths=paths),
        "config.linux.security_context.readonly_paths": in_container(readonly_paths=paths),
        "config.linux.security_context.capabilities.add_capabilities": in_container(
            capabilities={"add_capabilities": ["KILL"] * count}
        ),
        "config.linux.resources.unified": limited(unified={f"memory.a{number}": "1" for number in range(count)}),
        "config.linux.resources.hugepage_limits": limited(hugepage_limits=[{"page_size": "2MB"}] * count),
        "config.linux.sysctls": pod(linux={"sysctls": names}),
        "config.dns_config.servers": pod(dns_config={"servers": paths}),
        "config.dns_config.searches": pod(dns_config={"searches": paths}),
        "config.dns_config.options": pod(dns_config={"options": paths}),
        "config.linux.security_context.namespace_options.userns_options.uids": in_pod(
            namespace_options={"userns_options": userns}
        ),
    }


def _convert(message: api_pb2.ContainerConfig | api_pb2.PodSandboxConfig) -> None:
    if isinstance(message, api_pb2.ContainerConfig):
        container_config("config", message)
    else:
        sandbox_config("config", message)


@pytest.mark.trial("lists-have-an-end", "a list whose entries cost something, of a request or an image, has a bound")
def test_a_list_whose_entries_cost_something_has_a_bound() -> None:
    for message in _entries(4096).values():
        _convert(message)
    for path, message in _entries(4097).items():
        with pytest.raises(InvalidArgument) as refusal:
            _convert(message)
        assert str(refusal.value) == f"{path}: has 4097 entries, more than 4096"
    _convert(in_container(supplemental_groups=[7] * 65536))
    for many in (in_container(supplemental_groups=[7] * 65537), pod(port_mappings=[{"container_port": 1}] * 65536)):
        with pytest.raises(InvalidArgument, match="entries, more than 6553"):
            _convert(many)


@pytest.mark.trial("secrets-stay-unsaid", "no error, log line or trace repeats an environment's value or an argument")
@pytest.mark.parametrize(
    "message",
    [
        container(envs=[{"key": "A", "value": b"hunter2\0"}]),
        container(envs=[{"key": "A", "value": b"hunter2\xff\0"}]),
        container(envs=[{"key": "A=hunter2", "value": b"x"}]),
        container(envs=[{"key": "A=hunter2\0", "value": b"x"}]),
        container(command=["hunter2\0"]),
        container(args=["hunter2\0"]),
        container(labels={"k": "hunter2" * 1000}),
        container(annotations={"k": "hunter2\0"}),
        pod(annotations={"k": "hunter2\0"}),
    ],
)
def test_what_may_be_a_secret_is_in_no_message(message: api_pb2.ContainerConfig | api_pb2.PodSandboxConfig) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        _convert(message)
    assert "hunter2" not in str(refusal.value)


def test_long_values_are_cut_in_messages() -> None:
    with pytest.raises(InvalidArgument) as refusal:
        container_config("config", container(working_dir="x" * 100_000))
    assert len(str(refusal.value)) < 250


@pytest.mark.parametrize(
    ("legacy", "profile"),
    [
        ("", None),
        ("runtime/default", SecurityProfile(type=ProfileType.RUNTIME_DEFAULT)),
        ("docker/default", SecurityProfile(type=ProfileType.RUNTIME_DEFAULT)),
        ("unconfined", SecurityProfile(type=ProfileType.UNCONFINED)),
        ("localhost//s/p.json", SecurityProfile(type=ProfileType.LOCALHOST, localhost_ref="/s/p.json")),
    ],
)
@pytest.mark.cri("CreateContainer", "security_context.apparmor_profile")
@pytest.mark.cri("RunPodSandbox", "security_context.seccomp_profile_path")
def test_legacy_profiles_stand_in_for_unset_new_ones(legacy: str, profile: SecurityProfile | None) -> None:
    def security(**context: Any) -> ContainerSecurity:
        return container_config("config", in_container(**context)).security

    assert security(seccomp_profile_path=legacy).seccomp == profile
    assert security(apparmor_profile=legacy).apparmor == profile
    new = security(seccomp_profile_path=legacy, seccomp={"profile_type": "Unconfined"})
    assert new.seccomp == SecurityProfile(type=ProfileType.UNCONFINED)


def test_statuses_tell_what_was_asked_and_what_is() -> None:
    config = container_config(
        "config",
        container(
            image={"image": "sha256:1", "user_specified_image": "busybox:1"},
            mounts=[{"container_path": "/c", "host_path": "/h", "propagation": 2, "readonly": True,
                     "mount_options": ["nosuid"]}],
            labels={"a": "b"},
            linux={"resources": {"cpu_shares": 2, "hugepage_limits": [{"page_size": "2MB", "limit": 4}]}},
        ),
    )
    status = container_status(
        Container(
            id="c",
            sandbox_id="s",
            config=config,
            image_id="sha256:1",
            image_ref="busybox@sha256:2",
            state=ContainerState.EXITED,
            created_at=1,
            started_at=2,
            finished_at=3,
            exit_code=137,
            reason="OOMKilled",
            message="m",
            log_path="/l/c.log",
            user=ContainerUser(uid=5, gid=6, additional_gids=(6, 7)),
            stop_signal="SIGRTMAX-14",
        )
    )
    assert status.state == api_pb2.ContainerState.CONTAINER_EXITED
    assert (status.image.image, status.image_id, status.image_ref) == ("busybox:1", "sha256:1", "busybox@sha256:2")
    assert (status.created_at, status.started_at, status.finished_at, status.exit_code) == (1, 2, 3, 137)
    assert (status.reason, status.message, status.log_path) == ("OOMKilled", "m", "/l/c.log")
    bidirectional = api_pb2.Mount(
        container_path="/c",
        host_path="/h",
        propagation=api_pb2.MountPropagation.PROPAGATION_BIDIRECTIONAL,
        readonly=True,
        mount_options=["nosuid"],
    )
    assert status.mounts == [bidirectional]
    assert status.resources.linux.cpu_shares == 2
    assert status.resources.linux.hugepage_limits[0].limit == 4
    assert (status.user.linux.uid, list(status.user.linux.supplemental_groups)) == (5, [6, 7])
    assert status.stop_signal == api_pb2.SIGNAL_SIGRTMAXMINUS14


def test_addresses_of_a_pod_are_those_of_its_own_network() -> None:
    sandbox = Sandbox(
        id="s",
        config=sandbox_config("config", pod()),
        runtime_handler="",
        state=SandboxState.READY,
        created_at=1,
        ips=("10.0.0.2", "fd00::2"),
    )
    network = sandbox_status(sandbox).network
    assert (network.ip, [extra.ip for extra in network.additional_ips]) == ("10.0.0.2", ["fd00::2"])


@pytest.mark.parametrize(
    ("user", "uid", "username"),
    [
        ("", None, ""),
        ("1000", 1000, ""),
        ("0:0", 0, ""),
        ("1000:5", 1000, ""),
        ("www-data:www-data", None, "www-data"),
        ("²", None, "²"),
        ("9" * 30, None, "9" * 30),
    ],
)
def test_an_images_user_is_a_number_or_a_name(user: str, uid: int | None, username: str) -> None:
    config = ImageConfig(user=user)
    image = Image(id="sha256:1", repo_tags=("a:1",), repo_digests=(), size=5, config=config, created=0, pinned=True)
    message = image_message(image)
    assert message.HasField("uid") == (uid is not None)
    assert (message.uid.value, message.username) == (uid or 0, username)
    assert (message.id, message.size, message.pinned) == ("sha256:1", 5, True)


@pytest.mark.cri("PullImage", "auth")
def test_credentials_come_in_three_forms_or_not_at_all() -> None:
    assert credentials(api_pb2.AuthConfig()) is None
    plain = credentials(api_pb2.AuthConfig(username="u", password="p", server_address="h"))
    assert plain is not None
    assert (plain.username, plain.password, plain.server_address) == ("u", "p", "h")
    encoded = credentials(api_pb2.AuthConfig(auth="dTpwOnE="))
    assert encoded is not None
    assert (encoded.username, encoded.password) == ("u", "p:q")
    token = credentials(api_pb2.AuthConfig(registry_token="t"))
    assert token is not None
    assert token.registry_token == "t"
    refreshed = credentials(api_pb2.AuthConfig(identity_token="i"))
    assert refreshed is not None
    assert refreshed.identity_token == "i"


def test_metrics_tell_the_limits_in_force() -> None:
    config = container_config("config", container(linux={"resources": {"memory_limit_in_bytes": 1 << 20}}))
    resized = Container(
        id="c", sandbox_id="s", config=config, image_id="i", image_ref="i", state=ContainerState.RUNNING, created_at=1,
        updated=Resources(memory_limit_in_bytes=2 << 20),
    )  # fmt: skip
    huge = {"2MB": HugePageUse(4, 6)}
    usage = Usage(CpuUse(1_750_000_000), None, None, None, 0, (), huge, None, None, None)
    sandbox = Sandbox(
        id="s", config=sandbox_config("config", pod()), runtime_handler="", state=SandboxState.READY, created_at=1
    )
    inside = (ContainerStats(resized, 1, "/c", usage, None, None),)
    (told,) = sandbox_metrics(SandboxStats(sandbox, 1, "/p", None, None, (), inside), "/").container_metrics
    metrics = {metric.name: metric for metric in told.metrics}
    assert metrics["container_spec_memory_limit_bytes"].value.value == 2 << 20
    assert not metrics["container_spec_memory_limit_bytes"].HasField("double_value")
    seconds = metrics["container_cpu_usage_seconds_total"]
    assert (seconds.value.value, seconds.double_value.value) == (1, 1.75)
    assert metrics["container_hugetlb_usage_bytes"].value.value == 4
    assert metrics["container_hugetlb_max_usage_bytes"].value.value == 6
