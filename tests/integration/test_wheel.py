"""The wheel alone, in a new virtual environment: it has all that crisp is made of, and tells what the machine lacks."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.daemon import Daemon

REPOSITORY = Path(__file__).parents[2]
BUILD = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the commands that pip installed from the wheel.

    There is no network here: the packages that the wheel requires are those of the tests' own environment.
    """
    source, home = (tmp_path_factory.mktemp(name) for name in ("source", "home"))
    # A build leaves files beside the sources; they are not to be in the checkout.
    packages = [package.rstrip("*") for package in BUILD["packages"]["find"]["include"]]
    for name in (*packages, "bin", "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy
        copy(REPOSITORY / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--no-input", "--disable-pip-version-check"]
    offline = ("--no-index", "--no-deps")
    _run(*pip, "wheel", *offline, "--no-build-isolation", f"--wheel-dir={source}", str(source))
    (wheel,) = source.glob("*.whl")
    _run(sys.executable, "-m", "venv", "--without-pip", str(home))
    python = str(home / "bin/python")
    _run(*pip, "--python", python, "install", *offline, str(wheel))
    inner = Path(_run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (inner / "required.pth").write_text(sysconfig.get_path("purelib") + "\n")
    said = subprocess.run([*pip, "--python", python, "check"], stdout=subprocess.PIPE, text=True).stdout
    assert [line for line in said.splitlines() if line.startswith("crisp-cri ")] == []
    return home / "bin"


def test_doctor_tells_what_the_machine_lacks(installed: Path, tmp_path: Path) -> None:
    """On a machine without libseccomp, iptables and a pod network: whiteouts are in their places."""
    absent = (Path("/etc/cni"), Path("/usr/sbin/iptables"), *Path("/usr").glob("lib/*/libseccomp.so.2*"))
    for path in filter(os.path.lexists, absent):
        whiteout = tmp_path / path.relative_to("/")
        whiteout.parent.mkdir(parents=True, exist_ok=True)
        os.mknod(whiteout, stat.S_IFCHR)
    cover = 'mount -t overlay overlay -o "lowerdir=$1/$name:/$name" "/$name"'
    script = f'set -e; for name in etc usr; do mkdir -p "$1/$name"; {cover}; done; shift; exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", script, "sh", tmp_path, *_doctor(installed, f"unix://{tmp_path}/none")]
    assert {"cni", "crispd", "iptables", "libseccomp"} <= _wrong(command)


def test_crispd_runs_pods(installed: Path) -> None:
    class Installed(Daemon):
        python = str(installed / "python")

    with Installed.running(tree=installed) as daemon:
        daemon.import_busybox()
        with daemon.pod("of-the-wheel") as pod:
            container = pod.run("sh", "-c", "sleep 1000")
            assert pod.exec(container, "echo", "runs").stdout == b"runs\n"
        modules = Path(f"/proc/{daemon.pid()}/maps").read_text()
        assert str(REPOSITORY / "cri") not in modules
        assert not {"crispd", "libseccomp"} & _wrong(_doctor(installed, daemon.listen))


def _doctor(commands: Path, listen: str) -> list[str | Path]:
    return [commands / "crisp", "doctor", "--listen", listen, "--offline", "-o", "json"]


def _wrong(doctor: Sequence[str | Path]) -> set[str]:
    """What keeps pods from running, as `crisp doctor` says."""
    done = subprocess.run(doctor, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    wrong = {found["subject"] for found in json.loads(done.stdout)["findings"] if found["level"] == "wrong"}
    assert done.returncode == bool(wrong), done.stdout
    return wrong


def _run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True).stdout
