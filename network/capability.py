"""Builds the `runtimeConfig` values that a pod offers to plugins by capability (CNI's CONVENTIONS.md)."""

from __future__ import annotations

import math
import re
from decimal import Decimal, InvalidOperation
from typing import Any

from network.errors import InvalidAttachment
from network.model import Attachment, PortMapping

INGRESS_ANNOTATION = "kubernetes.io/ingress-bandwidth"
EGRESS_ANNOTATION = "kubernetes.io/egress-bandwidth"

_QUANTITY = re.compile(
    r"(?P<digits>[+-]?[0-9]{0,30}\.?[0-9]{0,30})(?:[eE](?P<exponent>[+-]?[0-9]{1,3})|(?P<suffix>[KMGTPE]i|[numkMGTPE])?)\Z"
)
_SUFFIXES = {
    "": Decimal(1),
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    **{suffix: Decimal(1000) ** power for power, suffix in enumerate("kMGTPE", start=1)},
    **{suffix + "i": Decimal(1024) ** power for power, suffix in enumerate("KMGTPE", start=1)},
}
_SLOWEST, _FASTEST = 10**3, 10**15  # bits a second; the limits of kubelet's validation
_BURST = 2**32 - 1  # bits; the bandwidth plugin's maximum, so that only the rate limits


def capability_args(attachment: Attachment) -> dict[str, Any]:
    """Return all `runtimeConfig` keys that `attachment` has a value for. Raises InvalidAttachment."""
    offered: dict[str, Any] = {
        "portMappings": [_port_mapping(mapping) for mapping in attachment.port_mappings if mapping.host_port],
        "bandwidth": _bandwidth(attachment.annotations),
        "dns": _dns(attachment),
        "cgroupPath": attachment.cgroup_path,
        "io.kubernetes.cri.pod-annotations": attachment.annotations,
        "ips": attachment.ips,
        "mac": attachment.mac,
    }
    return {key: value for key, value in offered.items() if value}


def parse_quantity(text: str) -> Decimal:
    """Read a Kubernetes quantity ("10M", "1.5Gi", "1e6"). Raises ValueError."""
    match = _QUANTITY.match(text)
    if match is None:
        raise ValueError(f'"{text}" is not a quantity')
    try:
        number = Decimal(match["digits"])
    except InvalidOperation:
        raise ValueError(f'"{text}" is not a quantity') from None
    if match["exponent"]:
        return number.scaleb(int(match["exponent"]))
    return number * _SUFFIXES[match["suffix"] or ""]


def _port_mapping(mapping: PortMapping) -> dict[str, Any]:
    return {
        "hostPort": mapping.host_port,
        "containerPort": mapping.container_port,
        "protocol": mapping.protocol.lower(),
        "hostIP": mapping.host_ip,
    }


def _bandwidth(annotations: dict[str, str]) -> dict[str, int]:
    limits: dict[str, int] = {}
    for direction, annotation in (("ingress", INGRESS_ANNOTATION), ("egress", EGRESS_ANNOTATION)):
        if annotation in annotations:
            limits[f"{direction}Rate"] = _bits_a_second(annotation, annotations[annotation])
            limits[f"{direction}Burst"] = _BURST
    return limits


def _bits_a_second(annotation: str, text: str) -> int:
    try:
        rate = parse_quantity(text)
    except ValueError as error:
        raise InvalidAttachment(f"read annotation {annotation}: {error}") from None
    if not _SLOWEST <= rate <= _FASTEST:
        raise InvalidAttachment(f'read annotation {annotation}: "{text}" is not between 1k and 1P')
    return math.ceil(rate)


def _dns(attachment: Attachment) -> dict[str, list[str]]:
    if attachment.dns is None:
        return {}
    fields = {
        "servers": list(attachment.dns.servers),
        "searches": list(attachment.dns.searches),
        "options": list(attachment.dns.options),
    }
    return {name: values for name, values in fields.items() if values}
