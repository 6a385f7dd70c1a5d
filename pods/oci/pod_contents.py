"""Contents of the files that every pod has: resolv.conf, hosts, hostname."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pods.errors import InvalidArgument
from pods.model import DNSConfig, NamespaceMode, SandboxConfig

_MAX_HOSTNAME = 64  # __NEW_UTS_LEN, sethostname(2)
_MAX_RESOLV_CONF = 64 << 10  # a resolver reads it whenever a program starts
_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")


def hostname(sandbox_id: str, config: SandboxConfig, host: str) -> str:
    """The pod's host name: as asked for; the `host`'s on its network; else the start of the sandbox's id.

    Raises InvalidArgument for what sethostname(2) or a line of /etc/hosts could not hold.
    """
    if config.security.namespaces.network is NamespaceMode.NODE:
        return host
    name = config.hostname
    if name and (len(name) > _MAX_HOSTNAME or not _HOSTNAME.fullmatch(name)):
        raise InvalidArgument(f"config.hostname: {name!r} is not a host name of at most {_MAX_HOSTNAME} characters")
    return name or sandbox_id[:12]


def resolv_conf(dns: DNSConfig | None, host_resolv: str) -> str:
    """The text of resolv.conf(5): what `dns` says, or the host's when it says nothing.

    Raises InvalidArgument for a value that would add a line or a word of its own.
    """
    if dns is None or not (dns.servers or dns.searches or dns.options):
        return host_resolv
    for member in ("servers", "searches", "options"):
        for value in getattr(dns, member):
            if not value or any(character.isspace() or character == "\0" for character in value):
                raise InvalidArgument(f"config.dns_config.{member}: {value!r} is not one word")
    lines = [f"search {' '.join(dns.searches)}"] if dns.searches else []
    lines += [f"nameserver {server}" for server in dns.servers]
    lines += [f"options {' '.join(dns.options)}"] if dns.options else []
    text = "".join(f"{line}\n" for line in lines)
    if len(text) > _MAX_RESOLV_CONF:
        reason = f"resolv.conf would have {len(text)} bytes, more than {_MAX_RESOLV_CONF}"
        raise InvalidArgument(f"config.dns_config: {reason}")
    return text


def hosts(name: str, addresses: Sequence[str]) -> str:
    """The text of hosts(5) for a pod with a network of its own: the loopback names, and its own at its addresses."""
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
