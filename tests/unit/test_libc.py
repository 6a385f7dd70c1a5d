"""Only linux/ loads libc: everybody else calls the kernel by a function that has a name, types and OSError."""

from __future__ import annotations

import re
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_ROOMS = ("cri", "pods", "runtime", "network", "image", "linux")
_LOADS = re.compile(r"\b(CDLL|PyDLL|pythonapi|dlopen|find_library|libc)\b(?!\.so)")


def _code(source: Path) -> str:
    """Without comments."""
    return re.sub(r"#.*", "", source.read_text())


def test_only_linux_loads_libc() -> None:
    loading = {path.relative_to(_ROOT) for room in _ROOMS for path in (_ROOT / room).rglob("*.py")
               if _LOADS.search(_code(path))}  # fmt: skip
    assert {path.parts[0] for path in loading} == {"linux"}, sorted(map(str, loading))


def test_it_is_loaded_once() -> None:
    sources = (_ROOT / "linux").rglob("*.py")
    assert {path.name for path in sources if re.search(r"\bDLL\(|CDLL\(|PyDLL\(", _code(path))} == {"syscalls.py"}
