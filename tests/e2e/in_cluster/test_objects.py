"""Workloads of a real cluster on crispd, made and watched through the API server."""

from __future__ import annotations

import json
from typing import Any

import pytest
from kubernetes import client, watch
from kubernetes.stream import portforward, stream

from tests.e2e import workloads
from tests.e2e.cluster import NAMESPACE, Cluster
from tests.e2e.kubelet import NODE


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


def test_a_pod_ends_gracefully(cluster: Cluster) -> None:
    cluster.run(workloads.polite())
    lines = watch.Watch().stream(cluster.core.read_namespaced_pod_log, "polite", NAMESPACE, follow=True)
    cluster.core.delete_namespaced_pod("polite", NAMESPACE)
    assert [line for line in lines if line] == ["before", "ending", "ended"]
