"""The finder of a command's own modules."""

from __future__ import annotations

import os
import py_compile
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType

import pytest

from linux.modules import Finder


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package of one module, and its cached code."""
    place = tmp_path / "things"
    place.mkdir()
    for name, text in (("__init__", "kind = 'package'"), ("one", "kind = 'module'")):
        (place / f"{name}.py").write_text(text)
        py_compile.compile(str(place / f"{name}.py"), invalidation_mode=py_compile.PycInvalidationMode.TIMESTAMP)
    return place


def _import(place: Path, name: str) -> ModuleType | None:
    spec = Finder(str(place.parent), ("things",)).find_spec(name)
    if spec is None:
        return None
    module = module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(module)
    return module


def test_modules_and_packages_are_what_the_interpreter_makes_of_them(package: Path) -> None:
    whole, one = _import(package, "things"), _import(package, "things.one")
    assert whole is not None
    assert one is not None
    assert (whole.kind, whole.__file__, whole.__path__) == ("package", str(package / "__init__.py"), [str(package)])
    assert (one.kind, one.__file__, one.__package__) == ("module", str(package / "one.py"), "things")
    assert one.__cached__.endswith(".pyc")


def test_the_interpreter_finds_what_is_not_cached_or_has_changed(package: Path) -> None:
    assert _import(package, "things.two") is None
    assert _import(package, "others") is None
    source = package / "one.py"
    times = source.stat()
    source.write_text("kind = 'a longer one'")
    os.utime(source, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert _import(package, "things.one") is None
    py_compile.compile(str(source))
    assert _import(package, "things.one") is not None
    os.utime(source, (1, 1))
    assert _import(package, "things.one") is None
    py_compile.compile(str(source), invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
    assert _import(package, "things.one") is None
    (cached,) = (package / "__pycache__").glob("one.*")
    cached.write_bytes(b"")
    assert _import(package, "things.one") is None
