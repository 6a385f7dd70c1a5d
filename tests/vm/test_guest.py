"""The main path inside a Debian guest (tests/vm/guest.py), one test here for each test there (tests/vm/inside).

The guest boots three times for all of them; in between it loses its power.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import critest, kubernetes
from tests.vm import base, guest

REPOSITORY = Path(__file__).parents[2]
PACKAGES = ("bin", "cri", "image", "linux", "network", "pods", "runtime")
BUILD_FILES = ("pyproject.toml", "README.md", "LICENSE")
PAYLOAD_FILES = (
    "tests/vm", "tests/e2e/__init__.py", "tests/e2e/critest.py", "tests/e2e/ginkgo.py", "tests/e2e/manifests.py",
    "deploy",
)  # fmt: skip
TOOLS = ("installer>=0.7", "pytest>=8")  # what the payload needs inside besides the project's own dependencies
BOOTS = 3
MODULES = ("crisp_oci.py", "first_boot.py", "second_boot.py", "kubelet_boot.py", "third_boot.py", "critest_boot.py")
TIMEOUT_SECONDS = 3300.0  # more than twice what a machine of two cores took that had other things to do


def _names() -> list[str]:
    """The tests inside, by name, without importing what only runs there."""
    inside = Path(__file__).parent / "inside"
    return [
        f"{module}::{node.name}"
        for module in MODULES
        for node in ast.parse((inside / module).read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the guest's tests reported, and its console."""

    results: list[dict[str, Any]]
    console: Path


@pytest.fixture(scope="session")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    if os.geteuid() != 0:
        pytest.skip("making a guest takes root")
    if missing := base.missing_programs():
        pytest.fail(f"programs are missing: {', '.join(missing)} (try deploy/install-deps.sh --tests)", pytrace=False)
    directory = tmp_path_factory.mktemp("guest")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    image = base.base_image([*project["dependencies"], *TOOLS])
    console = directory / "console"
    return Outcome(guest.run(image, _payload(directory), BOOTS, console, TIMEOUT_SECONDS), console)


def _payload(directory: Path) -> Path:
    payload, source = directory / "payload", directory / "source"
    shared = [f"tests/{file.name}" for file in REPOSITORY.glob("tests/*.py") if file.name != "conftest.py"]
    for name in (*shared, *PAYLOAD_FILES):
        _copy(REPOSITORY / name, payload / name)
    shutil.copy(payload / "tests/vm/inside/run.py", payload)
    shutil.copy(kubernetes.directory("kubelet") / "kubelet", payload)
    shutil.copy(critest.programs() / "critest", payload)
    critest.busybox_layout(payload / "critest-image")
    # A build leaves files beside the sources; they are not to be in the checkout.
    for name in (*PACKAGES, *BUILD_FILES):
        _copy(REPOSITORY / name, source / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(payload), str(source)]
    subprocess.run(pip, check=True, stdin=subprocess.DEVNULL)
    return payload


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


@pytest.mark.parametrize("name", _names())
def test_inside(name: str, outcome: Outcome, capsys: pytest.CaptureFixture[str]) -> None:
    """A test of that name passed in the guest, in each of its variants; what it has to tell is printed."""
    # A module that could not be imported is reported under its own name alone.
    variants = [result for result in outcome.results if result["test"].split("[")[0] in (name, name.split("::")[0])]
    if not variants:
        pytest.fail(f"the guest did not come to it; its console ends:\n{base.end_of(outcome.console)}", pytrace=False)
    failures = [f"{result['test']}: {result['text']}" for result in variants if result["outcome"] != "passed"]
    if failures:
        pytest.fail("\n".join(failures), pytrace=False)
    if told := [result["text"] for result in variants if result["text"]]:
        with capsys.disabled():
            print("\n" + "\n".join(told))
