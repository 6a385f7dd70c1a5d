"""Seccomp profiles: the default one on a real kernel, and files in Docker's format."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linux import syscalls
from pods.errors import InvalidArgument, Unimplemented
from pods.host import HostFacts
from pods.model import ContainerSecurity, ProfileType, SecurityProfile
from pods.security.capabilities import DEFAULT
from pods.security.seccomp_default import default_profile
from pods.security.seccomp_profile import ReadProfile, read_profile, seccomp_filter
from runtime.seccomp import compile as seccomp
from runtime.seccomp import load as seccomp_load
from runtime.spec.parse import parse

_HOST = HostFacts(
    cgroup_v2=True, swap_limit=True, capabilities=DEFAULT, kernel=(6, 1), architecture="amd64", hostname="node"
)
_LOCALHOST = ContainerSecurity(seccomp=SecurityProfile(type=ProfileType.LOCALHOST, localhost_ref="/p.json"))
_ADMIN = DEFAULT | {"CAP_SYS_ADMIN"}


def _reduce(document: dict[str, Any], capabilities: frozenset[str] = DEFAULT, **host: Any) -> dict[str, Any]:
    facts = HostFacts(**{**{name: getattr(_HOST, name) for name in HostFacts.__slots__}, **host})
    reduced = seccomp_filter(_LOCALHOST, ReadProfile("/p.json", document), capabilities, facts)
    assert reduced is not None
    return reduced


def _compiled(profile: dict[str, Any]) -> bytes:
    document = {
        "ociVersion": "1.2.0",
        "root": {"path": "r"},
        "process": {"cwd": "/", "args": ["x"], "user": {"uid": 0, "gid": 0}},
        "linux": {"seccomp": profile},
    }
    parsed = parse(document).linux.seccomp
    assert parsed is not None
    return seccomp.compile_filter(parsed)


def _errno_under(program: bytes, attempt: Callable[[], object]) -> int:
    """The errno that the attempt ends with in a child under the filter, 0 for none."""
    pid = os.fork()
    if not pid:
        try:
            syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
            seccomp_load.load_filter(program, 0)
            attempt()
        except OSError as error:
            os._exit(error.errno or 255)
        except BaseException:
            os._exit(254)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _call(number: int, *args: int) -> Callable[[], None]:
    def call() -> None:
        if syscalls.libc.syscall(ctypes.c_long(number), *(ctypes.c_long(arg) for arg in args)) < 0:
            raise OSError(ctypes.get_errno(), "")

    return call


_X86_64 = pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86-64's system calls")


@_X86_64
def test_the_default_profile_on_a_real_kernel() -> None:
    program = _compiled(default_profile(DEFAULT, "amd64", (6, 1)))
    forbidden = {
        "unshare(CLONE_NEWUSER)": _call(272, 0x10000000),
        "clone(CLONE_NEWNET)": _call(56, 0x40000000 | 17, 0, 0, 0, 0),
        "keyctl": _call(250, 0, 0),
        "bpf": _call(321, 0, 0, 0),
        "io_uring_setup": _call(425, 1, 0),
        "userfaultfd": _call(323, 0),
        "mount": _call(165, 0, 0, 0, 0, 0),
        "personality(ADDR_NO_RANDOMIZE)": _call(135, 0x0040000),
        "socket(AF_VSOCK)": lambda: socket.socket(40, socket.SOCK_STREAM),
    }
    refused = {name: _errno_under(program, attempt) for name, attempt in forbidden.items()}
    assert refused == dict.fromkeys(forbidden, errno.EPERM)
    # A C library falls back to clone on ENOSYS, and only then.
    assert _errno_under(program, _call(435, 0, 0)) == errno.ENOSYS
    allowed = {
        "fork": lambda: os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0),
        "personality(query)": _call(135, 0xFFFFFFFF),
        "socket(AF_UNIX)": lambda: socket.socket(socket.AF_UNIX),
        "chroot": lambda: os.chroot("/") if os.geteuid() == 0 else None,
        "statx": lambda: os.stat("/"),
    }
    assert {name: _errno_under(program, attempt) for name, attempt in allowed.items()} == dict.fromkeys(allowed, 0)


@_X86_64
def test_a_capability_brings_its_calls_back() -> None:
    program = _compiled(default_profile(_ADMIN, "amd64", (6, 1)))
    assert _errno_under(program, _call(272, 0)) == 0  # unshare(0)
    assert _errno_under(program, _call(435, 0, 0)) == errno.EINVAL
    assert _errno_under(_compiled(default_profile(frozenset(), "amd64", (6, 1))), lambda: os.chroot("/")) == errno.EPERM


def _allowed(profile: dict[str, Any]) -> set[str]:
    rules = [rule for rule in profile["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW" and not rule.get("args")]
    return {name for rule in rules for name in rule["names"]}


def test_the_default_profile_follows_kernel_and_architecture() -> None:
    assert "ptrace" not in _allowed(default_profile(DEFAULT, "amd64", (4, 7)))
    assert "ptrace" in _allowed(default_profile(DEFAULT | {"CAP_SYS_PTRACE"}, "amd64", (4, 7)))
    arm = default_profile(DEFAULT, "arm64", (6, 1))
    assert "arch_prctl" not in _allowed(arm)
    assert arm["architectures"] == ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]
    (clone,) = [rule for rule in default_profile(DEFAULT, "s390x", (6, 1))["syscalls"] if rule["names"] == ["clone"]]
    assert clone["args"][0]["index"] == 1


def test_which_profile() -> None:
    def of(kind: ProfileType | None, *, privileged: bool = False) -> dict[str, Any] | None:
        profile = None if kind is None else SecurityProfile(type=kind)
        return seccomp_filter(ContainerSecurity(seccomp=profile, privileged=privileged), None, DEFAULT, _HOST)

    assert of(None) is of(ProfileType.UNCONFINED) is of(ProfileType.RUNTIME_DEFAULT, privileged=True) is None
    assert of(ProfileType.RUNTIME_DEFAULT) == default_profile(DEFAULT, "amd64", (6, 1))


_RULE = {"names": ["chmod"], "action": "SCMP_ACT_ERRNO"}


def _with_rule(**changes: Any) -> dict[str, Any]:
    return {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{**_RULE, **changes}]}


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ({}, True),
        ({"includes": {"caps": ["CAP_CHOWN"]}}, True),
        ({"includes": {"caps": ["CAP_CHOWN", "CAP_SYS_ADMIN"]}}, False),
        ({"excludes": {"caps": ["CAP_SYS_ADMIN", "CAP_CHOWN"]}}, False),
        ({"includes": {"arches": ["arm64", "amd64"]}}, True),
        ({"includes": {"arches": ["arm64"]}}, False),
        ({"excludes": {"arches": ["amd64"]}}, False),
        ({"includes": {"minKernel": "6.1"}}, True),
        ({"includes": {"minKernel": "6.10"}}, False),
        ({"excludes": {"minKernel": "6.0"}}, False),
        ({"includes": None, "excludes": None}, True),
    ],
)
def test_conditions_of_rules(condition: dict[str, Any], holds: bool) -> None:
    assert bool(_reduce(_with_rule(**condition))["syscalls"]) is holds


def test_a_profile_file_is_reduced_to_oci_terms() -> None:
    reduced = _reduce(
        {
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrno": "ENOSYS",
            "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
            "flags": ["SECCOMP_FILTER_FLAG_LOG"],
            "syscalls": [
                {"name": "read", "action": "SCMP_ACT_ALLOW", "comment": "", "args": None},
                {**_RULE, "errnoRet": 5, "args": [{"index": 1, "value": 2**64 - 1, "op": "SCMP_CMP_EQ"}]},
            ],
        }
    )
    assert reduced == {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno.ENOSYS,
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "syscalls": [
            {"names": ["read"], "action": "SCMP_ACT_ALLOW"},
            {
                "names": ["chmod"],
                "action": "SCMP_ACT_ERRNO",
                "errnoRet": 5,
                "args": [{"index": 1, "value": 2**64 - 1, "valueTwo": 0, "op": "SCMP_CMP_EQ"}],
            },
        ],
    }
    _compiled(reduced)


@pytest.mark.parametrize(
    ("document", "member"),
    [
        ({}, "defaultAction"),
        ({"defaultAction": "ALLOW"}, "defaultAction"),
        (_with_rule(names=[]), "syscalls[0].names"),
        (_with_rule(names=["a b"]), "syscalls[0].names"),
        (_with_rule(action="SCMP_ACT_MAYBE"), "syscalls[0].action"),
        (_with_rule(errnoRet=-1), "syscalls[0].errnoRet"),
        (_with_rule(errno="EWHAT"), "syscalls[0].errno"),
        (_with_rule(args=[{"index": 6, "op": "SCMP_CMP_EQ"}]), "syscalls[0].args[0].index"),
        (_with_rule(args=[{"index": 0, "op": "=="}]), "syscalls[0].args[0].op"),
        (_with_rule(args=[{"index": True, "op": "SCMP_CMP_EQ"}]), "syscalls[0].args[0].index"),
        (_with_rule(includes={"minKernel": "new"}), "syscalls[0].includes.minKernel"),
        (_with_rule(excludes={"caps": "CAP_KILL"}), "syscalls[0].excludes.caps"),
        ({**_with_rule(), "flags": ["NOPE"]}, "flags"),
        ({**_with_rule(), "architectures": ["x86"]}, "architectures"),
        ({**_with_rule(), "architectures": ["SCMP_ARCH_X86"], "archMap": [{}]}, "archMap"),
        ({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [_RULE] * 5000}, "syscalls"),
    ],
)
def test_errors_name_the_file_and_the_member(document: dict[str, Any], member: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        _reduce(document)
    assert f"'/p.json': {member}: " in str(caught.value)


def test_notification_is_not_there_yet() -> None:
    with pytest.raises(Unimplemented, match=r"syscalls\[0\]\.action"):
        _reduce(_with_rule(action="SCMP_ACT_NOTIFY"))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["SCMP_ACT_ALLOW", "read"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["names", "action", "args", "index", "op", "includes", "caps", "arches", "minKernel"]), inner
    ),
    max_leaves=12,
)
_MEMBERS = ["syscalls", "archMap", "flags", "architectures", "defaultErrnoRet", "listenerPath"]


@given(st.dictionaries(st.sampled_from(_MEMBERS), _JSON))
def test_whatever_a_file_holds_is_refused_or_reduced(document: dict[str, Any]) -> None:
    with contextlib.suppress(InvalidArgument, Unimplemented):
        json.dumps(_reduce({"defaultAction": "SCMP_ACT_ALLOW", **document}))


@pytest.mark.parametrize(
    ("content", "reason"),
    [("{", "is not JSON"), ("[]", "JSON object"), ("[" * 100_000, "is not JSON"), (" " * (1 << 20) + "{}", "larger")],
    ids=["cut", "list", "deep", "large"],
)
def test_files_that_are_no_profile(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(content)
    with pytest.raises(InvalidArgument, match=reason):
        _read(str(path))


def _read(path: str, *, privileged: bool = False) -> ReadProfile | None:
    profile = SecurityProfile(type=ProfileType.LOCALHOST, localhost_ref=path)
    return read_profile(ContainerSecurity(seccomp=profile, privileged=privileged), None)


def test_reading_a_profile(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps(_with_rule()))
    assert _read(str(path)) == ReadProfile(str(path), _with_rule())
    os.mkfifo(tmp_path / "pipe")
    for bad in (str(tmp_path / "pipe"), str(tmp_path), str(tmp_path / "none")):
        with pytest.raises(InvalidArgument, match="localhost_ref"):
            _read(bad)
    assert _read("p.json", privileged=True) is None
