"""Caches compiled seccomp filters by profile: compiling one takes as long as starting its container."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import OrderedDict
from typing import Any, Final

from pods.security.seccomp_profile import BASE
from runtime.seccomp.compile import FLAGS, compile_filter, filter_flags
from runtime.seccomp.intersect import intersect
from runtime.spec.parse import parse

_KEPT: Final = 64
_LOOSENING: Final = FLAGS["SECCOMP_FILTER_FLAG_SPEC_ALLOW"]
Filter = tuple[bytes, int]  # BPF program, flags of seccomp(2)


class FilterCache:
    """The filters of the most recently used profiles. With `log` the kernel reports calls that they deny."""

    def __init__(self, *, log: bool = False) -> None:
        self._flags = FLAGS["SECCOMP_FILTER_FLAG_LOG"] if log else 0
        self._filters: OrderedDict[bytes, Filter] = OrderedDict()

    async def of(self, document: dict[str, Any]) -> Filter:
        """Return the filter for a config.json; no bytes if it has no profile. Raises RuntimeCoreError."""
        linux = document.get("linux", {})
        if not linux.get("seccomp"):
            return b"", 0
        profiles = [linux["seccomp"], linux.get(BASE)]
        key = hashlib.sha256(json.dumps(profiles, sort_keys=True).encode()).digest()
        found = self._filters.get(key)
        if found is None:
            found = await asyncio.to_thread(_compile, document, *profiles)
            self._filters[key] = found
            if len(self._filters) > _KEPT:
                self._filters.popitem(last=False)
        self._filters.move_to_end(key)
        program, flags = found
        return program, flags | self._flags


def compile_profile(profile: dict[str, Any]) -> Filter:
    """Compile a `linux.seccomp`. Raises RuntimeCoreError."""
    return _compile({"ociVersion": "1.2.0", "root": {"path": "rootfs"}}, profile, None)


def _compile(document: dict[str, Any], profile: dict[str, Any], base: dict[str, Any] | None) -> Filter:
    def compiled(chosen: dict[str, Any]) -> Filter:
        seccomp = parse(document | {"linux": document.get("linux", {}) | {"seccomp": chosen}}).linux.seccomp
        assert seccomp is not None
        return compile_filter(seccomp), filter_flags(seccomp)

    program, flags = compiled(profile)
    if base is None:
        return program, flags
    other, others = compiled(base)
    # A flag that loosens applies if both profiles have it; one that tightens or only reports, if either has it.
    return intersect(program, other), (flags | others) & ~_LOOSENING | flags & others & _LOOSENING
