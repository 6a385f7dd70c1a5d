"""Compiled seccomp filters, by profile: compiling one takes as long as starting the container it is for."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import OrderedDict
from pathlib import Path
from typing import Final

from runtime.seccomp import compile_filter, filter_flags
from runtime.spec_parse import parse

_KEPT: Final = 64
Filter = tuple[bytes, int]  # BPF program, flags of seccomp(2)


class FilterCache:
    """The filters of the profiles seen last."""

    def __init__(self) -> None:
        self._filters: OrderedDict[bytes, Filter] = OrderedDict()

    async def of(self, config_path: Path) -> Filter:
        """The filter that a config.json asks for; no bytes for none. Raises RuntimeCoreError, OSError."""
        document = json.loads(config_path.read_bytes())
        profile = document.get("linux", {}).get("seccomp")
        if not profile:
            return b"", 0
        key = hashlib.sha256(json.dumps(profile, sort_keys=True).encode()).digest()
        found = self._filters.get(key)
        if found is None:
            found = await asyncio.to_thread(_compile, document)
            self._filters[key] = found
            if len(self._filters) > _KEPT:
                self._filters.popitem(last=False)
        self._filters.move_to_end(key)
        return found


def _compile(document: dict[str, object]) -> Filter:
    seccomp = parse(document).linux.seccomp
    assert seccomp is not None
    return compile_filter(seccomp), filter_flags(seccomp)
