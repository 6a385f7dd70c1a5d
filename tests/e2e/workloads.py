"""Objects of a cluster that make pods, and pods that need an API server."""

from __future__ import annotations

from typing import Any

from tests.e2e.manifests import FOREVER, Object, pod, sh


def template(app: str, *containers: Object, **spec: Any) -> Object:
    """The pod that a workload makes copies of."""
    made = pod(app, *containers, **spec)
    return {"metadata": {"labels": {"app": app}}, "spec": made["spec"]}


def _workload(kind: str, app: str, container: Object, **spec: Any) -> Object:
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": app},
        "spec": {"selector": {"matchLabels": {"app": app}}, "template": template(app, container), **spec},
    }


def deployment(app: str, replicas: int, **container: Any) -> Object:
    return _workload("Deployment", app, sh("main", FOREVER, **container), replicas=replicas)


def job(name: str, script: str, **spec: Any) -> Object:
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {"template": template(name, sh("main", script), restartPolicy="Never"), **spec},
    }


def cron_job(name: str) -> Object:
    """Each minute."""
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": name},
        "spec": {"schedule": "* * * * *", "jobTemplate": {"spec": job(name, "true")["spec"]}},
    }


def talking() -> Object:
    """A pod that says what it is told, on a terminal and without one, and serves a page."""
    return pod(
        "talking",
        sh("main", "echo started; while read line; do echo got $line; done", stdin=True),
        sh("terminal", "tty; while read line; do echo got $line; done", stdin=True, tty=True),
        sh("server", "mkdir /site; echo a page >/site/index.html; exec httpd -f -p 8080 -h /site"),
        sh("again", "echo life $(( $(cat /shared/n 2>/dev/null || echo 0) + 1 )); echo 1 >/shared/n; [ -e /shared/m ] "
           f"&& {FOREVER}; touch /shared/m; exit 4", volumeMounts=[{"name": "shared", "mountPath": "/shared"}]),
        volumes=[{"name": "shared", "emptyDir": {}}],
    )  # fmt: skip


def apart() -> Object:
    """A pod with users of its own, by the runtime class."""
    return pod("apart", sh("main", FOREVER), hostUsers=False, runtimeClassName="crisp")


def hungry(mebibytes: int) -> Object:
    """A pod that takes so much memory, when it is told to, and holds it."""
    write = f"dd if=/dev/zero of=/volume/file bs=1M count={mebibytes}"
    return _taking("memory", f"{write}; touch /tmp/eaten; {FOREVER}", {"medium": "Memory"})


def greedy(mebibytes: int) -> Object:
    """A pod that fills its disk, when it is told to, until so much is free, and again if others have freed some."""
    free = "$(df -P -m /volume | awk 'END { print $4 }')"
    write = f"[ {free} -gt {mebibytes} ] && dd if=/dev/zero of=/volume/$number bs=1M count=200"
    return _taking("disk", f"for number in $(seq 60); do {write}; sleep 1; done; {FOREVER}", {})


def _taking(kind: str, script: str, volume: Object) -> Object:
    """A pod that asks for some CPU: kubelet admits nothing of the lowest class while memory is short."""
    script = f"until [ -e /tmp/eat ]; do sleep 0.1; done; {script}"
    mounts = [{"name": "volume", "mountPath": "/volume"}]
    main = sh("main", script, volumeMounts=mounts, resources={"requests": {"cpu": "10m"}})
    return pod(kind, main, volumes=[{"name": "volume", "emptyDir": volume}])


def polite() -> Object:
    """A pod that takes its time to end, and says so."""
    script = "trap 'echo ending; sleep 1; echo ended; exit 0' TERM; while :; do sleep 0.1; done"
    hook = {"preStop": {"exec": {"command": ["sh", "-c", "echo before >/proc/1/fd/1"]}}}
    return pod("polite", sh("main", script, lifecycle=hook), terminationGracePeriodSeconds=30)


def counting() -> Object:
    """A pod that counts, some thousand lines a second, until it is told to stop."""
    script = "i=0; until [ -e /tmp/enough ]; do i=$((i+1)); echo $i; done; echo done; exec sleep 1d"
    return pod("counting", sh("main", script))


def of_runtime_class(name: str, runtime_class: str) -> Object:
    return pod(name, sh("main", f"echo of {runtime_class}; {FOREVER}"), runtimeClassName=runtime_class)


def budget(app: str, available: int) -> Object:
    return {"metadata": {"name": app}, "spec": {"minAvailable": available, "selector": {"matchLabels": {"app": app}}}}


def filling(name: str, path: str) -> Object:
    """A pod that writes 8 MiB where it may write 4: to its own layer, or to its volume `/disk`."""
    script = f"dd if=/dev/zero of={path} bs=1M count=8; {FOREVER}"
    limits = {"limits": {"ephemeral-storage": "4Mi"}} if not path.startswith("/disk") else {}
    return pod(
        name,
        sh("main", script, resources=limits, volumeMounts=[{"name": "disk", "mountPath": "/disk"}]),
        volumes=[{"name": "disk", "emptyDir": {"sizeLimit": "4Mi"}}],
    )
