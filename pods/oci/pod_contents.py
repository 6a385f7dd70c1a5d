"""Generates the files that every pod has: resolv.conf, hosts, hostname."""

from __future__ import annotations

from collections.abc import Sequence

from pods.errors import InvalidArgument
from pods.model import DNSConfig, NamespaceMode, SandboxConfig

_MAX_RESOLV_CONF = 64 << 10  # a resolver reads it whenever a program starts


def hostname(sandbox_id: str, config: SandboxConfig, host: str) -> str:
    """Return the pod's host name: the requested one, the start of its id, or `host` on the host's network."""
    if config.security.namespaces.network is NamespaceMode.NODE:
        return host
    return config.hostname or sandbox_id[:12]


def resolv_conf(dns: DNSConfig | None, host_resolv: str) -> str:
    """Return the text of resolv.conf(5): from `dns`, or the host's if `dns` is empty.

    Raises InvalidArgument for a text that is too long to read at each program's start.
    """
    if dns is None or not (dns.servers or dns.searches or dns.options):
        return host_resolv
    lines = [f"search {' '.join(dns.searches)}"] if dns.searches else []
    lines += [f"nameserver {server}" for server in dns.servers]
    lines += [f"options {' '.join(dns.options)}"] if dns.options else []
    text = "".join(f"{line}\n" for line in lines)
    if len(text) > _MAX_RESOLV_CONF:
        reason = f"resolv.conf would have {len(text)} bytes, more than {_MAX_RESOLV_CONF}"
        raise InvalidArgument(f"config.dns_config: {reason}")
    return text


def hosts(name: str, addresses: Sequence[str]) -> str:
    """Return the text of hosts(5) for a pod with its own network: loopback names, and its own name and addresses."""
    lines = [
        "127.0.0.1\tlocalhost",
        "::1\tlocalhost ip6-localhost ip6-loopback",
        "fe00::\tip6-localnet",
        "fe00::\tip6-mcastprefix",
        "fe00::1\tip6-allnodes",
        "fe00::2\tip6-allrouters",
        *(f"{address}\t{name}" for address in addresses),
    ]
    return "".join(f"{line}\n" for line in lines)
