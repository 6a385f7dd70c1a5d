"""Gates of Kubernetes 1.37 that ask something of the runtime: all are open in the cluster, and each has a test.

EventedPLEG, CRIListStreaming and PodAndContainerStatsFromCRI are open under all tests of this directory.
"""

from __future__ import annotations

import json
import tarfile
from typing import Any
from urllib.parse import urlencode

from cri.v1 import api_pb2 as cri
from tests.daemon import BUSYBOX
from tests.e2e.cluster import NAMESPACE, Cluster
from tests.e2e.kubelet import NODE
from tests.e2e.manifests import FOREVER, Object, pod, sh

_LINUX = {"name": "linux"}


def test_a_container_says_how_it_is_to_be_stopped(cluster: Cluster) -> None:
    """ContainerStopSignals: the image's signal is SIGTERM, which the program ignores."""
    script = "trap '' TERM; trap 'echo said USR1; exit 0' USR1; echo ready; while :; do sleep 0.1; done"
    main = sh("main", script, lifecycle={"stopSignal": "SIGUSR1"})
    cluster.run(pod("signalled", main, os=_LINUX, terminationGracePeriodSeconds=600, restartPolicy="Never"))
    assert _container(cluster, "signalled")["stopSignal"] == "SIGUSR1"
    cluster.until(lambda: "ready" in _log(cluster, "signalled"), "have its trap")
    lines = cluster.core.read_namespaced_pod_log("signalled", NAMESPACE, follow=True, _preload_content=False)
    cluster.core.delete_namespaced_pod("signalled", NAMESPACE)
    assert lines.read().decode().splitlines()[-1] == "said USR1"
    lines.release_conn()


def test_a_volume_is_mounted_with_options(cluster: Cluster) -> None:
    """VolumeBindMountOptions: a program on such a volume cannot be run, and on the same volume elsewhere it can."""
    at = [
        {"name": "disk", "mountPath": "/plain"},
        {"name": "disk", "mountPath": "/bound", "bindMountOptions": ["noexec", "nosuid", "nodev"]},
    ]
    main = sh("main", f"cp /bin/busybox /plain/true; {FOREVER}", volumeMounts=at)
    cluster.run(pod("bound", main, volumes=[{"name": "disk", "emptyDir": {}}]))
    cluster.until(lambda: cluster.output("bound", "/plain/true && echo ran || true") == "ran\n", "run a program")
    assert "denied" in cluster.output("bound", "/bound/true 2>&1 || true")
    options = cluster.output("bound", "grep ' /bound ' /proc/self/mountinfo").split()[5].split(",")
    assert {"noexec", "nosuid", "nodev"} <= set(options)


def test_the_digest_of_an_image_volume_is_told(cluster: Cluster) -> None:
    """ImageVolumeWithDigest: kubelet 1.37 looks for the mount by a name that no runtime is told, so that its own status
    stays empty. The test asks the runtime what kubelet would: the image of the mount, by what its status says."""
    volume = {"name": "image", "image": {"reference": BUSYBOX, "pullPolicy": "Never"}}
    main = sh("main", FOREVER, volumeMounts=[{"name": "image", "mountPath": "/image"}])
    cluster.run(pod("digest", main, volumes=[volume]))
    told = _container(cluster, "digest")
    status = cluster.daemon.status(told["containerID"].rpartition("/")[2])
    (image,) = (mount.image for mount in status.mounts if mount.container_path == "/image")
    spec = cri.ImageSpec(image=image.image, user_specified_image=image.user_specified_image)
    found = cluster.daemon.images.ImageStatus(cri.ImageStatusRequest(image=spec)).image
    assert found.id == told["imageID"].rpartition("@")[2]


def test_users_of_its_own_on_the_nodes_network(cluster: Cluster) -> None:
    """UserNamespacesHostNetworkSupport."""
    cluster.run(pod("mapped", sh("main", FOREVER), hostUsers=False, hostNetwork=True))
    inside, outside, length = cluster.output("mapped", "cat /proc/self/uid_map").split()
    assert (inside, length) == ("0", "65536")
    assert int(outside) >= 65536
    assert cluster.pod("mapped").status.pod_ip == cluster.pod("mapped").status.host_ip
    links = "cut -d: -f1 /proc/net/dev | tail -n +3 | sort"
    with open("/proc/net/dev") as file:
        mine = sorted(line.partition(":")[0].strip() for line in file.readlines()[2:])
    assert sorted(cluster.output("mapped", links).split()) == mine


def test_a_kernel_parameter_for_every_pod(cluster: Cluster) -> None:
    """DefaultPodSysctls: a pod's own wins."""
    port = "net.ipv4.ip_unprivileged_port_start"
    own = {"sysctls": [{"name": port, "value": "90"}]}
    cluster.run(pod("tuned", sh("main", FOREVER)), pod("untuned", sh("main", FOREVER), securityContext=own))
    read = f"cat /proc/sys/{port.replace('.', '/')}"
    assert (cluster.output("tuned", read), cluster.output("untuned", read)) == ("80\n", "90\n")


def test_one_stream_of_a_log(cluster: Cluster) -> None:
    """PodLogsQuerySplitStreams: by the tags of the lines that crisp writes."""
    cluster.run(pod("split", sh("main", f"echo out; echo err >&2; echo more; {FOREVER}")))
    cluster.until(lambda: len(_log(cluster, "split").splitlines()) == 3, "have a log")
    assert _log(cluster, "split", stream="Stdout").splitlines() == ["out", "more"]
    assert _log(cluster, "split", stream="Stderr").splitlines() == ["err"]


def test_a_container_is_checkpointed_by_kubelet(cluster: Cluster) -> None:
    """ContainerCheckpoint: kubelet's own endpoint."""
    script = "number=0; while :; do number=$((number + 1)); echo $number >/next; mv /next /count; sleep 0.1; done"
    cluster.run(pod("captured", sh("main", script)))
    cluster.until(lambda: cluster.output("captured", "cat /count 2>/dev/null || true").strip(), "count")
    answer = cluster.core.connect_post_node_proxy_with_path(NODE, f"checkpoint/{NAMESPACE}/captured/main")
    (archive,) = json.loads(str(answer).replace("'", '"'))["items"]
    with tarfile.open(archive) as file:
        names = {name.partition("/")[0] for name in file.getnames()}
    assert {"checkpoint", "config.dump", "spec.dump", "rootfs-diff.tar"} <= names
    before = int(cluster.output("captured", "cat /count"))
    cluster.until(lambda: int(cluster.output("captured", "cat /count")) > before, "go on after it")


def test_how_long_a_container_waits_is_in_the_nodes_summary(cluster: Cluster) -> None:
    """KubeletPSI, for which kubelet has what the runtime says: it grows as processes wait for a core."""
    busy = "for number in 1 2 3 4 5 6 7 8; do while :; do :; done & done; wait"
    limits = {"limits": {"cpu": "500m", "memory": "64Mi"}}
    cluster.run(pod("waiting", sh("main", busy, resources=limits)))

    def told() -> Object:
        pods = _raw(cluster, f"/api/v1/nodes/{NODE}/proxy/stats/summary")["pods"]
        found = [one["containers"] for one in pods if one["podRef"]["name"] == "waiting"]
        return dict(found[0][0]) if found and found[0] else {}

    def waited() -> int:
        return int(told().get("cpu", {}).get("psi", {}).get("some", {}).get("total", 0))

    first = cluster.until(waited, "have waited for a core")
    cluster.until(lambda: waited() > first, "wait for a core again")
    assert {"some", "full"} <= told()["memory"]["psi"].keys() & told()["io"]["psi"].keys()


def test_a_pods_own_limits_change_in_place(cluster: Cluster) -> None:
    """InPlacePodLevelResourcesVerticalScaling: before kubelet changes the pod's cgroup it tells the runtime."""

    def sums(memory: str) -> Object:
        return {"limits": {"cpu": "500m", "memory": memory}, "requests": {"cpu": "100m", "memory": memory}}

    cluster.run(pod("sums", sh("main", FOREVER), resources=sums("64Mi")))
    lives = cluster.lives("sums")

    def kept() -> int:
        selector = {"io.kubernetes.pod.name": "sums"}
        (sandbox,) = cluster.daemon.runtime.ListPodSandbox(
            cri.ListPodSandboxRequest(filter=cri.PodSandboxFilter(label_selector=selector))
        ).items
        request = cri.PodSandboxStatusRequest(pod_sandbox_id=sandbox.id, verbose=True)
        info = json.loads(cluster.daemon.runtime.PodSandboxStatus(request).info["info"])
        return int(info["resources"]["memory_limit_in_bytes"])

    assert kept() == 64 << 20
    cluster.core.patch_namespaced_pod_resize("sums", NAMESPACE, {"spec": {"resources": sums("96Mi")}})
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/sums"
    cluster.until(
        lambda: _raw(cluster, path)["status"].get("resources", {}).get("limits", {}).get("memory") == "96Mi",
        "tell of the pod's new limits",
    )
    assert kept() == 96 << 20
    assert cluster.lives("sums") == lives


def test_a_containers_limits_change_in_place(cluster: Cluster) -> None:
    """InPlacePodVerticalScaling: the kernel has the new limit, the status tells it, and the container lives on."""

    def limits(memory: str) -> Object:
        return {"limits": {"cpu": "200m", "memory": memory}, "requests": {"cpu": "100m", "memory": memory}}

    cluster.run(pod("resized", sh("main", FOREVER, resources=limits("64Mi"))))
    lives = cluster.lives("resized")
    patch = {"spec": {"containers": [{"name": "main", "resources": limits("96Mi")}]}}
    cluster.core.patch_namespaced_pod_resize("resized", NAMESPACE, patch)
    cluster.until(
        lambda: _container(cluster, "resized")["resources"]["limits"]["memory"] == "96Mi", "tell of the new limits"
    )
    container_id = _container(cluster, "resized")["containerID"].rpartition("/")[2]
    assert cluster.daemon.status(container_id).resources.linux.memory_limit_in_bytes == 96 << 20
    limit = "/sys/fs/cgroup/memory/memory.limit_in_bytes"
    seen = cluster.output("resized", f"cat {limit} 2>/dev/null || cat /sys/fs/cgroup/memory.max")
    assert int(seen) == 96 << 20
    assert cluster.lives("resized") == lives


def test_mounts_groups_and_proc_as_the_runtime_says_it_can(cluster: Cluster) -> None:
    """RecursiveReadOnlyMounts, SupplementalGroupsPolicy and ProcMountType: kubelet looks at what the runtime tells."""
    volume = {"name": "disk", "mountPath": "/disk", "readOnly": True, "recursiveReadOnly": "Enabled"}
    main = sh("main", FOREVER, volumeMounts=[volume], securityContext={"procMount": "Unmasked"})
    groups = {"runAsUser": 0, "supplementalGroups": [4000], "supplementalGroupsPolicy": "Strict"}
    volumes = [{"name": "disk", "emptyDir": {}}]
    cluster.run(pod("able", main, hostUsers=False, securityContext=groups, volumes=volumes))
    told = _container(cluster, "able")
    (mount,) = (one for one in told["volumeMounts"] if one["name"] == "disk")
    assert mount["recursiveReadOnly"] == "Enabled"
    assert told["user"]["linux"]["supplementalGroups"] == [0, 4000]
    assert cluster.output("able", "id -G") == "0 4000\n"
    assert " /proc/kcore " not in cluster.output("able", "cat /proc/self/mountinfo")


def _container(cluster: Cluster, name: str) -> Object:
    """The status of a pod's container, as the API has it: the client does not know new fields."""
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/{name}"
    (status,) = _raw(cluster, path)["status"]["containerStatuses"]
    return dict(status)


def _log(cluster: Cluster, name: str, **query: str) -> str:
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/{name}/log"
    return _get(cluster, path, query)


def _raw(cluster: Cluster, path: str) -> Any:
    return json.loads(_get(cluster, path, {}))


def _get(cluster: Cluster, path: str, query: dict[str, str]) -> str:
    url = f"{cluster.address}{path}?{urlencode(query)}"
    return str(cluster.api.rest_client.request("GET", url).read().decode())
