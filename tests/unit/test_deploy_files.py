"""The files of deploy/ that other programs read: each is parsed, and names what is really there."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from cri.daemon.loading import load

DEPLOY = Path(__file__).parents[2] / "deploy"
SOCKET = "unix:///run/crisp/crisp.sock"


def objects(name: str) -> dict[str, dict]:
    return {found["kind"]: found for found in yaml.safe_load_all((DEPLOY / name).read_text())}


def test_kubelet_and_kubeadm_use_crisps_socket() -> None:
    kubelet = objects("kubelet.yaml")["KubeletConfiguration"]
    assert kubelet["containerRuntimeEndpoint"] == SOCKET
    kubeadm = objects("kubeadm.yaml")
    assert kubeadm["InitConfiguration"]["nodeRegistration"]["criSocket"] == SOCKET
    network = json.loads((DEPLOY / "10-crisp-bridge.conflist").read_text())
    subnet = network["plugins"][0]["ipam"]["ranges"][0][0]["subnet"]
    assert kubeadm["ClusterConfiguration"]["networking"]["podSubnet"] == subnet


def test_every_runtime_class_has_a_handler() -> None:
    classes = list(yaml.safe_load_all((DEPLOY / "runtimeclass.yaml").read_text()))
    assert {found["apiVersion"] for found in classes} == {"node.k8s.io/v1"}
    assert all(re.fullmatch(r"[a-z0-9-]+", found["handler"]) for found in classes)


def test_settings_of_the_machine_are_well_formed() -> None:
    def lines(name: str) -> list[str]:
        return [line for line in (DEPLOY / name).read_text().splitlines() if line and not line.startswith("#")]

    for line in lines("sysctl.d/90-crisp.conf"):
        assert re.fullmatch(r"-?[a-z0-9._-]+ = -?\d+", line), line
    assert all(re.fullmatch(r"[a-z0-9_]+", line) for line in lines("modules-load.d/crisp.conf"))
    for line in lines("tmpfiles.d/crisp.conf"):
        assert re.fullmatch(r"d /\S+ 0\d{3} root root -|x /\S+", line), line
    rotated = (DEPLOY / "logrotate.d/crispd").read_text()
    assert rotated.count("{") == rotated.count("}") == 1


@pytest.mark.parametrize(
    "broken",
    ["", "mypy", "pytest -q tests/unit", "build-kubernetes.sh", "pytest -q tests/e2e",
     "python -m tests.e2e.conformance --part quick --build"],
)  # fmt: skip
def test_the_test_command_runs_all_and_tells_how_each_went(broken: str, tmp_path: Path) -> None:
    """Nothing of it is real: each program tells what it was called with, and one fails."""
    builds = (f"tests/e2e/build-{name}.sh" for name in ("critest", "kubernetes", "runsc"))
    scripts = ("deploy/install-deps.sh", "tests/criu.sh", "tests/programs.sh", *builds)
    programs = [*scripts, "id", *(f".venv/bin/{name}" for name in ("ruff", "mypy", "lint-imports", "pytest", "python"))]
    program = f"""#!/bin/sh
[ "$1" != -u ] || exec echo 0
echo "ran $0 $*"
[ -n "{broken}" ] || exit 0
case "${{0##*/}} $*" in "{broken}"*) echo "FAILED tests/x.py::test_y - $0" && exit 1 ;; esac
"""
    for name in programs:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(program)
        path.chmod(0o755)
    shutil.copy(DEPLOY / "test.sh", tmp_path / "deploy")
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        [tmp_path / "deploy/test.sh"], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )
    assert done.returncode == (1 if broken else 0), done.stdout
    verdicts = re.findall(r"^(passed|FAILED)(?: +[0-9]+:[0-9]{2}){2}  (.*)$", done.stdout, re.M)
    failed = [command for verdict, command in verdicts if verdict == "FAILED"]
    assert len(failed) == (1 if broken else 0)
    assert all(broken in command for command in failed)
    ending = done.stdout.rpartition(verdicts[-1][1])[2]
    assert ("FAILED tests/x.py::test_y - " in ending) == bool(broken)
    first = "unit tests/integration --boxes 2 --timeout 600 --durations 10"
    suites = [f"pytest -q tests/{name}" for name in (first, "e2e", "vm")]
    conformance = "python -m tests.e2e.conformance --part quick"
    wanted = suites[:1] if broken == "build-kubernetes.sh" else [*suites, conformance]
    if broken.startswith("python"):
        wanted.remove(conformance)
    ran = done.stdout.partition("passed ")[0]
    assert [suite for suite in (*suites, conformance) if f"/{suite}\n" in ran] == wanted


def test_prometheus_scrapes_crispd_and_kubelet() -> None:
    jobs = {job["job_name"]: job for job in yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]}
    assert set(jobs) == {"crispd", "kubelet-cadvisor"}


def test_the_node_image_for_kind_is_made_of_files_that_exist(tmp_path: Path) -> None:
    kind = yaml.safe_load((DEPLOY / "kind/kind.yaml").read_text())
    assert (kind["kind"], kind["apiVersion"]) == ("Cluster", "kind.x-k8s.io/v1alpha4")
    steps = (DEPLOY / "kind/Dockerfile").read_text().replace("\\\n", " ").splitlines()
    steps = [step for step in steps if step and not step.startswith("#")]
    assert {step.split()[0] for step in steps} == {"ARG", "FROM", "RUN", "COPY"}
    build = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())
    copied = {word for step in steps if step.startswith("COPY") for word in step.split()[1:-1]}
    setuptools = build["tool"]["setuptools"]
    needed = {package.rstrip("*") for package in setuptools["packages"]["find"]["include"]}
    assert needed | {str(Path(file).parent) for file in setuptools["script-files"]} <= copied
    for step in steps:
        if step.startswith("COPY") and "--from" not in step:
            assert all((DEPLOY.parent / source).exists() for source in step.split()[1:-1]), step
        if step.startswith("RUN"):
            subprocess.run(["sh", "-n", "-c", step.removeprefix("RUN")], check=True)
    assert load(path=DEPLOY / "kind/crisp.toml").listen.endswith("containerd.sock")  # kind has it built in
    unit = configparser.ConfigParser(strict=False)
    unit.read(DEPLOY / "kind/preload.service")
    assert unit["Service"]["ExecStart"].split()[0] == "/usr/local/bin/crisp"
    preloaded = Path(unit["Unit"]["ConditionPathExists"])
    assert f"COPY --from=preloaded /preloaded {preloaded.parent}" in steps
    assert not preloaded.is_relative_to("/var")  # a volume of each node, which begins with the image's files


@pytest.mark.parametrize("script", ["kind/ctr", "kind/containerd"])
def test_kinds_commands_refuse_what_they_cannot_do(script: str) -> None:
    done = subprocess.run([DEPLOY / script, "run", "image"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "crisp" in done.stderr


def test_kind_learns_a_snapshotter() -> None:
    import tomllib

    said = subprocess.run([DEPLOY / "kind/containerd", "config", "dump"], capture_output=True, text=True, check=True)
    config = tomllib.loads(said.stdout)
    assert config["version"] == 3
    assert config["plugins"]["io.containerd.cri.v1.images"]["snapshotter"] == "overlayfs"


def test_the_shell_of_the_minikube_recipe_parses() -> None:
    blocks = re.findall(r"```\n(.*?)```", (DEPLOY / "minikube.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        subprocess.run(["bash", "-n", "-c", block], check=True)


def test_the_debian_package_is_made_of_files_that_exist() -> None:
    script = DEPLOY / "package.sh"
    subprocess.run(["bash", "-n", script], check=True)
    named = re.findall(r"(?<![\w/])(?:deploy|docs)/[\w./-]+(?![\w*$])", script.read_text())
    assert {name for name in named if not name.endswith("/") and not (DEPLOY.parent / name).exists()} == set()
    for name in ("postinst", "prerm", "postrm"):
        assert os.access(DEPLOY / "debian" / name, os.X_OK)
        subprocess.run(["sh", "-n", DEPLOY / "debian" / name], check=True)
