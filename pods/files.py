"""The contents of the files that a pod's containers share: resolv.conf, hostname, hosts."""

from __future__ import annotations

import socket

from pods.model import DNSConfig


def resolv_conf(dns: DNSConfig | None, host: str) -> str:
    """resolv.conf(5) of a pod: the DNS configuration's, or the host's text where there is none."""
    if dns is None or not (dns.servers or dns.searches or dns.options):
        return host
    lines = []
    if dns.searches:
        lines.append("search " + " ".join(dns.searches))
    lines += [f"nameserver {server}" for server in dns.servers]
    if dns.options:
        lines.append("options " + " ".join(dns.options))
    return "\n".join(lines) + "\n"


def host_hostname() -> str:
    """The machine's name, for pods on its network."""
    return socket.gethostname()
