"""What a runtime with sandboxes of its own is told to make, and what others are spared."""

from __future__ import annotations

from pathlib import Path

import msgspec

from pods import handlers
from pods.cgroups.places import SYSTEMD
from pods.model import NamespaceMode, NamespaceOptions, Resources
from pods.oci.sandbox import sandbox_document
from runtime.handler import GVISOR, Handler
from tests.unit.test_pods_oci import HOST, _sandbox


def test_a_sandbox_has_the_pods_network_and_limits() -> None:
    sandbox = msgspec.structs.replace(_sandbox(), netns="/run/netns/pod")
    config = msgspec.structs.replace(sandbox.config, resources=Resources(memory_limit_in_bytes=64 << 20))
    document = sandbox_document(msgspec.structs.replace(sandbox, config=config), 77, "web-0", HOST)
    namespaces = {entry["type"]: entry.get("path") for entry in document["linux"]["namespaces"]}
    assert namespaces["network"] == "/run/netns/pod"
    assert namespaces["pid"] == "/proc/77/ns/pid"
    assert document["annotations"]["io.kubernetes.cri.container-type"] == "sandbox"
    assert document["annotations"]["io.kubernetes.cri.sandbox-id"] == sandbox.id
    assert document["linux"]["resources"]["memory"]["limit"] == 64 << 20
    assert document["linux"]["cgroupsPath"] == f"/crisp/{sandbox.id}/{sandbox.id}"
    assert document["process"]["args"] == ["/pause"]


def test_a_sandbox_of_systemd_on_the_hosts_network() -> None:
    options = NamespaceOptions(network=NamespaceMode.NODE, pid=NamespaceMode.CONTAINER)
    sandbox = msgspec.structs.replace(_sandbox(namespaces=options), cgroup_driver=SYSTEMD)
    document = sandbox_document(sandbox, 77, "node", HOST)
    types = [entry["type"] for entry in document["linux"]["namespaces"]]
    assert "network" not in types
    assert {"type": "pid"} in document["linux"]["namespaces"]
    assert document["linux"]["cgroupsPath"] == f"crisp-{sandbox.id}.slice:crisp:{sandbox.id}"


def test_what_a_runtime_left_is_found_by_the_ids(tmp_path: Path) -> None:
    """runc has a directory of a container, runsc in a directory of each pod files of its containers."""
    for name in ("runc/c1", "runc/c2", "g/s1", "g/s2"):
        (tmp_path / "handlers" / name).mkdir(parents=True)
    for name in ("s1/c3_sandbox:s1.state", "s2/c4_sandbox:s2.lock", "s2/s2_sandbox:s2.state"):
        (tmp_path / "handlers/g" / name).touch()
    for name in ("c1", "s1", "c4"):
        handlers.forget(name, tmp_path)
    left = [*(tmp_path / "handlers").glob("*/*"), *(tmp_path / "handlers").glob("*/*/*")]
    assert sorted(path.name for path in left) == ["c2", "s2", "s2_sandbox:s2.state"]
    assert Handler(Path("/runsc"), GVISOR).has_sandboxes
