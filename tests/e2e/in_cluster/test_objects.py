"""Workloads of a real cluster on crispd, made and watched through the API server."""

from __future__ import annotations

import json
from typing import Any

import pytest
from kubernetes import client, watch
from kubernetes.stream import portforward, stream

from tests.daemon import BUSYBOX
from tests.e2e import workloads
from tests.e2e.cluster import NAMESPACE, Cluster
from tests.e2e.kubelet import NODE
from tests.e2e.manifests import FOREVER


@pytest.fixture(scope="module")
def talking(cluster: Cluster) -> str:
    cluster.create(workloads.talking())
    cluster.until(lambda: cluster.ready("talking"), "run a pod that talks")
    return "talking"


def test_a_deployment_scales_and_rolls_out(cluster: Cluster) -> None:
    def ready(replicas: int) -> bool:
        web = cluster.apps.read_namespaced_deployment("web", NAMESPACE)
        if web.status.observed_generation != web.metadata.generation:
            return False  # what it tells is of before the change
        counts = (web.status.ready_replicas, web.status.updated_replicas, web.status.replicas)
        return counts == (replicas,) * 3

    cluster.apps.create_namespaced_deployment(NAMESPACE, workloads.deployment("web", 2))
    cluster.until(lambda: ready(2), "run a deployment of two")
    before = cluster.lives("web")
    cluster.apps.patch_namespaced_deployment_scale("web", NAMESPACE, {"spec": {"replicas": 4}})
    cluster.until(lambda: ready(4), "scale it to four")
    assert before.items() <= cluster.lives("web").items()
    change = workloads.deployment("web", 4, env=[{"name": "VERSION", "value": "two"}])
    cluster.apps.patch_namespaced_deployment("web", NAMESPACE, change)
    cluster.until(lambda: ready(4) and len(cluster.pods("web")) == 4, "roll a change out")
    assert not before.keys() & cluster.lives("web").keys()
    assert {cluster.output(one.metadata.name, "echo $VERSION") for one in cluster.pods("web")} == {"two\n"}


def test_a_crash_of_crispd_restarts_nothing(cluster: Cluster) -> None:
    before = cluster.lives("web")
    cluster.daemon.kill9()
    cluster.daemon.start()
    cluster.apps.patch_namespaced_deployment_scale("web", NAMESPACE, {"spec": {"replicas": 5}})
    cluster.until(lambda: len(cluster.pods("web")) == 5, "make one pod more")
    cluster.until(lambda: all(cluster.ready(one.metadata.name) for one in cluster.pods("web")), "run it")
    assert before.items() <= cluster.lives("web").items()


def test_jobs_run_to_their_ends(cluster: Cluster) -> None:
    batch = client.BatchV1Api(cluster.api)
    batch.create_namespaced_job(NAMESPACE, workloads.job("thrice", "true", completions=3, parallelism=2))
    batch.create_namespaced_job(NAMESPACE, workloads.job("hopeless", "exit 3", backoffLimit=0))

    def conditions(name: str) -> set[str]:
        found = batch.read_namespaced_job_status(name, NAMESPACE).status.conditions or ()
        return {one.type for one in found if one.status == "True"}

    cluster.until(lambda: "Complete" in conditions("thrice"), "complete a job")
    cluster.until(lambda: "Failed" in conditions("hopeless"), "give a job up")
    (failed,) = cluster.pods("hopeless")
    assert failed.status.container_statuses[0].state.terminated.exit_code == 3
    assert {one.status.phase for one in cluster.pods("thrice")} == {"Succeeded"}


def test_daemon_sets_and_stateful_sets(cluster: Cluster) -> None:
    cluster.apps.create_namespaced_daemon_set(NAMESPACE, workloads.daemon_set("agent"))
    cluster.apps.create_namespaced_stateful_set(NAMESPACE, workloads.stateful_set("store", 2))
    cluster.until(
        lambda: [one.spec.node_name for one in cluster.pods("agent") if cluster.ready(one.metadata.name)] == [NODE],
        "run a daemon set",
    )
    cluster.until(
        lambda: (
            sorted(one.metadata.name for one in cluster.pods("store") if cluster.ready(one.metadata.name))
            == ["store-0", "store-1"]
        ),
        "run a stateful set",
    )
    assert cluster.output("store-1", "hostname") == "store-1\n"
    was = cluster.pod("store-1").metadata.uid
    cluster.core.delete_namespaced_pod("store-1", NAMESPACE)
    cluster.until(
        lambda: any(one.metadata.uid != was and cluster.ready("store-1") for one in cluster.pods("store")
                    if one.metadata.name == "store-1"),
        "make a pod of the same name again",
    )  # fmt: skip


def test_files_of_the_cluster_and_their_changes(cluster: Cluster) -> None:
    core = cluster.core
    core.create_namespaced_config_map(NAMESPACE, {"metadata": {"name": "settings"}, "data": {"greeting": "hello"}})
    core.create_namespaced_secret(NAMESPACE, {"metadata": {"name": "password"}, "stringData": {"word": "sesame"}})
    cluster.run(workloads.configured())
    files = "cat /map/greeting /secret/word /all/deep/down /all/word /etc/one; echo; echo $GREETING"
    read = cluster.output("configured", f"{files}; stat -Lc %a /secret/word")
    assert read == "hellosesamehellosesamehello\nhello\n400\n"
    assert cluster.output("configured", "cut -d. -f1 /all/token | wc -c") != "0\n"
    core.patch_namespaced_config_map("settings", NAMESPACE, {"data": {"greeting": "bye"}})
    cluster.until(lambda: cluster.output("configured", "cat /map/greeting") == "bye", "change a file", 120)
    assert cluster.output("configured", "cat /all/deep/down /etc/one") == "byehello"  # a sub path stays as it was


def test_exec_with_input_and_exit_status(cluster: Cluster, talking: str) -> None:
    command = ["sh", "-c", "read line; echo out $line; echo err >&2; exit 6"]
    session = cluster.exec(talking, command, stdin=True)
    session.write_stdin("typed\n")
    session.run_forever(timeout=30)
    assert (session.read_stdout(), session.read_stderr(), session.returncode) == ("out typed\n", "err\n", 6)


def test_exec_with_a_terminal(cluster: Cluster, talking: str) -> None:
    session = cluster.exec(talking, ["sh"], stdin=True, stderr=False, tty=True)
    session.write_channel(4, json.dumps({"Width": 77, "Height": 33}))
    # The size has a channel of its own, and may come after the line.
    session.write_stdin("tty; until [ \"$(stty size)\" = '33 77' ]; do sleep 0.1; done; echo sized; exit 5\n")
    session.run_forever(timeout=30)
    shown = session.read_stdout()
    assert "/dev/pts/" in shown
    assert "\nsized\r\n" in shown
    assert session.returncode == 5


@pytest.mark.parametrize("container", ["main", "terminal"])
def test_attach(cluster: Cluster, talking: str, container: str) -> None:
    tty = container == "terminal"
    connect = cluster.core.connect_get_namespaced_pod_attach
    options = {"container": container, "stdin": True, "stdout": True, "stderr": not tty, "tty": tty}
    session = stream(connect, talking, NAMESPACE, _preload_content=False, **options)
    session.write_stdin("words\n")
    shown = ""
    while "got words" not in shown:
        session.update(timeout=30)
        shown += session.read_stdout(timeout=0)
        assert session.is_open(), shown
    session.close()


def test_port_forward(cluster: Cluster, talking: str) -> None:
    for _ in range(2):
        forward = portforward(cluster.core.connect_get_namespaced_pod_portforward, talking, NAMESPACE, ports="8080")
        socket = forward.socket(8080)
        socket.setblocking(True)
        socket.sendall(b"GET / HTTP/1.0\r\n\r\n")
        answer = b""
        while part := socket.recv(4096):
            answer += part
        assert answer.endswith(b"a page\n")
        assert forward.error(8080) is None
        forward.close()


def test_logs_followed_and_of_the_life_before(cluster: Cluster, talking: str) -> None:
    def log(**options: Any) -> str:
        return str(cluster.core.read_namespaced_pod_log(talking, NAMESPACE, **options))

    cluster.until(lambda: "life 2" in log(container="again"), "run a container again")
    assert log(container="again", previous=True) == "life 1\n"
    lines = watch.Watch().stream(
        cluster.core.read_namespaced_pod_log, talking, NAMESPACE, container="main", follow=True
    )
    assert next(lines) == "started"
    cluster.output(talking, "echo from an exec >/proc/1/fd/1")
    while next(lines) != "from an exec":
        pass


def test_an_ephemeral_container_looks_at_the_others(cluster: Cluster, talking: str) -> None:
    debugger = {"name": "debugger", "image": BUSYBOX, "imagePullPolicy": "Never", "command": ["sh", "-c", FOREVER],
                "targetContainerName": "server"}  # fmt: skip
    body = {"spec": {"ephemeralContainers": [debugger]}}
    cluster.core.patch_namespaced_pod_ephemeralcontainers(talking, NAMESPACE, body)

    def runs() -> bool:
        found = cluster.pod(talking).status.ephemeral_container_statuses or ()
        return any(one.state.running for one in found)

    cluster.until(runs, "run an ephemeral container")
    assert "httpd -f" in cluster.output(talking, "ps -o args", container="debugger")


def test_users_of_its_own_by_the_runtime_class(cluster: Cluster) -> None:
    class_ = {"metadata": {"name": "crisp"}, "handler": "crisp"}
    client.NodeV1Api(cluster.api).create_runtime_class(class_)
    cluster.run(workloads.apart())
    inside, outside, length = cluster.output("apart", "cat /proc/self/uid_map").split()
    assert (inside, length) == ("0", "65536")
    assert int(outside) >= 65536
    node = cluster.core.read_node(NODE)
    handlers = {one.name: one.features.user_namespaces for one in node.status.runtime_handlers}
    assert handlers["crisp"] is True


def test_an_image_as_a_volume(cluster: Cluster) -> None:
    cluster.run(workloads.with_image())
    assert cluster.output("with-image", "ls /image/bin/busybox; touch /image/x 2>&1 | grep -o Read-only") == (
        "/image/bin/busybox\nRead-only\n"
    )


def test_limits_change_in_place(cluster: Cluster) -> None:
    cluster.run(workloads.resized())
    before = cluster.lives("resized")
    limits = {"limits": {"cpu": "300m", "memory": "64Mi"}, "requests": {"cpu": "100m", "memory": "64Mi"}}
    body = {"spec": {"containers": [{"name": "main", "resources": limits}]}}
    cluster.core.patch_namespaced_pod_resize("resized", NAMESPACE, body)
    cgroup = ["/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory.max"]
    read = f"cat {' '.join(cgroup)} 2>/dev/null || true"
    cluster.until(lambda: cluster.output("resized", read).strip() == str(64 << 20), "raise a limit in place")

    def told() -> Any:
        return cluster.pod("resized").status.container_statuses[0].resources.limits

    cluster.until(lambda: (told()["cpu"], told()["memory"]) == ("300m", "64Mi"), "tell of new limits")
    assert cluster.lives("resized") == before


def test_a_pod_ends_gracefully(cluster: Cluster) -> None:
    cluster.run(workloads.polite())
    lines = watch.Watch().stream(cluster.core.read_namespaced_pod_log, "polite", NAMESPACE, follow=True)
    cluster.core.delete_namespaced_pod("polite", NAMESPACE)
    assert [line for line in lines if line] == ["before", "ending", "ended"]
