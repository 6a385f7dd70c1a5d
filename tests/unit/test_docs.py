"""The documentation: what is made from source is fresh, the site builds, man pages format, quoted errors are real."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from cri.daemon.config import KEYS, Configuration
from cri.daemon.loading import load
from docs.generate import configuration
from docs.generate.__main__ import stale

ROOT = Path(__file__).parents[2]
_ROOMS = ("cri", "pods", "runtime", "network", "image", "linux")


def test_generated_files_are_fresh() -> None:
    assert stale() == [], "run: python -m docs.generate"


def test_every_key_has_a_text_and_every_text_a_key() -> None:
    texts = [key.name for _section, group in configuration.groups() for key in group if key.text]
    assert sorted(texts) == sorted(KEYS), "a key's text is said with it, in cri/daemon/config.py"
    sections = [section for section, _group in configuration.groups()]
    assert len(sections) == len(set(sections)), "keys of one section stand together"


def test_the_sample_shows_the_defaults(tmp_path: Path) -> None:
    sample = (ROOT / "deploy/crisp.toml").read_text()
    assert tomllib.loads(sample) == {}
    given = tmp_path / "crisp.toml"
    given.write_text(re.sub(r"^#(\w+ = )", r"\1", sample, flags=re.MULTILINE))
    assert tomllib.loads(given.read_text()).keys() == KEYS.keys()
    assert load(path=given) == Configuration()


def test_the_site_builds_strictly(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="deploy/install-deps.sh --tests brings it")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"]
    built = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert built.returncode == 0, built.stdout + built.stderr
    assert (tmp_path / "site/reference/crisp.toml/index.html").exists()
    assert 'class="mermaid"' in (tmp_path / "site/pictures/index.html").read_text()


@pytest.mark.parametrize("page", ["crispd.8", "crisp.1", "crisp-oci.8", "crisp.toml.5"])
def test_man_pages_format_without_a_warning(page: str) -> None:
    formatted = subprocess.run(
        ["groff", "-ww", "-man", "-P-c", "-Tascii", ROOT / "docs/man" / page], capture_output=True, text=True
    )
    assert (formatted.returncode, formatted.stderr) == (0, "")
    assert "SEE ALSO" in re.sub(".\b", "", formatted.stdout)


def test_the_errors_that_troubleshooting_quotes_exist() -> None:
    source = "\n".join(file.read_text() for room in _ROOMS for file in (ROOT / room).rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # a message over two lines
    quoted = re.findall(r"^### `(.+)`$", (ROOT / "docs/troubleshoot.md").read_text(), re.MULTILINE)
    assert len(quoted) > 15
    pieces = [piece.strip(" :") for error in quoted for piece in error.split("…")]
    assert [piece for piece in pieces if piece not in source] == []


def test_the_files_that_the_pages_name_exist() -> None:
    pages = [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    named = {(page, name) for page in pages for name in re.findall(r"`((?:\w+/)+\w+\.py)`", page.read_text())}
    rooms = {(page, name) for page, name in named if name.partition("/")[0] in (*_ROOMS, "tests", "docs")}
    assert len(rooms) > 40
    assert {(page.name, name) for page, name in rooms if not (ROOT / name).exists()} == set()


def test_the_tests_that_the_security_page_names_exist() -> None:
    tests = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", (ROOT / "docs/security.md").read_text())
    assert len(set(named)) > 15
    assert [name for name in named if f"def {name}(" not in tests] == []
