"""Static pods, one for each kind of thing a pod can ask for without an API server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.daemon import BUSYBOX

Object = dict[str, Any]
FOREVER = "exec sleep 100000"
HOST_PORT = 18080


def sh(name: str, script: str, **fields: Any) -> Object:
    """A container that runs a shell script."""
    return {"name": name, "image": BUSYBOX, "imagePullPolicy": "Never", "command": ["sh", "-c", script], **fields}


def pod(name: str, *containers: Object, **spec: Any) -> Object:
    """A pod that ends quickly, since most programs that are PID 1 ignore SIGTERM."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": list(containers), "terminationGracePeriodSeconds": 1, **spec},
    }


def all_kinds(directory: Path) -> list[Object]:
    """The pods. What they leave on the host is below `directory`."""
    return [
        restarts(), on_failure(), never(), ordered(), probes(), hooks(directory), volumes(directory), host(), shared(),
        host_port(), secured(), starved(), limited(),
    ]  # fmt: skip


def restarts() -> Object:
    return pod("restarts", sh("main", "sleep 1"), restartPolicy="Always")


def on_failure() -> Object:
    script = "[ -e /work/failed ] && exit 0; touch /work/failed; exit 1"
    return pod(
        "on-failure",
        sh("main", script, volumeMounts=_at("work")),
        restartPolicy="OnFailure",
        volumes=[{"name": "work", "emptyDir": {}}],
    )


def never() -> Object:
    return pod(
        "never",
        sh("by-file", "echo by file >/dev/termination-log; exit 3"),
        sh("by-log", "echo by log; exit 4", terminationMessagePolicy="FallbackToLogsOnError"),
        restartPolicy="Never",
    )


def ordered() -> Object:
    def step(name: str, script: str = "", **fields: Any) -> Object:
        return sh(name, f"echo {name} >>/work/order; {script}", volumeMounts=_at("work"), **fields)

    started = {"exec": {"command": ["test", "-e", "/tmp/up"]}, "periodSeconds": 1}
    return pod(
        "ordered",
        step("main", FOREVER),
        initContainers=[
            step("first"),
            step("sidecar", f"sleep 1; echo up >>/work/order; touch /tmp/up; {FOREVER}", restartPolicy="Always",
                 startupProbe=started),
            step("second"),
        ],
        volumes=[{"name": "work", "emptyDir": {}}],
    )  # fmt: skip


def probes() -> Object:
    often = {"periodSeconds": 1, "failureThreshold": 1}
    return pod(
        "probes",
        sh("alive", FOREVER, livenessProbe={"exec": {"command": ["test", "!", "-e", "/tmp/sick"]}, **often}),
        sh("ready", "mkdir /site; exec httpd -f -p 8080 -h /site",
           readinessProbe={"httpGet": {"path": "/ready", "port": 8080}, **often}),
        sh("slow", "sleep 2; exec httpd -f -p 9090", startupProbe={"tcpSocket": {"port": 9090}, "periodSeconds": 1},
           livenessProbe={"tcpSocket": {"port": 9090}, **often}),
    )  # fmt: skip


def hooks(directory: Path) -> Object:
    def told(word: str) -> Object:
        return {"exec": {"command": ["sh", "-c", f"echo {word} >>/out/told"]}}

    script = "trap 'echo terminated >>/out/told; exit 0' TERM; while :; do sleep 0.1; done"
    return pod(
        "hooks",
        sh("main", script, lifecycle={"postStart": told("started"), "preStop": told("stopping")},
           volumeMounts=_at("out")),
        terminationGracePeriodSeconds=20,
        volumes=[{"name": "out", "hostPath": {"path": str(directory / "hooks"), "type": "DirectoryOrCreate"}}],
    )  # fmt: skip


def volumes(directory: Path) -> Object:
    def field(path: str) -> Object:
        return {"fieldRef": {"fieldPath": path}}

    label = {"path": "app", **field("metadata.labels['app']")}
    limit = {"path": "limit", "resourceFieldRef": {"containerName": "main", "resource": "limits.memory"}}
    environment = {"POD": "metadata.name", "POD_IP": "status.podIP", "NODE": "spec.nodeName"}
    return pod(
        "volumes",
        sh("main", FOREVER, resources={"limits": {"memory": "64Mi"}},
           env=[{"name": name, "valueFrom": field(path)} for name, path in environment.items()],
           volumeMounts=[
               *_at("disk", "memory", "host", "down"),
               {"name": "file", "mountPath": "/etc/given", "readOnly": True},
               {"name": "disk", "mountPath": "/part", "subPath": "a/b"},
               {"name": "disk", "mountPath": "/named", "subPathExpr": "$(POD)"},
           ]),
        volumes=[
            {"name": "disk", "emptyDir": {}},
            {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "8Mi"}},
            {"name": "host", "hostPath": {"path": str(directory / "host"), "type": "DirectoryOrCreate"}},
            {"name": "file", "hostPath": {"path": str(directory / "given"), "type": "File"}},
            {"name": "down", "downwardAPI": {"items": [label, limit]}},
        ],
    )  # fmt: skip


def host() -> Object:
    return pod("host", sh("main", FOREVER), hostNetwork=True, hostPID=True, hostIPC=True)


def shared() -> Object:
    return pod("shared", sh("one", "exec sleep 7777"), sh("other", FOREVER), shareProcessNamespace=True)


def host_port() -> Object:
    ports = [{"containerPort": 8080, "hostPort": HOST_PORT}]
    script = "mkdir /site; echo hello >/site/index.html; exec httpd -f -p 8080 -h /site"
    return pod("host-port", sh("main", script, ports=ports))


def secured() -> Object:
    restricted = {
        "runAsUser": 1000,
        "runAsGroup": 3000,
        "runAsNonRoot": True,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    one_right = {"capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}}
    whole_pod = {
        "fsGroup": 2000,
        "supplementalGroups": [4000],
        "seccompProfile": {"type": "RuntimeDefault"},
        "sysctls": [{"name": "net.ipv4.ip_local_port_range", "value": "40000 41000"}],
    }
    return pod(
        "secured",
        sh("user", FOREVER, securityContext=restricted, volumeMounts=_at("work")),
        sh("root", FOREVER, securityContext=one_right),
        securityContext=whole_pod,
        volumes=[{"name": "work", "emptyDir": {}}],
    )


def starved() -> Object:
    limits = {"limits": {"memory": "16Mi"}}
    return pod("starved", sh("main", "exec dd if=/dev/zero of=/dev/null bs=64M", resources=limits))


def limited() -> Object:
    """Requests equal to limits: the Guaranteed class, whose pods are directly below kubepods."""
    return pod("limited", sh("main", FOREVER, resources={"limits": {"cpu": "200m", "memory": "48Mi"}}))


def _at(*names: str) -> list[Object]:
    """Each of these volumes at /NAME."""
    return [{"name": name, "mountPath": f"/{name}"} for name in names]
