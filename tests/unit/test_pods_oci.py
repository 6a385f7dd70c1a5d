"""CRI configuration to OCI configuration: the plan of one container."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from image.model import ImageConfig
from linux.selinux import ContainerContexts
from pods import model
from pods.cgroups.places import container_cgroup
from pods.errors import InvalidArgument, PodError, RecursiveReadOnlyUnsupported
from pods.host import HostFacts
from pods.model import ContainerSecurity as Security
from pods.model import NamespaceMode, NamespaceOptions, Propagation, SELinuxOptions
from pods.oci import document as oci
from pods.oci import pod_contents
from pods.oci.check import validate
from pods.oci.devices import DeviceNode
from pods.oci.mounts import image_volumes
from pods.oci.process import check_found, process_args, stop_signal, user_request
from pods.oci.resources import update_plan, updated
from pods.security.capabilities import DEFAULT
from pods.security.selinux import level_of, selinux_labels
from runtime.spec.parse import parse
from runtime.wire.calls import Identity, UserRequest

HOST = HostFacts(
    cgroup_v2=True,
    swap_limit=True,
    capabilities=DEFAULT | {"CAP_SYS_ADMIN", "CAP_NET_ADMIN"},
    kernel=(6, 1),
    architecture="amd64",
    hostname="node",
)
_INFRA, _TARGET = 77, 88


def _host(**changes: Any) -> HostFacts:
    return dataclasses.replace(HOST, **changes)


def _sandbox(**security: Any) -> model.Sandbox:
    return model.Sandbox(
        id="s" * 64,
        config=model.SandboxConfig(
            metadata=model.SandboxMetadata(name="web", uid="u-1", namespace="prod"),
            hostname="web-0",
            security=model.SandboxSecurity(**security),
        ),
        runtime_handler="",
        state=model.SandboxState.READY,
        created_at=1,
    )


def _config(**fields: Any) -> model.ContainerConfig:
    return model.ContainerConfig(
        metadata=model.ContainerMetadata(name="nginx"),
        image=model.ImageSpec(image="sha256:abc", user_specified_image="registry.test/nginx:1"),
        **{"command": ("serve",), **fields},
    )


def _build(
    config: model.ContainerConfig,
    *,
    sandbox: model.Sandbox | None = None,
    image: ImageConfig | None = None,
    host: HostFacts = HOST,
    devices: tuple[DeviceNode, ...] = (),
    target_pid: int = _TARGET,
) -> dict[str, Any]:
    sandbox = sandbox or _sandbox()
    validate(config, sandbox, host)
    context = oci.ContainerContext(
        container_id="c" * 64,
        sandbox=sandbox,
        config=config,
        image=image or ImageConfig(),
        args=process_args(config, image or ImageConfig()),
        hostname=pod_contents.hostname(sandbox.id, sandbox.config, host.hostname),
        user=Identity(uid=1000, gid=50, additional_gids=(50, 7), home="/home/www"),
        infra_pid=_INFRA,
        target_pid=target_pid,
        sandbox_dir=Path("/run/s"),
        files_dir=Path("/run/s/etc"),
        volumes_dir=Path("/var/v"),
        volumes=image_volumes(config, image or ImageConfig()),
        cgroups_path=container_cgroup(sandbox, "c" * 64),
        host=host,
        found=oci.HostObjects(
            devices=devices,
            mount_sources=tuple(mount.host_path for mount in config.mounts),
            labels=selinux_labels(config.security, sandbox, host),
        ),
    )
    document = oci.build_config(context)
    parse(json.loads(json.dumps(document)))  # whatever is planned, the runtime takes it
    return document


def _with(**security: Any) -> model.ContainerConfig:
    return _config(security=Security(**security))


def _mounts(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {mount["destination"]: mount for mount in document["mounts"]}


def _namespaces(document: dict[str, Any]) -> dict[str, str]:
    return {entry["type"]: entry.get("path", "new") for entry in document["linux"]["namespaces"]}


# -- the process ------------------------------------------------------------------------------------------------------

_IMAGE = ImageConfig(entrypoint=("entry",), cmd=("from", "image"))


@pytest.mark.parametrize(
    ("command", "args", "argv"),
    [
        ((), (), ["entry", "from", "image"]),
        ((), ("a",), ["entry", "a"]),
        (("c",), (), ["c"]),
        (("c",), ("a",), ["c", "a"]),
    ],
)
def test_the_kubernetes_rules_of_command_and_args(
    command: tuple[str, ...], args: tuple[str, ...], argv: list[str]
) -> None:
    assert process_args(_config(command=command, args=args), _IMAGE) == argv


@pytest.mark.trial("entrypoint", "An entrypoint of one empty string means none")
@pytest.mark.parametrize(
    ("entrypoint", "cmd", "command", "argv"),
    [
        (("",), ("sh",), (), ["sh"]),
        (("",), ("",), (), [""]),  # a cmd of one is none for no runtime
        (("", "x"), ("y",), (), ["", "x", "y"]),
        (("e",), (), ("",), [""]),
    ],
)
def test_only_an_entrypoint_of_one_empty_string_is_none(
    entrypoint: tuple[str, ...], cmd: tuple[str, ...], command: tuple[str, ...], argv: list[str]
) -> None:
    assert process_args(_config(command=command), ImageConfig(entrypoint=entrypoint, cmd=cmd)) == argv


def test_nothing_to_run_names_the_image_as_the_user_does() -> None:
    with pytest.raises(InvalidArgument, match=r"'registry\.test/nginx:1' has neither entrypoint nor cmd"):
        process_args(_config(command=()), ImageConfig())


def test_environment_is_overridden_by_the_image_and_then_by_the_request() -> None:
    image = ImageConfig(env=("PATH=/image", "A=image", "B=image", "C=x=y", "BARE"))
    process = _build(_config(tty=True, envs=(("B", "request"), ("TERM", "dumb"))), image=image)["process"]
    assert process["env"] == [
        "PATH=/image", "HOSTNAME=web-0", "TERM=dumb", "A=image", "B=request", "C=x=y", "BARE=", "HOME=/home/www",
    ]  # fmt: skip
    assert process["terminal"] is True
    assert process["user"] == {"uid": 1000, "gid": 50, "additionalGids": [50, 7]}


def test_a_pod_on_the_host_network_has_the_hosts_name() -> None:
    sandbox = _sandbox(namespaces=model.NamespaceOptions(network=NamespaceMode.NODE))
    assert "HOSTNAME=node" in _build(_config(), sandbox=sandbox)["process"]["env"]


@pytest.mark.parametrize(
    ("security", "image_user", "request_"),
    [
        ({}, "", ("", None)),
        ({}, "www:web", ("www:web", None)),
        ({"run_as_user": 0}, "www:web", ("0", None)),
        ({"run_as_username": "app"}, "www:web", ("app", None)),
        ({"run_as_user": 5, "run_as_username": "app", "run_as_group": 0}, "", ("5", 0)),
    ],
)
def test_who_runs(security: dict[str, Any], image_user: str, request_: tuple[str, int | None]) -> None:
    found = user_request(_with(**security), ImageConfig(user=image_user))
    assert (found.user, found.group) == request_


@pytest.mark.trial("numeric-user", "a number in user or group is an id, whatever names the image gives")
def test_what_was_found_is_the_number_that_was_asked_for() -> None:
    """CVE-2016-3697: should the image decide about it after all, nothing is made."""
    for request, uid, gid in (("1000", 0, 0), ("1000:7", 1000, 0), ("0", 1000, 0), ("web:50", 33, 0)):
        with pytest.raises(PodError, match="found"):
            check_found(UserRequest(request), uid, gid)
    with pytest.raises(PodError, match="group 8: found 7"):
        check_found(UserRequest("web", group=8), 33, 7)
    for request, group in (("1000", None), ("web:staff", None), ("", None), ("1000:3", 50)):
        check_found(UserRequest(request, group), 1000, 50)


def test_strict_groups_do_not_merge_the_images() -> None:
    config = _with(supplemental_groups=(5, 6), groups_policy=model.GroupsPolicy.STRICT)
    assert user_request(config, ImageConfig(user="www")).to_json() == {
        "user": "www", "group": None, "supplemental": [5, 6], "merge": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "image", "name"),
    [
        ("", "", "SIGTERM"),
        ("", "3", "SIGQUIT"),
        ("usr1", "SIGQUIT", "SIGUSR1"),
        ("SIGRTMIN+3", "", "SIGRTMIN+3"),
        ("rtmax-1", "", "SIGRTMIN+29"),
        ("64", "", "SIGRTMIN+30"),
    ],
)
def test_stop_signal(asked: str, image: str, name: str) -> None:
    assert stop_signal(_config(stop_signal=asked), ImageConfig(stop_signal=image)) == name


@pytest.mark.parametrize("signal", ["SIGNOPE", "0", "65", "9" * 5000, "-9", "RTMIN+31", "1e3", "SIG"])
def test_what_is_no_signal(signal: str) -> None:
    with pytest.raises(InvalidArgument, match="is not a signal"):
        stop_signal(_config(), ImageConfig(stop_signal=signal))


# -- rights -----------------------------------------------------------------------------------------------------------


def _capabilities(**security: Any) -> dict[str, list[str]]:
    found: dict[str, list[str]] = _build(_with(**security))["process"]["capabilities"]
    return found


def test_capabilities_are_named_in_any_spelling_and_dropping_wins() -> None:
    caps = _capabilities(add_capabilities=("sys_admin", "CAP_NET_ADMIN"), drop_capabilities=("Net_Admin", "CAP_CHOWN"))
    assert set(caps["bounding"]) == (DEFAULT | {"CAP_SYS_ADMIN"}) - {"CAP_CHOWN"}
    assert caps["effective"] == caps["permitted"] == caps["bounding"]
    assert caps["inheritable"] == caps["ambient"] == []


def test_all_is_what_the_daemon_has() -> None:
    assert set(_capabilities(add_capabilities=("ALL",))["bounding"]) == HOST.capabilities
    assert _capabilities(add_capabilities=("KILL",), drop_capabilities=("all",))["bounding"] == ["CAP_KILL"]
    assert "CAP_KILL" not in _capabilities(add_capabilities=("ALL",), drop_capabilities=("KILL",))["bounding"]


def test_ambient_capabilities_are_in_every_set() -> None:
    caps = _capabilities(add_ambient_capabilities=("NET_ADMIN",), drop_capabilities=("ALL",))
    assert all(caps[name] == ["CAP_NET_ADMIN"] for name in caps)


def test_a_capability_that_cannot_be_given() -> None:
    with pytest.raises(InvalidArgument, match="capabilities"):
        _capabilities(add_capabilities=("SYS_RESOURCE",))


def test_privileged_lifts_every_fence() -> None:
    config = _with(
        privileged=True,
        masked_paths=("/proc/kcore",),
        readonly_paths=("/proc/sys",),
        seccomp=model.SecurityProfile(type=model.ProfileType.RUNTIME_DEFAULT),
        apparmor=model.SecurityProfile(type=model.ProfileType.RUNTIME_DEFAULT),
    )
    sda = DeviceNode("/dev/sda", "b", 8, 0, 0o660, 0, 6, "rwm")
    document = _build(config, sandbox=_sandbox(privileged=True), devices=(sda,))
    linux = document["linux"]
    assert set(document["process"]["capabilities"]["bounding"]) == HOST.capabilities
    assert (linux["maskedPaths"], linux["readonlyPaths"]) == ([], [])
    assert "seccomp" not in linux
    assert linux["resources"]["devices"] == [{"allow": True, "access": "rwm"}]
    assert [device["path"] for device in linux["devices"]] == ["/dev/sda"]
    mounts = _mounts(document)
    assert all("ro" not in mounts[path]["options"] for path in ("/sys", "/sys/fs/cgroup"))
    assert "cgroup" not in _namespaces(document)


def test_an_ordinary_container_is_fenced() -> None:
    config = _with(masked_paths=("/proc/kcore",), readonly_paths=("/proc/sys",), no_new_privs=True)
    fuse = DeviceNode("/dev/fuse", "c", 10, 229, 0o666, 0, 0, "rw")
    document = _build(config, devices=(fuse,))
    linux = document["linux"]
    assert (linux["maskedPaths"], linux["readonlyPaths"]) == (["/proc/kcore"], ["/proc/sys"])
    assert document["process"]["noNewPrivileges"] is True
    rules = linux["resources"]["devices"]
    assert rules[0] == {"allow": False, "access": "rwm"}
    assert rules[-1] == {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rw"}
    assert {"allow": True, "type": "c", "major": 136, "access": "rwm"} in rules
    assert not any(rule["allow"] and "r" in rule["access"] and "major" not in rule for rule in rules)
    mounts = _mounts(document)
    assert all("ro" in mounts[path]["options"] for path in ("/sys", "/sys/fs/cgroup"))


@pytest.mark.cri("CreateContainer", "security_context.selinux_options")
def test_selinux_labels_only_where_selinux_is() -> None:
    config = _with(selinux=model.SELinuxOptions(level="s0:c1,c2"))
    assert "selinuxLabel" not in _build(config)["process"]
    document = _build(config, host=_host(selinux=True))
    assert document["process"]["selinuxLabel"] == "system_u:system_r:container_t:s0:c1,c2"
    assert document["linux"]["mountLabel"] == "system_u:object_r:container_file_t:s0:c1,c2"
    relabelled = _mount(selinux_relabel=True)
    assert _mounts(_build(relabelled))["/c"]["source"] == "/h"
    assert _mounts(_build(relabelled, host=_host(selinux=True)))["/c"]["source"] == "/h"


_SELINUX = _host(selinux=True, container_contexts=ContainerContexts("u_u:u_r:box_t:s0", "u_u:object_r:box_file_t:s0"))


@pytest.mark.parametrize(
    ("pod", "level", "own", "label"),
    [
        (None, "s0:c1,c9", None, "u_u:u_r:box_t:s0:c1,c9"),
        (None, "", None, None),  # made while nothing was labelled
        (None, "s0:c1,c9", SELinuxOptions(type="spc_t"), "u_u:u_r:spc_t:s0:c1,c9"),
        (SELinuxOptions(level="s0:c3"), "", SELinuxOptions(user="me_u", level="s0:c4"), "me_u:u_r:box_t:s0:c4"),
        (SELinuxOptions(level="s0:c3", role="r_r"), "", SELinuxOptions(), "u_u:r_r:box_t:s0:c3"),
    ],
)
@pytest.mark.cri("RunPodSandbox", "security_context.selinux_options")
def test_a_container_has_its_own_selinux_options_then_its_pods_then_its_pods_level(
    pod: SELinuxOptions | None, level: str, own: SELinuxOptions | None, label: str | None
) -> None:
    sandbox = msgspec.structs.replace(_sandbox(selinux=pod, privileged=True), selinux_level=level)
    document = _build(_with(selinux=own), sandbox=sandbox, host=_SELINUX)
    assert document["process"].get("selinuxLabel") == label
    of_files = document["linux"].get("mountLabel")
    assert of_files == (label and f"{label.split(':')[0]}:object_r:box_file_t:{label.split(':', 3)[3]}")
    privileged = _build(_with(selinux=own, privileged=True), sandbox=sandbox, host=_SELINUX)
    assert "selinuxLabel" not in privileged["process"]
    assert privileged["linux"].get("mountLabel") == of_files


def test_each_pod_has_a_selinux_level_of_its_own_unless_it_asks_for_one_or_is_there_for_others() -> None:
    def level(taken: Collection[str] = (), host: HostFacts = _SELINUX, **security: Any) -> str:
        return level_of(_sandbox(**security).config, host, taken)

    assert re.fullmatch(r"s0:c\d+,c\d+", level())
    free = "s0:c5,c7"
    taken = {f"s0:c{low},c{high}" for low in range(1024) for high in range(low + 1, 1024)} - {free}
    assert level(taken) == free
    assert level(selinux=SELinuxOptions(type="my_t"))
    assert level(selinux=SELinuxOptions(level="s0:c1")) == ""
    assert level(namespaces=NamespaceOptions(pid=NamespaceMode.NODE)) == ""
    assert level(host=_host(selinux=True)) == ""


# -- namespaces -------------------------------------------------------------------------------------------------------

_POD, _OWN, _NODE, _OTHER = NamespaceMode.POD, NamespaceMode.CONTAINER, NamespaceMode.NODE, NamespaceMode.TARGET


@pytest.mark.parametrize(
    ("pod", "container", "pid"),
    [
        (_POD, _POD, f"/proc/{_INFRA}/ns/pid"),
        (_POD, _OWN, "new"),
        (_OWN, _OWN, "new"),
        (_OWN, _POD, "new"),  # the infra process is in the host's PID namespace then: never joined
        (_OWN, _OTHER, f"/proc/{_TARGET}/ns/pid"),
        (_POD, _OTHER, f"/proc/{_TARGET}/ns/pid"),
        (_NODE, _NODE, None),
        (_NODE, _POD, None),
        (_NODE, _OWN, "new"),
    ],
)
def test_pid_namespace(pod: NamespaceMode, container: NamespaceMode, pid: str | None) -> None:
    sandbox = _sandbox(namespaces=model.NamespaceOptions(pid=pod))
    config = _with(namespaces=model.NamespaceOptions(pid=container, target_id="t"))
    assert _namespaces(_build(config, sandbox=sandbox)).get("pid") == pid


def test_the_pods_namespaces_are_joined() -> None:
    found = _namespaces(_build(_config()))
    assert found == {
        "mount": "new",
        "network": "/proc/77/ns/net",
        "uts": "/proc/77/ns/uts",
        "ipc": "/proc/77/ns/ipc",
        "pid": "/proc/77/ns/pid",
        "cgroup": "new",
    }
    assert "cgroup" not in _namespaces(_build(_config(), host=_host(cgroup_v2=False)))


def test_what_the_pod_shares_with_the_host_is_not_listed() -> None:
    sandbox = _sandbox(namespaces=model.NamespaceOptions(network=_NODE, pid=_NODE, ipc=_NODE))
    document = _build(_config(), sandbox=sandbox)
    assert set(_namespaces(document)) == {"mount", "cgroup"}
    assert _mounts(document)["/dev/shm"]["source"] == "/dev/shm"


@pytest.mark.parametrize(
    ("version_2", "mode", "privileged", "own"),
    [
        (True, None, False, True),
        (True, None, True, False),
        (True, NamespaceMode.NODE, False, False),
        (True, NamespaceMode.CONTAINER, True, True),
        (False, None, False, False),
        (False, NamespaceMode.CONTAINER, False, True),
        (False, NamespaceMode.NODE, False, False),
    ],
)
@pytest.mark.cri("CreateContainer", "namespace_options.cgroupns_options")
def test_a_cgroup_namespace_of_its_own(
    version_2: bool, mode: NamespaceMode | None, privileged: bool, own: bool
) -> None:
    config = _with(privileged=privileged, namespaces=model.NamespaceOptions(cgroup=mode))
    document = _build(config, sandbox=_sandbox(privileged=privileged), host=_host(cgroup_v2=version_2))
    assert ("cgroup" in _namespaces(document)) == own


@pytest.mark.cri("CreateContainer", "security_context.cgroup_mount_mode")
def test_a_writable_cgroup_filesystem_takes_delegation() -> None:
    config = _with(cgroup_mount_mode=model.CgroupMountMode.READ_WRITE)
    mounts = _mounts(_build(config, host=_host(nsdelegate=lambda: True)))
    assert ("ro" in mounts["/sys"]["options"], "ro" in mounts["/sys/fs/cgroup"]["options"]) == (True, False)
    with pytest.raises(InvalidArgument, match=r"READ_WRITE needs .* not version 2 without that option"):
        _build(config)
    with pytest.raises(InvalidArgument, match="nsdelegate, not version 1"):
        _build(config, host=_host(cgroup_v2=False))
    read_only = _with(cgroup_mount_mode=model.CgroupMountMode.READ_ONLY)
    assert "ro" in _mounts(_build(read_only))["/sys/fs/cgroup"]["options"]


# -- mounts -----------------------------------------------------------------------------------------------------------


def test_the_default_mounts_have_parents_first() -> None:
    document = _build(_config())
    paths = [mount["destination"] for mount in document["mounts"]]
    assert set(paths) == {
        "/proc", "/dev", "/dev/pts", "/dev/mqueue", "/dev/shm", "/sys", "/sys/fs/cgroup",
        "/etc/resolv.conf", "/etc/hostname", "/etc/hosts",
    }  # fmt: skip
    assert paths.index("/dev") < paths.index("/dev/pts")
    assert paths.index("/sys") < paths.index("/sys/fs/cgroup")
    assert _mounts(document)["/dev/shm"]["source"] == "/run/s/shm"
    assert document["root"] == {"path": "rootfs", "readonly": False}


def test_options_of_a_mount_are_added_to_what_its_other_members_say() -> None:
    plain = model.Mount(container_path="/c", host_path="/h", readonly=True, mount_options=("noexec", "nodev"))
    image = model.Mount(
        container_path="/i", image=model.ImageSpec(image="data"), readonly=True, mount_options=("rnosuid",)
    )
    mounts = _mounts(_build(_config(mounts=(plain, image))))
    assert mounts["/c"]["options"] == ["rbind", "rprivate", "ro", "noexec", "nodev"]
    assert mounts["/i"]["options"] == ["rbind", "rprivate", "ro", "rnosuid"]


def test_the_requests_mounts_replace_defaults_and_volumes() -> None:
    image = ImageConfig(volumes=("/data/", "/data/below", "/cache", "logs", "/", "/proc", "/sys/x", "/etc/hosts"))
    mounts = (
        model.Mount(container_path="/etc/hosts", host_path="/pods/hosts", readonly=True),
        model.Mount(container_path="/data", host_path="/h/data", propagation=Propagation.HOST_TO_CONTAINER),
        model.Mount(container_path="/b//c/", host_path="/h/c", propagation=Propagation.BIDIRECTIONAL),
        model.Mount(container_path="/rro", host_path="/h/rro", readonly=True, recursive_read_only=True),
    )
    document = _build(_config(mounts=mounts, security=Security(readonly_rootfs=True)), image=image)
    found = _mounts(document)
    assert document["root"]["readonly"] is True
    assert len(found) == len(document["mounts"])
    assert found["/etc/hosts"]["source"] == "/pods/hosts"
    assert found["/etc/hosts"]["options"] == ["rbind", "rprivate", "ro"]
    assert found["/data"]["options"] == ["rbind", "rslave"]
    assert found["/b/c"]["options"] == ["rbind", "rshared"]
    assert found["/rro"]["options"] == ["rbind", "rprivate", "rro"]
    assert (found["/cache"]["source"], found["/logs"]["source"]) == ("/var/v/0", "/var/v/1")
    assert "/data/below" not in found  # the request's, with what is kept there


def test_a_mounted_dev_hides_what_would_be_below_it() -> None:
    mounts = (model.Mount(container_path="/dev", host_path="/dev"),)
    found = _mounts(_build(_config(mounts=mounts)))
    assert [path for path in found if path.startswith("/dev")] == ["/dev"]


_PATHS = st.lists(st.sampled_from(["a", "b", "dev", "sys", "etc", "hosts", "shm"]), min_size=1, max_size=4)


@given(st.lists(_PATHS, max_size=6), st.lists(_PATHS, max_size=4))
def test_no_mount_covers_an_earlier_one(paths: list[list[str]], volumes: list[list[str]]) -> None:
    asked = ["/" + "/".join(path) for path in paths]
    mounts = tuple(model.Mount(container_path=path, host_path=f"/h/{i}") for i, path in enumerate(asked))
    image = ImageConfig(volumes=tuple("/" + "/".join(path) for path in volumes))
    document = _build(_config(mounts=mounts, security=Security(readonly_rootfs=True)), image=image)
    planned = [mount["destination"] for mount in document["mounts"]]
    for index, path in enumerate(planned):
        assert not any(earlier.startswith(path + "/") for earlier in planned[:index])
    on_top = {mount.container_path: mount.host_path for mount in mounts}  # of two at one path the last
    assert {path: _mounts(document)[path]["source"] for path in on_top} == on_top


# -- limits -----------------------------------------------------------------------------------------------------------


def _limits(host: HostFacts = HOST, **resources: Any) -> dict[str, Any]:
    limits = _build(_config(resources=model.Resources(**resources)), host=host)["linux"]["resources"]
    return {name: value for name, value in limits.items() if name != "devices"}


def test_limits() -> None:
    assert _limits() == {}
    assert _limits(
        cpu_shares=2, cpu_quota=-1, cpu_period=100_000, cpuset_cpus="0-1", hugepage_limits={"2MB": 0},
        memory_limit_in_bytes=2 << 20, unified={"memory.high": "5"},
    ) == {
        "cpu": {"shares": 2, "quota": -1, "period": 100_000, "cpus": "0-1"},
        "memory": {"limit": 2 << 20, "swap": 2 << 20},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
        "unified": {"memory.high": "5"},
    }  # fmt: skip
    least = 2 << 20
    assert _limits(memory_limit_in_bytes=least, memory_swap_limit_in_bytes=least + 1)["memory"]["swap"] == least + 1
    assert _limits(memory_limit_in_bytes=least, memory_swap_limit_in_bytes=-1)["memory"]["swap"] == -1
    assert _limits(unified={"io.bfq-weight": "5"}) == {"unified": {"io.bfq-weight": "5"}}
    assert _limits(_host(swap_limit=False), memory_limit_in_bytes=least)["memory"] == {"limit": least}


@pytest.mark.parametrize(
    ("resources", "field"),
    [
        ({"memory_limit_in_bytes": 1}, "memory_limit_in_bytes"),
        ({"memory_limit_in_bytes": 9 << 20, "memory_swap_limit_in_bytes": 5}, "memory_swap_limit_in_bytes"),
        ({"memory_swap_limit_in_bytes": 9 << 20}, "memory_swap_limit_in_bytes"),
        ({"cpu_quota": 999}, "cpu_quota"),
        ({"cpu_period": 1_000_001}, "cpu_period"),
    ],
)
def test_limits_that_cannot_be(resources: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument, match=rf"config\.linux\.resources\.{field}: "):
        _limits(**resources)


def test_unified_limits_need_cgroup_v2() -> None:
    with pytest.raises(InvalidArgument, match="cgroup v1"):
        _limits(_host(cgroup_v2=False), unified={"memory.high": "1"})


def test_an_update_keeps_what_it_does_not_set() -> None:
    memory = {"memory_limit_in_bytes": 8 << 20, "memory_swap_limit_in_bytes": 9 << 20}
    now = model.Resources(cpu_shares=2, unified={"a.b": "1", "c.d": "2"}, **memory)
    wanted = model.Resources(cpu_quota=-1, memory_limit_in_bytes=16 << 20, unified={"a.b": "3"})
    after = updated(now, wanted)
    assert after == model.Resources(
        cpu_shares=2, cpu_quota=-1, memory_limit_in_bytes=16 << 20, unified={"a.b": "3", "c.d": "2"}
    )
    assert update_plan(wanted, after, HOST, "linux") == {
        "cpu": {"quota": -1},
        "memory": {"limit": 16 << 20, "swap": 16 << 20, "checkBeforeUpdate": True},
        "unified": {"a.b": "3"},
    }
    only_swap = model.Resources(memory_swap_limit_in_bytes=12 << 20)
    plan = update_plan(only_swap, updated(now, only_swap), HOST, "linux")
    assert plan["memory"] == {"limit": 8 << 20, "swap": 12 << 20, "checkBeforeUpdate": True}
    too_low = model.Resources(memory_swap_limit_in_bytes=7 << 20)
    with pytest.raises(InvalidArgument, match=r"^linux\.memory_swap_limit_in_bytes: "):
        update_plan(too_low, updated(now, too_low), HOST, "linux")


# -- what is refused --------------------------------------------------------------------------------------------------


def _mount(**fields: Any) -> model.ContainerConfig:
    return _config(mounts=(model.Mount(**{"container_path": "/c", "host_path": "/h", **fields}),))


_USERNS = model.NamespaceOptions(userns=model.UserNamespace(mode=NamespaceMode.POD))


@pytest.mark.parametrize(
    ("config", "error", "field"),
    [
        (_with(privileged=True), InvalidArgument, "config.linux.security_context.privileged"),
        (_with(namespaces=_USERNS), InvalidArgument, "config.linux.security_context.namespace_options.userns_options"),
        (_with(namespaces=model.NamespaceOptions(pid=_NODE)), InvalidArgument, "namespace_options.pid"),
        (_mount(image=model.ImageSpec(image="x")), InvalidArgument, "config.mounts[0].readonly"),
        (_mount(uid_mappings=(model.IDMapping(host_id=1, container_id=0, length=1),)), InvalidArgument, "gidMappings"),
    ],
)
def test_refused(config: model.ContainerConfig, error: type[PodError], field: str) -> None:
    with pytest.raises(error) as caught:
        _build(config)
    assert field in str(caught.value)


def test_recursive_read_only_takes_a_new_kernel() -> None:
    config = _mount(readonly=True, recursive_read_only=True)
    assert "rro" in _mounts(_build(config))["/c"]["options"]
    refused = r"mounts\[0\]\.recursive_read_only: needs Linux 5\.12, not 5\.10"
    with pytest.raises(RecursiveReadOnlyUnsupported, match=refused):
        _build(config, host=_host(kernel=(5, 10)))


@pytest.mark.trial("lists-have-an-end", "a list whose entries cost something, of a request or an image, has a bound")
def test_an_image_of_before_with_too_many_volumes_is_refused() -> None:
    image = ImageConfig(cmd=("sh",), volumes=tuple(f"/v{number}" for number in range(1001)))
    for config in (_config(), _with(readonly_rootfs=True)):
        with pytest.raises(InvalidArgument, match=r"config.image: .* has 1001 volumes, more than 1000"):
            image_volumes(config, image)


def test_a_target_that_is_not_running() -> None:
    config = _with(namespaces=model.NamespaceOptions(pid=_OTHER, target_id="t1"))
    with pytest.raises(InvalidArgument, match="'t1' is not running"):
        _build(config, target_pid=0)


def test_annotations_name_the_pod_and_the_image() -> None:
    annotations = _build(_config())["annotations"]
    assert annotations["io.kubernetes.cri.sandbox-name"] == "web"
    assert annotations["io.kubernetes.cri.image-name"] == "registry.test/nginx:1"
