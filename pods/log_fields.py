"""Fields that identify a pod or container in log lines: ids, and names in Kubernetes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pods.model import Container, Sandbox, SandboxConfig


def pod_name(config: SandboxConfig) -> str:
    """Return namespace/name/uid/attempt."""
    metadata = config.metadata
    return f"{metadata.namespace}/{metadata.name}/{metadata.uid}/{metadata.attempt}"


def of_sandbox(sandbox: Sandbox) -> dict[str, object]:
    """Return the fields of a log line about a sandbox."""
    return {"sandbox": sandbox.id, "pod": pod_name(sandbox.config)}


def of_container(container: Container) -> dict[str, object]:
    """Return the fields of a log line about a container."""
    return {
        "container": container.id,
        "container_name": container.config.metadata.name,
        "sandbox": container.sandbox_id,
    }
