"""Extracts the objects of a call, as fields of log lines and attributes of spans."""

from __future__ import annotations

from typing import Any

_IDS = {"pod_sandbox_id": "sandbox", "container_id": "container", "image_ref": "image"}


def subject(message: Any) -> dict[str, str]:
    """Return the ids and names of sandbox, container, image and pod in a request or an answer."""
    said = {name: found for field, name in _IDS.items() if (found := getattr(message, field, ""))}
    config = getattr(message, "config", None)
    metadata: Any = getattr(config, "metadata", None)
    if metadata is None and "sandbox" not in said and hasattr(message, "sandbox_config"):  # a pull's, where told
        metadata = message.sandbox_config.metadata if message.HasField("sandbox_config") else None
    if hasattr(metadata, "uid"):
        said["pod"] = f"{metadata.namespace}/{metadata.name}/{metadata.uid}/{metadata.attempt}"
    elif hasattr(metadata, "name"):
        said["container_name"] = metadata.name
    image: Any = getattr(message, "image", None)
    if name := getattr(image, "image", "") or getattr(message, "reference", ""):
        said["image"] = name
    return said
