"""CDI devices through CRI, and the security options that are spelled in two ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc
import pytest

from cri.v1 import api_pb2 as cri
from tests.daemon import Daemon, Pod
from tests.images import busybox_layout


def _output(pod: Pod, command: str, **fields: Any) -> list[str]:
    container = pod.run("sh", "-c", f"exec 2>&1; {command}; true", name="one", **fields)
    pod.daemon.wait_exited(container)
    lines = [line.split(" ", 3)[3] for line in pod.log("one").splitlines()]
    pod.daemon.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container), timeout=30)
    Path(pod.config.log_directory, "one.log").unlink()
    return lines


@pytest.mark.trial(
    "cdi-annotations", "CDI devices that a container's annotations name are given, and those that are not there refused"
)
@pytest.mark.cri("CreateContainer", "CDI_devices")
def test_a_cdi_device(tmp_path: Path) -> None:
    (tmp_path / "shared").write_text("library\n")
    edits = {
        "env": ["GPU=zero"],
        "deviceNodes": [{"path": "/dev/gpu0", "hostPath": "/dev/zero"}],
        "mounts": [{"hostPath": str(tmp_path / "shared"), "containerPath": "/usr/lib/gpu.so", "options": ["ro"]}],
        "additionalGids": [4321],
    }
    spec = {"cdiVersion": "0.7.0", "kind": "test.org/gpu", "devices": [{"name": "0", "containerEdits": edits}]}
    (tmp_path / "gpu.json").write_text(json.dumps(spec))
    settings = tmp_path / "settings.toml"
    settings.write_text(f'cdi_spec_dirs = ["{tmp_path}"]\n')
    with Daemon.running(f"--config={settings}") as daemon:
        daemon.import_busybox()
        with daemon.pod("cdi") as pod:
            look = "echo $GPU; head -c 2 /dev/gpu0 | wc -c; cat /usr/lib/gpu.so; echo x > /usr/lib/gpu.so; id -G"
            device = [cri.CDIDevice(name="test.org/gpu=0")]
            name, count, library, refused, groups = _output(pod, look, CDI_devices=device)
            assert (name, count, library, groups) == ("zero", "2", "library", "0 4321")
            assert "Read-only file system" in refused
            absent: list[dict[str, Any]] = [
                {"CDI_devices": [cri.CDIDevice(name="test.org/gpu=1")]},
                {"annotations": {"cdi.k8s.io/plugin": "test.org/gpu=1"}},
            ]
            for fields in absent:
                with pytest.raises(grpc.RpcError) as raised:
                    pod.create("true", name="absent", **fields)
                assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
                assert "test.org/gpu=1" in raised.value.details()
            annotations = {"cdi.k8s.io/plugin": "test.org/gpu=0"}
            assert _output(pod, "echo $GPU; id -G", annotations=annotations) == ["zero", "0 4321"]


@pytest.mark.cri("CreateContainer", "security_context.seccomp_profile_path")
@pytest.mark.cri("CreateContainer", "security_context.selinux_options")
@pytest.mark.cri("CreateContainer", "security_context.masked_paths", "security_context.readonly_paths")
def test_older_fields_selinux_and_unmasked_proc(daemon: Daemon) -> None:
    def security(**fields: Any) -> cri.LinuxContainerConfig:
        return cri.LinuxContainerConfig(security_context=cri.LinuxContainerSecurityContext(**fields))

    with daemon.pod("fields") as pod:
        mode = "grep ^Seccomp: /proc/self/status | tr -d '[:space:]'"
        assert _output(pod, mode, linux=security(seccomp_profile_path="runtime/default")) == ["Seccomp:2"]
        assert _output(pod, mode, linux=security(seccomp_profile_path="unconfined")) == ["Seccomp:0"]
        # Without SELinux its labels mean nothing, as with CRI-O and containerd: a pod runs on either kind of node.
        labelled = security(selinux_options=cri.SELinuxOption(user="u", role="r", type="container_t", level="s0:c1"))
        assert _output(pod, "echo runs", linux=labelled) == ["runs"]
        # procMount: Unmasked is two empty lists.
        look = "head -n 1 /proc/timer_list | wc -l; test -w /proc/sys/kernel/domainname && echo writable"
        assert _output(pod, look, linux=security()) == ["1", "writable"]


@pytest.mark.cri("CreateContainer", "security_context.supplemental_groups")
@pytest.mark.cri("CreateContainer", "security_context.supplemental_groups_policy")
def test_the_images_groups_are_merged_unless_the_policy_is_strict(daemon: Daemon, tmp_path: Path) -> None:
    daemon.import_image(busybox_layout(tmp_path, "localhost/accounts:1"))  # its /etc/group has app in extra (2000)
    with daemon.pod("groups") as pod:
        seen = []
        for policy in (cri.Merge, cri.Strict):
            context = cri.LinuxContainerSecurityContext(
                run_as_username="app", supplemental_groups=[77], supplemental_groups_policy=policy
            )
            linux = cri.LinuxContainerConfig(security_context=context)
            seen += _output(pod, "id -G", image="localhost/accounts:1", linux=linux)
        assert seen == ["1000 77 2000", "1000 77"]
