"""What guests' tests share: the payload (crisp as a wheel, and the tests inside), and what each of those said."""

from __future__ import annotations

import ast
import compileall
import json
import platform
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import Any

import pytest

from tests.vm import base, guest
from tests.vm.machine import Machine

REPOSITORY = Path(__file__).parents[2]
INSIDE = Path(__file__).parent / "inside"
PACKAGES = ("bin", "cri", "image", "linux", "network", "pods", "runtime")
BUILD_FILES = ("pyproject.toml", "README.md", "LICENSE")
PAYLOAD_FILES = (
    "tests/vm", "tests/e2e/__init__.py", "tests/e2e/critest.py", "tests/e2e/ginkgo.py", "tests/e2e/manifests.py",
    "deploy",
)  # fmt: skip
TOOLS = ("installer>=0.7", "pytest>=8")  # what the payload needs inside besides the project's own dependencies
Boots = Sequence[Sequence[str]]  # the modules of `inside` that each boot runs


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the guest's tests reported, and its console."""

    results: list[dict[str, Any]]
    console: Path
    seconds: list[float]  # of each boot

    def check(self, name: str) -> str:
        """What a test of that name had to tell, in each of its variants. Fails unless it passed in all of them."""
        # A module that could not be imported is reported under its own name alone.
        variants = [result for result in self.results if result["test"].split("[")[0] in (name, name.split("::")[0])]
        if not variants:
            pytest.fail(f"the guest did not come to it; its console ends:\n{base.end_of(self.console)}", pytrace=False)
        failures = [f"{result['test']}: {result['text']}" for result in variants if result["outcome"] != "passed"]
        if failures:
            pytest.fail("\n".join(failures), pytrace=False)
        return "\n".join(result["text"] for result in variants if result["text"])

    def times(self, slowest: int = 10) -> str:
        """How long the boots took, and the slowest tests, each on a line of its own."""
        boots = " + ".join(f"{seconds:.0f}" for seconds in self.seconds)
        tests = sorted(self.results, key=lambda result: -result["seconds"])[:slowest]
        return "\n".join([f"guest: {boots} s", *(f"{one['seconds']:5.0f} s  {one['test']}" for one in tests)])


def names(boots: Boots) -> list[str]:
    """The tests inside, by name, without importing what only runs there."""
    return [
        f"{module}.py::{node.name}"
        for boot in boots
        for module in boot
        for node in ast.parse((INSIDE / f"{module}.py").read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


def make(machine: Machine, directory: Path, boots: Boots) -> Path:
    """A payload of crisp's wheel and the tests inside, for more to be added to."""
    payload, source = directory / "payload", directory / "source"
    shared = [f"tests/{file.name}" for file in REPOSITORY.glob("tests/*.py") if file.name != "conftest.py"]
    for name in (*shared, *PAYLOAD_FILES):
        _copy(REPOSITORY / name, payload / name)
    shutil.copy(INSIDE / "run.py", payload)
    (payload / "boots.json").write_text(json.dumps(boots))
    (payload / "machine.json").write_text(json.dumps(machine.told()))
    # A build leaves files beside the sources; they are not to be in the checkout.
    for name in (*PACKAGES, *BUILD_FILES):
        _copy(REPOSITORY / name, source / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(payload), str(source)]
    subprocess.run(pip, check=True, stdin=subprocess.DEVNULL)
    if ".".join(platform.python_version_tuple()[:2]) == machine.python:
        _compile(source, payload)
    return payload


def _compile(source: Path, payload: Path) -> None:
    """Compile what the guest imports, which takes a minute there: crisp's modules to `compiled`, the tests in place."""
    for tree in (payload, *(source / name for name in PACKAGES)):
        root = payload if tree == payload else source
        compileall.compile_dir(
            tree, quiet=1, stripdir=root, invalidation_mode=PycInvalidationMode.UNCHECKED_HASH, workers=1
        )
    for name in PACKAGES:
        shutil.copytree(
            source / name, payload / "compiled" / name, ignore=lambda directory, names: _sources(Path(directory), names)
        )


def _sources(directory: Path, names: list[str]) -> list[str]:
    return [name for name in names if (directory / name).is_file() and directory.name != "__pycache__"]


def run(machine: Machine, payload: Path, boots: Boots, seconds: float) -> Outcome:
    """What the guest's tests said, after all its boots."""
    if missing := base.missing_programs(machine):
        pytest.fail(f"programs are missing: {', '.join(missing)} (try deploy/install-deps.sh --tests)", pytrace=False)
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    image = base.base_image(machine, [*project["dependencies"], *TOOLS])
    console = payload.parent / "console"
    ran = guest.run(machine, image, payload, len(boots), console, seconds)
    return Outcome(ran.results, console, ran.seconds)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)
