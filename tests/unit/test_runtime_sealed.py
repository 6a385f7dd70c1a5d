"""After a fork nothing is imported: what a child may need is loaded before, and what is not it does not find."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from linux import syscalls
from linux.sealed import seal

_ROOT = Path(__file__).parents[2]
sealed = pytest.mark.trial("no-late-import", "no process that goes among a container's files imports anything there")


def _loaded(module: str) -> frozenset[str]:
    """What a bare interpreter has loaded after that module."""
    code = "import json, sys; sys.path[:0] = [sys.argv[1]]; __import__(sys.argv[2]); print(json.dumps([*sys.modules]))"
    command = [sys.executable, "-I", "-S", "-c", code, str(_ROOT), module]
    return frozenset(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))


def _late_imports(source: Path) -> list[str]:
    """The modules that functions of a file import, when they are called."""
    found: list[str] = []
    for function in ast.walk(ast.parse(source.read_text())):
        if isinstance(function, ast.FunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Import):
                    found += [name.name for name in node.names]
                elif isinstance(node, ast.ImportFrom) and node.module:
                    below = [f"{node.module}.{name.name}" for name in node.names]
                    found += [name if _is_module(name) else node.module for name in below]
    return found


def _is_module(name: str) -> bool:
    path = _ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").exists()


@sealed
def test_the_zygote_has_loaded_all_that_its_shims_may_import() -> None:
    loaded = _loaded("runtime.shim.zygote")
    missing = {}
    for name in loaded:
        source = (_ROOT / name.replace(".", "/")).with_suffix(".py")
        if name.startswith(("runtime.", "linux.")) and source.exists():
            late = [module for module in _late_imports(source) if module not in loaded]
            missing |= {source.name: late} if late else {}
    assert missing == {}


@sealed
def test_no_fork_goes_around_the_seal() -> None:
    """os.fork is used where the seal is set, and by the zygote, which is under it."""
    sources = [path for room in ("linux", "runtime") for path in (_ROOT / room).rglob("*.py")]
    users = [path.name for path in sources if "os.fork()" in path.read_text()]
    assert sorted(users) == ["syscalls.py", "zygote.py"]
    zygote = (_ROOT / "runtime/shim/zygote.py").read_text()
    assert zygote.index("    seal()") < zygote.index("    zygote = _Zygote(")


@sealed
@pytest.mark.parametrize("make", ["fork", "clone"])
def test_a_child_imports_nothing(tmp_path: Path, make: str) -> None:
    (tmp_path / "theirs.py").write_text("raise SystemExit(9)")
    told, telling = os.pipe()
    sys.path.insert(0, str(tmp_path))
    try:
        pid = syscalls.fork() if make == "fork" else syscalls.clone()[0]
        if pid == 0:
            _try_to_import(telling)
    finally:
        sys.path.remove(str(tmp_path))
    os.close(telling)
    with os.fdopen(told) as file:
        said = file.read().splitlines()
    os.waitpid(pid, 0)
    assert said == [f"import {name}: it must be loaded before this process is forked" for name in ("theirs", "this")]
    assert "json" in sys.modules  # what is there is still had


def _try_to_import(telling: int) -> None:
    try:
        sys.path.insert(0, os.getcwd())  # what somebody may still do
        import json  # noqa: F401

        for name in ("theirs", "this"):
            try:
                __import__(name)
            except ImportError as error:
                os.write(telling, f"{error}\n".encode())
    finally:
        os._exit(0)


def test_the_seal_is_for_good() -> None:
    script = "from linux.sealed import seal; seal(); seal(); import sys; import colorsys"
    done = subprocess.run([sys.executable, "-c", script], cwd=_ROOT, capture_output=True, text=True)
    assert "import colorsys: it must be loaded" in done.stderr
    assert seal.__doc__
