"""What a pod and its containers take from the host: devices, mount sources, profiles, sysctls, files."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from pods import model
from pods.errors import InvalidArgument
from pods.host import HostFacts
from pods.model import NamespaceMode, ProfileType, Propagation
from pods.oci import pod_contents as files
from pods.oci.devices import host_devices, requested_devices
from pods.oci.mount_sources import check_propagation, prepare, resolve_sources
from pods.security.apparmor import apparmor_profile
from pods.security.sysctls import check_sysctls, default_sysctls, sandbox_sysctls


@pytest.mark.parametrize(
    ("mounted", "delegated"),
    [
        ("cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot", True),
        ("cgroup2 cgroup2 rw,memory_recursiveprot", False),
        ("tmpfs tmpfs rw,mode=755", False),
    ],
)
def test_delegation_is_an_option_of_the_mount(tmp_path: Path, mounted: str, delegated: bool) -> None:
    cgroups, process = tmp_path / "sys/fs/cgroup", tmp_path / "proc/self"
    for directory in (cgroups, process):
        directory.mkdir(parents=True)
    (cgroups / "cgroup.controllers").write_text("cpu memory\n")
    (process / "cgroup").write_text("0::/\n")
    (process / "status").write_text("CapPrm:\t0000000000000001\nCapBnd:\t0000000000000001\n")
    (process / "mountinfo").write_text(f"29 23 0:25 / {cgroups} rw,nosuid shared:9 - {mounted}\n")
    assert HostFacts.detect(tmp_path / "proc", tmp_path / "sys").nsdelegate() == delegated


# -- devices ----------------------------------------------------------------------------------------------------------


def _device(host_path: str, container_path: str = "/dev/x", permissions: str = "rw") -> model.Device:
    return model.Device(host_path=host_path, container_path=container_path, permissions=permissions)


def test_a_device_under_another_name(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/dev/full")
    (node,) = requested_devices((_device(str(tmp_path / "link"), "/dev/mine"),))
    assert (node.path, node.type, node.major, node.minor, node.access) == ("/dev/mine", "c", 1, 7, "rw")
    assert node.mode == stat.S_IMODE(os.stat("/dev/full").st_mode)


@pytest.mark.skipif(os.geteuid() != 0, reason="makes device nodes")
def test_a_directory_of_devices(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "pts").mkdir()
    os.mknod(tmp_path / "pts/0", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod(tmp_path / "b", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod(tmp_path / "sub/a", stat.S_IFCHR | 0o640, os.makedev(1, 5))
    (tmp_path / "file").touch()
    (tmp_path / "gone").symlink_to("/nowhere")
    nodes = requested_devices((_device(str(tmp_path), "/dev/dri"),))
    assert [(node.path, node.minor, node.mode) for node in nodes] == [
        ("/dev/dri/b", 3, 0o600),
        ("/dev/dri/sub/a", 5, 0o640),
    ]


@pytest.mark.parametrize(
    ("device", "field"),
    [
        (_device("/dev/nosuchdevice"), "host_path: '/dev/nosuchdevice': No such file"),
        (_device("/etc/passwd"), "host_path: '/etc/passwd' is not a device"),
        (_device("/proc/self/attr"), "host_path: there is no device below"),
    ],
)
def test_devices_that_cannot_be_given(device: model.Device, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        requested_devices((_device("/dev/null"), device))
    assert str(caught.value).startswith(f"config.devices[1].{field}")


def test_the_hosts_devices_are_those_of_dev_but_terminals_and_console() -> None:
    paths = {node.path for node in host_devices()}
    assert {"/dev/null", "/dev/zero", "/dev/tty"} <= paths
    assert "/dev/console" not in paths
    assert not any(path.startswith(("/dev/pts/", "/dev/shm/")) for path in paths)


# -- mount sources ----------------------------------------------------------------------------------------------------


def _mount(host_path: object, propagation: Propagation = Propagation.PRIVATE) -> model.Mount:
    return model.Mount(container_path="/c", host_path=str(host_path), propagation=propagation)


def test_sources_are_followed_and_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("later/made")
    mounts = (_mount(tmp_path / "link"), _mount(tmp_path / "new/dir"), _mount(tmp_path / "dangling"))
    expected = (str(tmp_path / "file"), str(tmp_path / "new/dir"), str(tmp_path / "later/made"))
    assert resolve_sources(mounts) == expected
    assert not (tmp_path / "new").exists()
    prepare(mounts, expected, "")
    assert stat.S_IMODE((tmp_path / "later/made").stat().st_mode) == 0o755
    with pytest.raises(InvalidArgument, match=r"config\.mounts\[1\]\.host_path: make directory .*file/x': Not a dir"):
        prepare(mounts[:2], (str(tmp_path), str(tmp_path / "file/x")), "")


_MOUNTINFO = """\
20 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
21 20 8:2 / /shared rw shared:5 - ext4 /dev/sda2 rw
22 20 8:3 / /slave rw master:5 - ext4 /dev/sda3 rw
23 21 8:4 / /shared/with\\040blank rw - ext4 /dev/sda4 rw
24 20 8:5 / /stacked rw shared:6 - ext4 /dev/sda5 rw
25 24 8:6 / /stacked rw - ext4 /dev/sda6 rw
"""


@pytest.mark.parametrize(
    ("source", "propagation", "mount"),
    [
        ("/shared/x", Propagation.BIDIRECTIONAL, None),
        ("/slave/x", Propagation.HOST_TO_CONTAINER, None),
        ("/slave/x", Propagation.BIDIRECTIONAL, "/slave"),
        ("/sharedx", Propagation.HOST_TO_CONTAINER, "/"),
        ("/shared/with blank/x", Propagation.HOST_TO_CONTAINER, "/shared/with blank"),
        ("/stacked", Propagation.BIDIRECTIONAL, "/stacked"),
        ("/sharedx", Propagation.PRIVATE, None),
    ],
)
def test_propagation_needs_a_mount_that_propagates(source: str, propagation: Propagation, mount: str | None) -> None:
    arguments: Any = ([_mount(source, propagation)], [source], _MOUNTINFO)
    if mount is None:
        check_propagation(*arguments)
    else:
        with pytest.raises(InvalidArgument, match=rf"mounts\[0\]\.propagation: .* on the mount '{mount}'"):
            check_propagation(*arguments)


# -- AppArmor ---------------------------------------------------------------------------------------------------------


@pytest.mark.cri("CreateContainer", "security_context.apparmor")
def test_apparmor(tmp_path: Path) -> None:
    loaded = tmp_path / "profiles"
    loaded.write_text("my (odd) name (enforce)\ncrisp-default (complain)\n")

    def of(kind: ProfileType, name: str = "", *, on: bool = True) -> str:
        host = HostFacts(True, True, frozenset(), (6, 1), "amd64", "node", apparmor=on)
        profile = model.SecurityProfile(type=kind, localhost_ref=name)
        return apparmor_profile(model.ContainerSecurity(apparmor=profile), host, loaded)

    assert of(ProfileType.RUNTIME_DEFAULT) == "crisp-default"
    assert of(ProfileType.RUNTIME_DEFAULT, on=False) == of(ProfileType.UNCONFINED) == ""
    assert of(ProfileType.LOCALHOST, "my (odd) name") == "my (odd) name"
    with pytest.raises(InvalidArgument, match="'other' is not loaded"):
        of(ProfileType.LOCALHOST, "other")
    with pytest.raises(InvalidArgument, match="AppArmor is not enabled"):
        of(ProfileType.LOCALHOST, "crisp-default", on=False)
    host = HostFacts(True, True, frozenset(), (6, 1), "amd64", "node", apparmor=True)
    assert apparmor_profile(model.ContainerSecurity(), host, loaded) == "crisp-default"
    assert apparmor_profile(model.ContainerSecurity(privileged=True), host, loaded) == ""
    assert apparmor_profile(model.ContainerSecurity(), host, tmp_path / "none") == ""


# -- sysctls ----------------------------------------------------------------------------------------------------------


def _pod(namespaces: model.NamespaceOptions | None = None, **fields: Any) -> model.SandboxConfig:
    return model.SandboxConfig(
        metadata=model.SandboxMetadata(name="n", uid="u", namespace="d"),
        security=model.SandboxSecurity(namespaces=namespaces or model.NamespaceOptions()),
        **fields,
    )


def test_sysctls_of_the_pods_namespaces() -> None:
    asked = {
        "net.core.somaxconn": "1024",
        "net/ipv4/conf/eth0.5/forwarding": "1",
        "net.ipv4.conf.eth0/5.rp_filter": "1",
        "kernel.shm_rmid_forced": "1",
        "fs.mqueue.msg_max": "9",
    }
    assert sandbox_sysctls(_pod(sysctls=asked)) == {
        "net/core/somaxconn": "1024",
        "net/ipv4/conf/eth0.5/forwarding": "1",
        "net/ipv4/conf/eth0.5/rp_filter": "1",
        "kernel/shm_rmid_forced": "1",
        "fs/mqueue/msg_max": "9",
    }


def test_all_that_the_kernel_keeps_for_each_ipc_namespace_can_be_set() -> None:
    names = "msg_next_id sem_next_id shm_next_id auto_msgmni msgmax msgmnb msgmni sem shmall shmmax shmmni".split()
    check_sysctls(_pod(sysctls={f"kernel.{name}": "1" for name in names} | {"kernel.domainname": "x"}))


_HOST_NETWORK = model.NamespaceOptions(network=NamespaceMode.NODE)
_HOST_IPC = model.NamespaceOptions(ipc=NamespaceMode.NODE)


@pytest.mark.parametrize(
    ("name", "namespaces", "reason"),
    [
        ("vm.swappiness", None, "does not belong"),
        ("kernel.hostname", None, "does not belong"),
        ("kernel.shmmax2", None, "does not belong"),
        ("kernel/core_pattern", None, "does not belong"),
        ("net.core.somaxconn", _HOST_NETWORK, "would change the host, whose network"),
        ("kernel.sem", _HOST_IPC, "would change the host, whose ipc"),
        ("kernel.domainname", _HOST_NETWORK, "would change the host, whose uts"),
    ],
)
def test_sysctls_that_would_change_the_host(name: str, namespaces: model.NamespaceOptions | None, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=rf"config\.linux\.sysctls: .*{reason}"):
        check_sysctls(_pod(namespaces, sysctls={name: "1"}))


_DEFAULTS = pytest.mark.trial(
    "unprivileged-network", "In a pod's own network anybody binds low ports and pings, unless told otherwise"
)
_LINES = tuple(model.IDMapping(host_id=host, container_id=inside, length=9) for host, inside in ((2000, 0), (1000, 9)))
_USERS = model.NamespaceOptions(userns=model.UserNamespace(mode=NamespaceMode.POD, uids=_LINES, gids=_LINES))
_PORTS, _PING = "net/ipv4/ip_unprivileged_port_start", "net/ipv4/ping_group_range"


@_DEFAULTS
@pytest.mark.parametrize(
    ("namespaces", "asked", "expected"),
    [
        (None, {}, {_PORTS: "0", _PING: "0 2147483647"}),
        (None, {"net.ipv4.ping_group_range": "5 6"}, {_PORTS: "0"}),
        (None, {"net/ipv4/ip_unprivileged_port_start": "80"}, {_PING: "0 2147483647"}),
        (_HOST_NETWORK, {}, {}),
        (_USERS, {}, {_PORTS: "0", _PING: "1000 2008"}),
    ],
)
def test_what_a_pods_network_begins_with(
    namespaces: model.NamespaceOptions | None, asked: dict[str, str], expected: dict[str, str]
) -> None:
    pod = _pod(namespaces, sysctls=asked)
    assert default_sysctls(pod, ports=True, icmp=True) == expected
    assert default_sysctls(pod, ports=False, icmp=False) == {}


# -- files ------------------------------------------------------------------------------------------------------------


def test_resolv_conf() -> None:
    dns = model.DNSConfig(servers=("10.0.0.10", "fd00::a"), searches=("a.svc", "b"), options=("ndots:5", "edns0"))
    text = "search a.svc b\nnameserver 10.0.0.10\nnameserver fd00::a\noptions ndots:5 edns0\n"
    assert files.resolv_conf(dns, "host") == text
    assert files.resolv_conf(None, "host") == files.resolv_conf(model.DNSConfig(), "host") == "host"
    with pytest.raises(InvalidArgument, match=r"config\.dns_config: resolv\.conf would have \d+ bytes, more"):
        files.resolv_conf(model.DNSConfig(searches=("a" * 255,) * 300), "")


def test_hosts_and_hostname() -> None:
    assert files.hosts("web-0", ["10.1.0.2", "fd00::2"]).splitlines()[-2:] == ["10.1.0.2\tweb-0", "fd00::2\tweb-0"]
    assert files.hostname("0123456789abcdef", _pod(hostname="web-0"), "node") == "web-0"
    assert files.hostname("0123456789abcdef", _pod(), "node") == "0123456789ab"
    assert files.hostname("0123456789abcdef", _pod(_HOST_NETWORK, hostname="web-0"), "node") == "node"


def test_the_host_is_known() -> None:
    facts = HostFacts.detect()
    assert facts.hostname == os.uname().nodename
    assert facts.cgroup_v2 is Path("/sys/fs/cgroup/cgroup.controllers").exists()
    assert facts.kernel > (4, 0)
