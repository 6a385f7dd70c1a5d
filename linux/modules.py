"""Finds modules with few system calls. A command that runs for milliseconds spends most of them on imports."""

from __future__ import annotations

import sys
from _frozen_importlib import ModuleSpec
from _frozen_importlib_external import MAGIC_NUMBER
from marshal import loads
from posix import O_CLOEXEC, O_RDONLY, close, fstat, open, read, stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType
    from typing import Final

_HEADER: Final = 16  # bytes before the code in a .pyc file (PEP 552)


class Finder:
    """Finds modules of some packages in a directory by their cached code, if that is of the present source.

    It tells that by size and time, as the interpreter's own finder does, to which it leaves all others. That one reads
    directories and looks for other kinds of files first. For interpreters without options that change cached code.
    """

    def __init__(self, directory: str, packages: Sequence[str]) -> None:
        self._directory = directory
        self._packages = packages

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> ModuleSpec | None:
        if name.partition(".")[0] not in self._packages:
            return None
        place = f"{self._directory}/{name.replace('.', '/')}"
        try:
            try:
                source, status = f"{place}.py", stat(f"{place}.py")
            except FileNotFoundError:
                source, status = f"{place}/__init__.py", stat(f"{place}/__init__.py")
            directory, _, file = source.rpartition("/")
            cached = f"{directory}/__pycache__/{file[:-3]}.{sys.implementation.cache_tag}.pyc"
            content = _read(cached)
        except OSError:
            return None
        times = (int(status.st_mtime) & 0xFFFFFFFF, status.st_size & 0xFFFFFFFF)
        if content[:_HEADER] != MAGIC_NUMBER + b"".join(number.to_bytes(4, "little") for number in (0, *times)):
            return None
        is_package = file == "__init__.py"
        spec = ModuleSpec(name, self, origin=source, loader_state=content, is_package=is_package)  # type: ignore[arg-type]
        spec.has_location, spec.cached = True, cached
        if is_package:
            spec.submodule_search_locations = [place]
        return spec

    def create_module(self, _spec: ModuleSpec) -> None:
        """Let the interpreter make it."""

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        assert spec is not None
        content, spec.loader_state = spec.loader_state, None
        exec(loads(memoryview(content)[_HEADER:]), module.__dict__)


def _read(path: str) -> bytes:
    file = open(path, O_RDONLY | O_CLOEXEC)
    try:
        return read(file, fstat(file).st_size)
    finally:
        close(file)
