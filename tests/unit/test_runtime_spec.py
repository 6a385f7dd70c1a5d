"""The OCI configuration parser: what it reads, how it names what is wrong, and how fast it is."""

from __future__ import annotations

import copy
import errno
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import errors, validation
from runtime.spec import values as spec
from runtime.spec.parse import parse, parse_process, parse_resources

CONFIG: dict[str, Any] = {
    "ociVersion": "1.2.0",
    "process": {
        "user": {"uid": 1000, "gid": 100, "umask": 18, "additionalGids": [5, 6]},
        "args": ["sh", "-c", "true"],
        "env": ["PATH=/bin", "A=b"],
        "cwd": "/srv",
        "consoleSize": {"height": 24, "width": 80},
        "capabilities": {
            name: ["CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_SETUID", "CAP_SETGID"]
            for name in ("bounding", "effective", "permitted")
        },
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 2**64 - 1, "soft": 1024}],
        "noNewPrivileges": True,
        "oomScoreAdj": -998,
    },
    "root": {"path": "rootfs", "readonly": True},
    "hostname": "web",
    "mounts": [
        {"destination": f"/mnt{n}", "type": "bind", "source": f"/src{n}", "options": ["rbind", "ro"]} for n in range(20)
    ],
    "annotations": {"io.kubernetes.cri-o.Name": "web"},
    "hooks": {"createRuntime": [{"path": "/bin/hook", "timeout": 3}]},
    "linux": {
        "namespaces": [{"type": "pid"}, {"type": "network", "path": "/run/netns/x"}, {"type": "mount"}],
        "uidMappings": [{"containerID": 0, "hostID": 100000, "size": 65536}],
        "devices": [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 438}],
        "cgroupsPath": "/kubepods/pod1/abc",
        "resources": {
            "devices": [{"allow": False, "access": "rwm"}, {"allow": True, "type": "c", "major": 1, "minor": -1}],
            "memory": {"limit": 64 << 20, "swap": -1},
            "cpu": {"shares": 512, "quota": 50000, "period": 100000, "cpus": "0"},
            "pids": {"limit": 100},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
            "unified": {"memory.high": "max"},
        },
        "sysctl": {"net.ipv4.ip_forward": "1"},
        "seccomp": {
            "defaultAction": "SCMP_ACT_ERRNO",
            "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [
                {"names": [f"call{n}" for n in range(400)], "action": "SCMP_ACT_ALLOW"},
                {
                    "names": ["personality"],
                    "action": "SCMP_ACT_ALLOW",
                    "args": [{"index": 0, "value": 2**64 - 1, "op": "SCMP_CMP_EQ"}],
                },
            ],
        },
        "maskedPaths": ["/proc/kcore"],
        "readonlyPaths": ["/proc/sys"],
        "rootfsPropagation": "rslave",
    },
    "vendorExtension": {"ignored": [1, 2]},
}


def test_every_room_of_a_real_configuration_is_read() -> None:
    parsed = parse(CONFIG)
    assert parsed.root == spec.Root("rootfs", readonly=True)
    assert parsed.process is not None
    assert parsed.process.user == spec.User(1000, 100, 0o22, (5, 6))
    assert parsed.process.args == ("sh", "-c", "true")
    assert parsed.process.console_size == spec.ConsoleSize(24, 80)
    assert parsed.process.capabilities is not None
    assert "CAP_KILL" in parsed.process.capabilities.bounding
    assert parsed.process.capabilities.ambient == frozenset()
    assert parsed.process.rlimits == (spec.Rlimit("RLIMIT_NOFILE", 2**64 - 1, 1024),)
    assert (parsed.process.no_new_privileges, parsed.process.oom_score_adj) == (True, -998)
    assert parsed.mounts[3] == spec.Mount("/mnt3", "bind", "/src3", ("rbind", "ro"))
    assert parsed.hooks.create_runtime == (spec.Hook("/bin/hook", timeout=3),)
    linux = parsed.linux
    assert linux.namespace("network") == spec.Namespace("network", "/run/netns/x")
    assert linux.namespace("ipc") is None
    assert linux.uid_mappings == (spec.IDMapping(0, 100000, 65536),)
    assert linux.devices == (spec.Device("/dev/fuse", "c", 10, 229, 0o666),)
    assert linux.resources.devices == (spec.DeviceRule(False), spec.DeviceRule(True, "c", 1, None, "rwm"))
    assert linux.resources.memory == spec.Memory(limit=64 << 20, swap=-1)
    assert linux.resources.cpu == spec.CPU(shares=512, quota=50000, period=100000, cpus="0")
    assert linux.resources.pids_limit == 100
    assert linux.resources.hugepage_limits == (spec.HugepageLimit("2MB", 0),)
    assert linux.resources.unified == {"memory.high": "max"}
    assert linux.seccomp is not None
    assert linux.seccomp.syscalls[1].args == (spec.SeccompArg(0, 2**64 - 1, "SCMP_CMP_EQ"),)


@pytest.mark.trial("secrets-stay-unsaid", "no error, log line or trace repeats an environment's value or an argument")
@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("process.env", ["A=hunter2\0"]),
        ("process.env", [["A=hunter2"]]),
        ("process.env", "A=hunter2"),
        ("process.env", {"A": "hunter2"}),
        ("process.env", ["hunter2"]),
        ("process.env", ["=hunter2"]),
        ("process.args", ["sh", "hunter2\0"]),
        ("process.args", "sh hunter2"),
        ("process", ["A=hunter2"]),
        ("process", "A=hunter2"),
        ("process.user", {"uid": {"A": "hunter2"}}),
        ("process.cwd", ["A=hunter2"]),
        ("annotations", {"k": ["hunter2"]}),
        ("annotations", ["hunter2"]),
        ("hooks", {"prestart": [{"path": "/x", "env": ["A=hunter2\0"]}]}),
        ("hooks", {"prestart": [{"path": "/x", "args": [{"a": "hunter2"}]}]}),
        ("hooks", {"prestart": "hunter2"}),
    ],
)
def test_what_may_be_a_secret_is_in_no_message(where: str, value: object) -> None:
    config = copy.deepcopy(CONFIG) | {"hostname": "", "domainname": ""}
    *parents, name = where.split(".")
    target = config
    for parent in parents:
        target = target[parent]
    target[name] = value
    with pytest.raises(errors.SpecError) as caught:
        validation.check(parse(config))
    assert "hunter2" not in str(caught.value)
    assert where.partition(".")[0] in str(caught.value)


def test_an_absent_or_null_member_is_its_default() -> None:
    parsed = parse({"ociVersion": "1.0.2-dev", "root": {"path": "/"}, "linux": None, "hooks": None, "mounts": None})
    assert parsed == spec.Spec("1.0.2-dev", spec.Root("/"))


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("process.user.uid", "x", "process.user.uid: expected an integer, got 'x'"),
        ("process.user.uid", True, "process.user.uid: expected an integer, got True"),
        ("process.user.uid", -1, "process.user.uid: expected an integer between 0 and 4294967294, got -1"),
        ("process.user.gid", 2**32 - 1, "process.user.gid: expected an integer between 0 and 4294967294, got 42949"),
        ("process.user.additionalGids", [1, "2"], "process.user.additionalGids[1]: expected an integer between 0 "),
        ("process.args", [], "process.args: is required"),
        ("process.args", ["a\0b"], "process.args[0]: expected a string without NUL"),
        ("process.cwd", "srv", "process.cwd: expected an absolute path, got 'srv'"),
        ("process.noNewPrivileges", 1, "process.noNewPrivileges: expected true or false, got 1"),
        ("process.rlimits", [{"type": "RLIMIT_X", "hard": 1, "soft": 1}], "process.rlimits[0].type: expected one of "),
        ("process.rlimits", [{"type": "RLIMIT_CPU", "hard": 1, "soft": 2}], "process.rlimits[0].soft: expected at"),
        ("process.rlimits", [{"type": "RLIMIT_CPU", "hard": 1, "soft": 1}] * 2, "process.rlimits[1].type: RLIMIT_CPU "),
        ("root", None, "root: is required"),
        ("root.path", "", "root.path: expected a string that is not empty, got ''"),
        ("mounts", [{"source": "/x"}], "mounts[0].destination: is required"),
        ("mounts", {}, "mounts: expected an array, got an object"),
        ("linux", [], "linux: expected an object, got an array"),
        ("linux.namespaces", [{"type": "net"}], "linux.namespaces[0].type: expected one of cgroup, ipc, "),
        ("linux.namespaces", [{"type": "pid"}] * 2, "linux.namespaces[1].type: pid is listed twice"),
        ("linux.sysctl", {"a.b": 1}, "linux.sysctl.a.b: expected a string, got a number"),
        ("linux.resources.memory.limit", 1.5, "linux.resources.memory.limit: expected an integer, got 1.5"),
        ("linux.resources.devices", [{"access": "rx"}], "linux.resources.devices[0].access: expected letters of rwm"),
        ("linux.seccomp.syscalls", [{"action": "A"}], "linux.seccomp.syscalls[0].names: is required"),
        ("ociVersion", "2.0.0", "ociVersion: expected 1.x, got '2.0.0'"),
        ("ociVersion", None, "ociVersion: is required"),
    ],
)
@pytest.mark.oci("ociVersion")
def test_an_error_names_the_member_by_its_path(where: str, value: object, message: str) -> None:
    config = copy.deepcopy(CONFIG)
    *parents, name = where.split(".")
    target = config
    for parent in parents:
        target = target[parent]
    target[name] = value
    with pytest.raises(errors.SpecError) as caught:
        parse(config)
    assert str(caught.value).startswith(message)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def _paths(node: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = node.items() if isinstance(node, dict) else enumerate(node[:2]) if isinstance(node, list) else ()
    return [prefix, *(path for key, child in items for path in _paths(child, (*prefix, key)))]


@given(path=st.sampled_from([path for path in _paths(CONFIG) if path]), junk=_JSON)
def test_junk_anywhere_is_read_or_refused_as_a_spec_error(path: tuple[Any, ...], junk: Any) -> None:
    config = json.loads(json.dumps(CONFIG))
    target = config
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = junk
    try:
        parse(config)
    except errors.SpecError as error:
        refused = error
    else:
        return
    assert refused.path.split(".")[0].split("[")[0] == path[0]


def test_exec_and_update_parse_their_part_alone() -> None:
    assert parse_process({"args": ["ls"], "cwd": "/"}) == spec.Process("/", ("ls",))
    assert parse_resources({"pids": {"limit": -1}}).pids_limit == -1
    with pytest.raises(errors.SpecError, match=r"^resources\.cpu\.shares: "):
        parse_resources({"cpu": {"shares": "many"}}, "resources")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (errors.OperationFailed("mount", "`a` on `b`", errno.EPERM), "mount `a` on `b`: Operation not permitted"),
        (errors.OperationFailed("mkdir", "/x", errno.EEXIST), "mkdir `/x`: File exists"),
        (errors.OperationFailed.of("ask", "/x", TimeoutError("timed out")), "ask `/x`: Connection timed out"),
        (errors.SpecError("a.b", "is required"), "a.b: is required"),
        (errors.NotSupported("set pids limit", "9", "no controller"), "set pids limit `9`: no controller"),
        (errors.RuntimeCoreError("lost"), "lost"),
    ],
)
def test_errors_survive_the_socket(error: errors.RuntimeCoreError, text: str) -> None:
    again = errors.from_json(json.loads(json.dumps(error.to_json())))
    assert (type(again), str(again), again.to_json()) == (type(error), text, error.to_json())


def test_an_error_of_another_version_keeps_its_text() -> None:
    assert str(errors.from_json({"error": "FromTheFuture", "message": "odd"})) == "odd"
