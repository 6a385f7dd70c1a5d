"""Chooses the proxy for a request by HTTP_PROXY, HTTPS_PROXY and NO_PROXY, interpreted as Go's programs do.

Nodes are configured that way, for example NO_PROXY=10.0.0.0/8,.svc,registry.local:5000.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass

from yarl import URL

from image.errors import InvalidConfiguration

_SCHEMES = ("http", "https")

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Proxies:
    """The proxies, one per scheme, and the hosts to reach without a proxy."""

    by_scheme: Mapping[str, URL]
    exempt: tuple[str, ...]  # lower case: "*", host, .suffix, address or network, each but "*" with an optional port

    def for_url(self, url: URL) -> URL | None:
        """Return the proxy for `url`; None for a direct connection. This machine itself is always reached directly."""
        proxy = self.by_scheme.get(url.scheme)
        if proxy is None or url.host is None:
            return None
        host = url.host.lower().rstrip(".")
        address = _address(host)
        if host == "localhost" or (address is not None and address.is_loopback):
            return None
        return None if any(_covers(rule, host, url.port, address) for rule in self.exempt) else proxy


def from_environment(environment: Mapping[str, str]) -> Proxies:
    """Read the environment; upper case wins. Raises InvalidConfiguration for a proxy that is no http(s) URL."""
    by_scheme = {}
    for scheme in _SCHEMES:
        name = f"{scheme}_proxy"
        if text := (environment.get(name.upper()) or environment.get(name)):
            by_scheme[scheme] = _proxy(name.upper(), text)
    rules = (environment.get("NO_PROXY") or environment.get("no_proxy") or "").lower()
    return Proxies(by_scheme, tuple(filter(None, map(str.strip, rules.split(",")))))


def _proxy(name: str, text: str) -> URL:
    try:
        proxy = URL(text if "://" in text else f"http://{text}")
    except ValueError as error:
        raise InvalidConfiguration(f"read {name}: {error}") from None
    if proxy.scheme not in _SCHEMES or not proxy.host:
        raise InvalidConfiguration(f"read {name}: only proxies at http:// and https:// URLs are supported")
    return proxy


def _covers(rule: str, host: str, port: int | None, address: _Address | None) -> bool:
    if rule == "*":
        return True
    if "/" in rule:
        try:
            return address is not None and address in ipaddress.ip_network(rule, strict=False)
        except ValueError:
            return False
    name, colon, wanted = rule.rpartition(":")
    if not colon or not wanted.isdecimal() or _address(rule) is not None:
        name, wanted = rule, ""
    if wanted and int(wanted) != port:
        return False
    if address is not None:
        return _address(name.strip("[]")) == address
    name = name.removeprefix("*")
    return host.endswith(name) if name.startswith(".") else host == name or host.endswith(f".{name}")


def _address(text: str) -> _Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
