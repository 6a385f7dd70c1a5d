"""What becomes of another runtime's settings: crisp's keys, registries.conf, and what has no counterpart."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from cri.daemon.config import KEYS

_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(h|ms|m|s)")
_UNITS: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_SECRET: Final = re.compile(r"auth|password|token|secret|key", re.IGNORECASE)


class Translation:
    """Takes settings out of a document one by one; `rest` lists what is left."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._left = json.loads(json.dumps(document, default=str))
        self.values: dict[str, Any] = {}
        self.handlers: dict[str, str] = {}
        self.notes: list[tuple[str, str]] = []
        self._registries: dict[str, list[str]] = {}
        self._insecure: set[str] = set()

    def take(self, path: str) -> Any:
        """Return a setting by its path, and count it as translated; None if there is none."""
        parent, name = self._find(path)
        return parent.pop(name, None) if parent is not None else None

    def key(self, path: str, key: str, convert: Callable[[Any], Any] = lambda value: value) -> None:
        """Translate a setting to a key of crisp."""
        if (value := self.take(path)) not in (None, "", []):
            self.set(key, convert(value))

    def set(self, key: str, value: Any) -> None:
        """Set a key of crisp, unless crisp refuses the value."""
        try:
            KEYS[key].kind.check(value)
        except ValueError as error:
            self.note(key, f"{value!r} {error}: set it yourself")
        else:
            self.values[key] = value

    def place(self, path: str, remark: str) -> None:
        """Note what a setting without a key means here."""
        if self.take(path) not in (None, "", [], False):
            self.note(path, remark)

    def note(self, what: str, remark: str) -> None:
        self.notes.append((what, remark))

    def handler(self, name: str, program: str) -> None:
        """Add a runtime handler."""
        if program.startswith("/"):
            self.handlers[name] = program
        else:
            self.note(f"runtime {name}", f"{program or 'no program'}: add [runtime_handlers.{name}] with its path")

    def mirrors(self, registry: str, endpoints: list[str]) -> None:
        """Add a registry's endpoints, in the order in which they are tried. The last one is the registry itself."""
        hosts = []
        for endpoint in endpoints:
            scheme, _, host = endpoint.rpartition("://")
            host = host.rstrip("/").removesuffix("/v2")
            hosts.append(host)
            if scheme == "http":
                self._insecure.add(host)
        if hosts:
            self._registries[registry] = hosts

    def insecure(self, host: str) -> None:
        """Note that a host's certificate is not verified."""
        self._insecure.add(host)

    def rest(self) -> None:
        """Note every setting that is left."""
        for path, value in _leaves(self._left, ""):
            if value not in ("", 0, False, [], {}, None):
                shown = "..." if _SECRET.search(path) else json.dumps(value)
                self.note(path, f"no counterpart (it is {shown})")

    def toml(self) -> str:
        """Return the keys that differ from crisp's defaults, as a configuration file."""
        lines = [
            f"{key} = {json.dumps(value, ensure_ascii=False)}\n"
            for key, value in self.values.items()
            if KEYS[key].kind.check(value) != KEYS[key].default
        ]
        for name, path in self.handlers.items():
            lines += [f"\n[runtime_handlers.{json.dumps(name)}]\n", f"path = {json.dumps(path)}\n"]
            if path.endswith("/runsc"):
                lines.append('kind = "gvisor"\n')
        return "".join(lines)

    def registries(self) -> str:
        """Return the registries in the format of registries.conf."""
        text = []
        for registry, hosts in self._registries.items():
            *mirrors, own = hosts
            if registry.endswith("docker.io") and own in ("registry-1.docker.io", "index.docker.io"):
                own = "docker.io"
            text.append(f'[[registry]]\nprefix = {json.dumps(registry)}\nlocation = {json.dumps(own)}\n')
            text.append("insecure = true\n" if own in self._insecure else "")
            for mirror in mirrors:
                insecure = "insecure = true\n" if mirror in self._insecure else ""
                text.append(f"[[registry.mirror]]\nlocation = {json.dumps(mirror)}\n{insecure}")
        named = {host for hosts in self._registries.values() for host in hosts}
        alone = sorted(self._insecure - named)
        text += [f"[[registry]]\nlocation = {json.dumps(host)}\ninsecure = true\n" for host in alone]
        return "".join(text)

    def _find(self, path: str) -> tuple[dict[str, Any] | None, str]:
        """Return the table with the path's last name. Plugins' names have dots themselves."""
        table: Any = self._left
        rest = path
        while True:
            if not isinstance(table, dict):
                return None, ""
            if rest in table:
                return table, rest
            name = next((one for one in table if rest.startswith(f"{one}.")), None)
            if name is None:
                return None, ""
            table, rest = table[name], rest[len(name) + 1 :]


def address(found: Translation, host: str, port: str, key: str) -> None:
    """Translate an address in two settings."""
    wanted_host, wanted_port = found.take(host), found.take(port)
    if wanted_host or str(wanted_port or "0") != "0":
        name = wanted_host or "127.0.0.1"
        found.set(key, f"{f'[{name}]' if ':' in name else name}:{wanted_port or 0}")


def seconds(duration: Any) -> int:
    """Convert Go's "5m0s" to seconds; a number stays."""
    if isinstance(duration, int):
        return duration
    return round(sum(float(number) * _UNITS[unit] for number, unit in _DURATION.findall(str(duration))))


def _leaves(table: Mapping[str, Any], path: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in table.items():
        inner = f"{path}.{name}" if path else name
        found += _leaves(value, inner) if isinstance(value, dict) else [(inner, value)]
    return found
