"""Runtime handlers: crisp's own runtime core, and other OCI runtimes named in the configuration.

A pod has one handler. crisp makes every sandbox (namespaces, network, infra process) itself. With another handler, that
runtime makes the pod's containers, and the pod's shim supervises them as usual (`runtime/shim/launch/external.py`). A
runtime with sandboxes of its own (gVisor) makes one more, in the pod's namespaces (`runtime/shim/launch/sandbox.py`).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from linux.mounts import unmount_if_mounted
from pods.cgroups.places import places_of
from pods.errors import FailedPrecondition, InvalidArgument, Unimplemented
from pods.host import HostFacts
from pods.model import NamespaceMode, Sandbox, SandboxConfig
from pods.security.seccomp_profile import BASE
from runtime.handler import Handler
from runtime.wire.calls import ExternalRuntime

BUILT_IN: Final = ("", "crisp")
_VERSION: Final = "1.0.2"  # of the OCI specification: it has all that crisp writes, and crun 1.8 accepts no later one


def check_handler(handler: str, config: SandboxConfig, external: Mapping[str, Handler]) -> None:
    """Refuse a handler that is not configured or cannot serve this pod. Raises InvalidArgument, Unimplemented."""
    if handler in BUILT_IN:
        return
    if handler not in external:
        there = ", ".join(("crisp", *sorted(external)))
        raise InvalidArgument(f"runtime_handler: no handler {handler!r} is configured (there is: {there})")
    users = config.security.namespaces.userns
    if users is not None and users.mode is NamespaceMode.POD:
        raise Unimplemented(
            "config.linux.security_context.namespace_options.userns_options: only crisp's own handler has user "
            f"namespaces, and runtime_handler is {handler!r}"
        )


def handler_of(sandbox: Sandbox, external: Mapping[str, Handler]) -> Handler | None:
    """Return the pod's handler as it is configured; None for crisp's own. Raises FailedPrecondition."""
    handler = sandbox.runtime_handler
    if handler in BUILT_IN:
        return None
    if handler not in external:
        raise FailedPrecondition(
            f"runtime_handlers: {handler!r} of pod sandbox {sandbox.id} is no longer configured: "
            "add it, or remove the pod"
        )
    return external[handler]


def runtime_of(sandbox: Sandbox, handler: Handler, state: Path) -> ExternalRuntime:
    """Return the runtime for the shim, and make its state directory."""
    root = state / "handlers" / sandbox.runtime_handler
    if handler.has_sandboxes:
        root /= sandbox.id  # runsc mounts an empty network namespace there, which goes with the pod
    root.mkdir(parents=True, mode=0o711, exist_ok=True)
    by_systemd = places_of(sandbox.cgroup_driver).by_systemd
    return ExternalRuntime(str(handler.path), str(root), by_systemd)


def has_sandbox(sandbox: Sandbox, external: Mapping[str, Handler]) -> bool:
    """Return whether the pod has a sandbox that another runtime made."""
    handler = external.get(sandbox.runtime_handler)
    return handler is not None and handler.has_sandboxes


def adapt(document: dict[str, Any], sandbox: Sandbox, container_id: str, host: HostFacts, *, in_sandbox: bool) -> None:
    """Change a config.json into what other runtimes accept. Raises Unimplemented."""
    if BASE in document["linux"]:
        raise Unimplemented(
            "config.linux.security_context.seccomp: only crisp's own handler intersects OCI profiles with their base, "
            f"and runtime_handler is {sandbox.runtime_handler!r}"
        )
    document["ociVersion"] = _VERSION
    if not host.hugetlb:  # kubelet limits every page size; runc fails on a hybrid host with it on v2 only
        document["linux"]["resources"].pop("hugepageLimits", None)
    if in_sandbox:
        del document["linux"]["cgroupsPath"]  # the sandbox's cgroup has all processes; crisp makes the container's
        document["process"].pop("selinuxLabel", None)  # runsc refuses it: the host sees no process of the container
    else:
        document["linux"]["cgroupsPath"] = places_of(sandbox.cgroup_driver).oci_path(sandbox, container_id)


def clean_up(container_id: str, bundle: Path, volumes: Path, state: Path) -> None:
    """Remove what another runtime left of a container whose shim, which would have called it, is gone."""
    for path in (bundle / "rootfs", *volumes.glob("image-*")):
        unmount_if_mounted(str(path))
    forget(container_id, state)


def forget(object_id: str, state: Path) -> None:
    """Remove another runtime's state of a container, or of a sandbox and all that is in it."""
    for kept in _kept(object_id, state):
        if kept.is_dir():
            unmount_if_mounted(str(kept / "null-netns"))
            shutil.rmtree(kept, ignore_errors=True)
        else:
            kept.unlink(missing_ok=True)


def _kept(object_id: str, state: Path) -> list[Path]:
    """Find a runtime's state of the object. What the runtime itself removes meanwhile is no error."""
    found = []
    for root in _inside(state / "handlers"):
        for place in _inside(root):
            found += [place] if place.name == object_id else []
            found += [one for one in _inside(place) if one.name.startswith(f"{object_id}_sandbox:")]
    return found


def _inside(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
