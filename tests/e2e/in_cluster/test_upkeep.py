"""What kubelet does to a node by itself: rotates logs, removes images, evicts pods; and what is done to the node."""

from __future__ import annotations

import ast
import gzip
import re
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client, watch

from cri.v1 import api_pb2 as cri
from tests.e2e import workloads
from tests.e2e.cluster import NAMESPACE, Cluster
from tests.e2e.kubelet import NODE
from tests.e2e.manifests import FOREVER, pod, sh
from tests.images import build_image, entry, layer, write_layout

# What kubelet finds of its node's conditions; they are kept until they are told.
TOLD_AT_ONCE = {"nodeStatusUpdateFrequency": "1s", "evictionPressureTransitionPeriod": "30s"}


def test_logs_are_rotated_and_nothing_is_lost(cluster: Cluster) -> None:
    cluster.run(workloads.counting())
    uid = cluster.pod("counting").metadata.uid
    directory = Path(f"/var/log/pods/{NAMESPACE}_counting_{uid}/main")
    before = cluster.lives("counting")
    log = cluster.core.read_namespaced_pod_log
    cluster.kubelet.stop()
    cluster.kubelet.start(containerLogMaxSize="20Ki", containerLogMaxFiles=1000, containerLogMonitorInterval="3s")
    cluster.until(lambda: any(directory.glob("0.log.*.gz")), "rotate a log twice")
    line = None
    while line is None:  # kubelet ends a stream that begins while it rotates the log
        lines = watch.Watch().stream(log, "counting", NAMESPACE, follow=True, tail_lines=1)
        line = next(lines, None)
    first = int(line)
    rotated = set(directory.glob("0.log.*"))
    for line in lines:
        if int(line) > first + 100 and set(directory.glob("0.log.*")) - rotated:
            break  # it is followed from one file into the next
    lines.close()
    cluster.output("counting", "touch /tmp/enough")
    # Not by the log: kubelet may begin another one after the last line.
    cluster.until(lambda: "sleep" in cluster.output("counting", "cat /proc/1/cmdline"), "end its count")
    assert cluster.lives("counting") == before
    cluster.kubelet.stop()  # or files would change their names while they are read
    words = [line.split()[3] for text in _in_order(directory) for line in text.splitlines()]
    cluster.kubelet.start(containerLogMaxSize="10Mi")
    assert words == [*map(str, range(1, len(words))), "done"]


def test_what_pods_use_is_told_through_the_api(cluster: Cluster) -> None:
    """With kubelet's gate open these numbers are crisp's."""
    cluster.run(pod("measured", sh("main", f"dd if=/dev/zero of=/file bs=1M count=3; {FOREVER}")))

    def used() -> dict[str, int]:
        (container,) = _summary(cluster, "pods", "measured")["containers"]
        return {
            key: container.get(kind, {}).get(key, 0)
            for kind, key in (("memory", "workingSetBytes"), ("cpu", "usageCoreNanoSeconds"), ("rootfs", "usedBytes"))
        }

    cluster.until(lambda: min(used().values()) > 0 and used()["usedBytes"] >= 3 << 20, "tell what a pod uses")
    wanted = r'^container_(memory_working_set_bytes|cpu_usage_seconds_total)\{.*pod="measured".*\} [1-9.]'
    cluster.until(lambda: re.search(wanted, _proxied(cluster, "metrics/cadvisor"), re.MULTILINE), "have its metrics")


def test_a_pod_of_the_other_runtime(cluster: Cluster) -> None:
    handler = {"metadata": {"name": "runc"}, "handler": "runc"}
    client.NodeV1Api(cluster.api).create_runtime_class(handler)
    cluster.run(workloads.of_runtime_class("other", "runc"))
    assert cluster.output("other", "echo hello") == "hello\n"
    cluster.until(lambda: cluster.core.read_namespaced_pod_log("other", NAMESPACE) == "of runc\n", "have its log")
    (container,) = cluster.daemon.runtime.ListPodSandbox(
        cri.ListPodSandboxRequest(filter=cri.PodSandboxFilter(label_selector={"app": "other"}))
    ).items
    assert container.runtime_handler == "runc"


def test_drain(cluster: Cluster) -> None:
    """Cordon, then evict every pod, as its budget allows: what kubectl drain does."""
    cluster.apps.create_namespaced_deployment(NAMESPACE, workloads.deployment("drained", 2))
    cluster.until(lambda: len(cluster.pods("drained")) == 2, "make two pods")
    cluster.until(lambda: all(cluster.ready(name) for name in cluster.lives("drained")), "run two pods")
    policy = client.PolicyV1Api(cluster.api)
    policy.create_namespaced_pod_disruption_budget(NAMESPACE, workloads.budget("drained", 1))

    def budget() -> int:
        return int(policy.read_namespaced_pod_disruption_budget_status("drained", NAMESPACE).status.disruptions_allowed)

    def evict(name: str) -> None:
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
        cluster.core.create_namespaced_pod_eviction(name, NAMESPACE, body)

    cluster.until(lambda: budget() == 1, "know how many pods may go")
    first, second = sorted(cluster.lives("drained"))
    cluster.core.patch_node(NODE, {"spec": {"unschedulable": True}})
    try:
        evict(first)
        cluster.until(lambda: first not in cluster.lives("drained"), "evict a pod")
        with pytest.raises(client.exceptions.ApiException) as refused:
            evict(second)
        assert refused.value.status == 429
        cluster.until(lambda: [one for one in cluster.pods("drained") if not one.spec.node_name], "make another")
    finally:
        cluster.core.patch_node(NODE, {"spec": {"unschedulable": False}})
    cluster.until(lambda: all(cluster.ready(name) for name in cluster.lives("drained")), "run it when there is a node")


def test_a_pod_that_fills_the_disk_is_evicted(cluster: Cluster) -> None:
    """By what crisp says its writable layer takes, and by the size of its volume."""
    for name, reason in (("layer", "ephemeral local storage"), ("volume", "EmptyDir")):
        cluster.until(lambda name=name: cluster.pod(name).status.reason == "Evicted", f"evict {name}", 90)
        assert reason in cluster.pod(name).status.message


def test_a_cron_job_has_run(cluster: Cluster) -> None:
    cluster.until(
        lambda: any(one.status.phase == "Succeeded" for one in cluster.pods("each-minute")), "run a cron job", 90
    )


def test_memory_under_pressure_evicts_a_pod(cluster: Cluster) -> None:
    """The threshold is met whatever else the machine does; what the pod is said to use is crisp's number."""
    cluster.clear()
    cluster.run(workloads.hungry(64))
    cluster.output("memory", "touch /tmp/eat; until [ -e /tmp/eaten ]; do sleep 0.1; done")
    capacity = int(cluster.core.read_node(NODE).status.capacity["memory"].removesuffix("Ki"))
    cluster.kubelet.stop()
    cluster.kubelet.start(evictionHard={"memory.available": f"{capacity - (64 << 10)}Ki"}, **TOLD_AT_ONCE)
    message = _evicted(cluster, "memory", "MemoryPressure")
    using = re.search(r"low on resource: memory\..*Container main was using (\d+)Ki", message)
    assert using, message
    assert int(using[1]) >= 64 << 10


def test_a_disk_under_pressure_loses_unused_images_and_then_a_pod(cluster: Cluster) -> None:
    """One signal, and one pod: whoever else fills the disk, it is that pod that goes."""
    image = build_image([layer(entry("file", b"x"))])
    layout = write_layout(cluster.daemon.directory / "unused", {"localhost/unused:latest": image})
    unused = cluster.daemon.import_image(layout)
    assert unused in _images(cluster)
    available = _summary(cluster, "node")["fs"]["availableBytes"]
    cluster.kubelet.stop()
    cluster.kubelet.start(
        evictionHard={"nodefs.available": str(available - (400 << 20))},
        imageMinimumGCAge="1ns",
        imageGCHighThresholdPercent=100,  # not because the machine's disk happens to be full
        **TOLD_AT_ONCE,
    )
    cluster.run(workloads.greedy((available >> 20) - 800))  # once the node is rid of the taint for its memory
    cluster.output("disk", "touch /tmp/eat")
    assert "low on resource: ephemeral-storage" in _evicted(cluster, "disk", "DiskPressure")
    assert unused not in _images(cluster)
    cluster.kubelet.stop()
    cluster.kubelet.start(evictionHard={"memory.available": "1Mi"})


def _evicted(cluster: Cluster, name: str, condition: str) -> str:
    """Wait until a pod is evicted, and the node tells of its condition; why it was."""
    cluster.until(lambda: cluster.pod(name).status.reason == "Evicted", f"evict {name}", 90)

    def conditions() -> dict[str, str]:
        return {one.type: one.status for one in cluster.core.read_node(NODE).status.conditions}

    cluster.until(lambda: conditions()[condition] == "True", f"tell of {condition}")
    return str(cluster.pod(name).status.message)


def _images(cluster: Cluster) -> set[str]:
    return {one.id for one in cluster.daemon.images.ListImages(cri.ListImagesRequest()).images}


def _proxied(cluster: Cluster, path: str) -> str:
    """What kubelet answers the API server."""
    return str(cluster.core.connect_get_node_proxy_with_path(NODE, path))


def _summary(cluster: Cluster, part: str, name: str = "") -> dict[str, Any]:
    """The node's part of kubelet's summary, or a pod's."""
    told = ast.literal_eval(_proxied(cluster, "stats/summary"))
    found = told[part] if not name else [one for one in told[part] if one["podRef"]["name"] == name]
    return dict(found if not name else found[0] if found else {"containers": [{}]})


def _in_order(directory: Path) -> list[str]:
    """What is in a container's rotated logs, oldest first, and in the one that is written to."""
    rotated = {path.name.split(".")[2]: path for path in directory.glob("0.log.*") if path.suffix != ".tmp"}
    files = [*(rotated[time] for time in sorted(rotated)), directory / "0.log"]
    return [(gzip.open if path.suffix == ".gz" else Path.open)(path, "rt").read() for path in files]
