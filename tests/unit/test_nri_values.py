"""What a plugin wants and CRI would not take is refused, by the name of the field and before anything is changed."""

from __future__ import annotations

from typing import Any

import pytest

from cri.nri.adjust import Adjustments
from cri.nri.errors import NriError
from cri.nri.resources import Updates
from cri.nri.v1alpha1 import api_pb2 as nri
from pods.model import Resources


def _adjusted(wanted: nri.ContainerAdjustment) -> dict[str, Any]:
    adjustments = Adjustments({"process": {"args": ["sh"], "env": ["A=1"]}, "linux": {}, "mounts": []})
    adjustments.apply("01-bad", wanted)
    return adjustments.document


def _adjust(**members: Any) -> nri.ContainerAdjustment:
    return nri.ContainerAdjustment(**members)


def _linux(**members: Any) -> nri.ContainerAdjustment:
    return nri.ContainerAdjustment(linux=nri.LinuxContainerAdjustment(**members))


def _seccomp(**members: Any) -> nri.ContainerAdjustment:
    return _linux(seccomp_policy=nri.LinuxSeccomp(**{"default_action": "SCMP_ACT_ALLOW", **members}))


# Of creations ("adjust.") and of updates alike.
_LIMITS = [
    ({"unified": {"../cgroup.procs": "1"}}, "unified: '../cgroup.procs' must be the name of a cgroup v2 file"),
    ({"unified": {"memory.high": "1\0"}}, "unified.memory.high: '1\\x00' contains a NUL byte"),
    ({"cpu": nri.LinuxCPU(cpus="0-")}, "cpu.cpus: '0-' must be a list such as 0-3,6"),
    ({"cpu": nri.LinuxCPU(cpus="\u0663")}, "cpu.cpus: '\u0663' must be a list such as 0-3,6"),
    ({"cpu": nri.LinuxCPU(mems="../x")}, "cpu.mems: '../x' must be a list such as 0-3,6"),
    ({"cpu": nri.LinuxCPU(quota={"value": -2})}, "cpu.quota: -2 must be -1 or more"),
    ({"cpu": nri.LinuxCPU(shares={"value": 2**63})}, f"cpu.shares: {2**63} must be between 0 and {2**63 - 1}"),
    ({"cpu": nri.LinuxCPU(period={"value": 2**64 - 1})}, f"cpu.period: {2**64 - 1} must be between 0 and"),
    ({"memory": nri.LinuxMemory(limit={"value": -2})}, "memory.limit: -2 must be -1 or more"),
    ({"memory": nri.LinuxMemory(swap={"value": -9})}, "memory.swap: -9 must be -1 or more"),
    ({"hugepage_limits": [nri.HugepageLimit(page_size="2mb")]}, "hugepage_limits: '2mb' must be a size such as 2MB"),
    ({"hugepage_limits": [nri.HugepageLimit(page_size="0MB")]}, "hugepage_limits: '0MB' must be a size such as 2MB"),
]  # fmt: skip


@pytest.mark.parametrize(("limits", "said"), _LIMITS)
def test_limits_that_cannot_be(limits: dict[str, Any], said: str) -> None:
    resources = nri.LinuxResources(**limits)
    with pytest.raises(NriError) as refusal:
        _adjusted(_linux(resources=resources))
    assert f"adjust.linux.resources.{said}" in str(refusal.value)
    update = nri.ContainerUpdate(container_id="c", linux=nri.LinuxContainerUpdate(resources=resources))
    updates = Updates()
    with pytest.raises(NriError) as refusal:
        updates.add("01-bad", [update], [])
    assert f"update.linux.resources.{said}" in str(refusal.value)
    assert updates.take("c", Resources()) == Resources()


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (_adjust(annotations={"": "x"}), "annotations '': must be a name and a value"),
        (_adjust(env=[nri.KeyValue(key="A=B")]), "env 'A': must be the name and value of a variable"),
        (_adjust(env=[nri.KeyValue(key="A", value="b\0")]), "env 'A': must be the name and value of a variable"),
        (_adjust(args=["sh", "a\0"]), "args[1]: contains a NUL byte"),
        (_adjust(mounts=[nri.Mount(destination="a", source="/s")]), "mounts: destination: 'a' must be an absolute"),
        (_adjust(mounts=[nri.Mount(destination="/..", source="/s")]), "mounts: destination: '/..' must be an absolute"),
        (_adjust(mounts=[nri.Mount(destination="/" + "x" * 256, source="/s")]), "has a component of more than 255"),
        (_adjust(mounts=[nri.Mount(destination="/a", source="s")]), "mounts '/a': source: 's' must be an absolute"),
        (_adjust(mounts=[nri.Mount(destination="/a", type="tmpfs", source="x\0")]), "mounts '/a': source and type"),
        (_adjust(mounts=[nri.Mount(destination="/a", source="/s", options=["\0"])]), "mounts '/a': options[0]: "),
        (_adjust(hooks=nri.Hooks(prestart=[nri.Hook(path="h")])), "hooks.prestart: hook.path: expected an absolute"),
        (
            _adjust(hooks=nri.Hooks(poststop=[nri.Hook(path="/h", timeout={"value": -1})])),
            "hooks.poststop: hook.timeout: expected a number of seconds",
        ),
        (_adjust(CDI_devices=[nri.CDIDevice(name="gpu")]), "CDI_devices: 'gpu' must be of the form vendor/class"),
        (_linux(oom_score_adj={"value": 1001}), "linux.oom_score_adj: 1001 must be between -1000 and 1000"),
        (_linux(sysctl={"net/../kernel/x": "1"}), "linux.sysctl: 'net/../kernel/x' must be the name of a sysctl"),
        (_linux(sysctl={"net.ipv4.a": "1\n2"}), "linux.sysctl.net.ipv4.a: '1\\n2' must be printable text"),
        (_linux(devices=[nri.LinuxDevice(path="/dev/../x", type="c")]), "linux.devices: path: '/dev/../x' must be an"),
        (_linux(devices=[nri.LinuxDevice(path="/", type="c")]), "linux.devices: path: '/' must be an absolute path"),
        (_seccomp(default_action="ALLOW"), "linux.seccomp_policy.default_action: 'ALLOW' must be one of SCMP_ACT_"),
        (_seccomp(flags=["FAST"]), "linux.seccomp_policy.flags: 'FAST' must be one of SECCOMP_FILTER_FLAG_"),
        (
            _seccomp(syscalls=[nri.LinuxSyscall(names=["read"], action="NO")]),
            "linux.seccomp_policy.syscalls[0].action: 'NO' must be one of",
        ),
        (
            _seccomp(syscalls=[
                nri.LinuxSyscall(names=["read"], action="SCMP_ACT_LOG", args=[nri.LinuxSeccompArg(op="==")])
            ]),
            "linux.seccomp_policy.syscalls[0].args.op: '==' must be one of SCMP_CMP_",
        ),
        (_linux(io_priority=nri.LinuxIOPriority(**{"class": 9})), "linux.io_priority.class: 9 is unknown in NRI"),
        (_linux(scheduler=nri.LinuxScheduler(policy=99)), "linux.scheduler.policy: 99 is unknown in NRI"),
        (_linux(memory_policy=nri.LinuxMemoryPolicy(flags=[77])), "linux.memory_policy.flags: 77 is unknown in NRI"),
    ],
)  # fmt: skip
def test_an_adjustment_that_cannot_be(wanted: nri.ContainerAdjustment, said: str) -> None:
    with pytest.raises(NriError) as refusal:
        _adjusted(wanted)
    assert said in str(refusal.value)


def test_what_is_no_text_of_a_plugin_is_in_no_message() -> None:
    """Values of variables and arguments may be a Secret's."""
    for wanted in (_adjust(args=["hidden\0"]), _adjust(env=[nri.KeyValue(key="A", value="hidden\0")])):
        with pytest.raises(NriError) as refusal:
            _adjusted(wanted)
        assert "hidden" not in str(refusal.value)


def test_a_name_of_a_cgroup_file_may_have_a_hyphen() -> None:
    resources = nri.LinuxResources(unified={"io.bfq-weight": "100"})
    assert _adjusted(_linux(resources=resources))["linux"]["resources"]["unified"] == {"io.bfq-weight": "100"}


def test_a_mount_that_is_none_of_the_host_needs_no_path() -> None:
    mounts = _adjusted(_adjust(mounts=[nri.Mount(destination="/a", type="tmpfs", source="tmpfs")]))["mounts"]
    assert mounts == [{"destination": "/a", "type": "tmpfs", "source": "tmpfs", "options": []}]
