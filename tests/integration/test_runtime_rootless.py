"""crisp-oci for an ordinary user, alone and under rootless podman."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyseccomp
import pytest

from tests.images import busybox_layout, tar_of
from tests.oci import REPOSITORY, Bundle, Finished

NAME, ID, FIRST = "crispuser", 43210, 4_321_000  # the user, its number, the first of its subordinate ids
OWN = [{"containerID": 0, "hostID": ID, "size": 1}]
SEVERAL = [*OWN, {"containerID": 1, "hostID": FIRST, "size": 65535}]
IMAGE = "docker.io/library/busybox:latest"


@dataclass
class User:
    """An ordinary user with a home of its own, in which crisp-oci is installed."""

    home: Path

    def call(self, *command: str, cwd: Path | None = None, status: int = 0) -> Finished:
        environment = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "HOME": str(self.home), "USER": NAME,
                       "XDG_RUNTIME_DIR": str(self.home / "run"),
                       "CONTAINERS_CONF": str(self.home / "containers.conf")}  # fmt: skip
        as_user = ["setpriv", f"--reuid={ID}", f"--regid={ID}", "--clear-groups", *command]
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:  # what stays running keeps them
            done = subprocess.run(as_user, env=environment, cwd=cwd or self.home, stdin=subprocess.DEVNULL, stdout=out,
                                  stderr=err, timeout=60)  # fmt: skip
            out.seek(0)
            err.seek(0)
            finished = subprocess.CompletedProcess(command, done.returncode, out.read(), err.read())
        assert finished.returncode == status, finished.stderr
        return finished

    def oci(self, *arguments: str, cwd: Path, status: int = 0) -> Finished:
        return self.call(str(self.home / "bin" / "crisp-oci"), *arguments, cwd=cwd, status=status)

    def podman(self, *arguments: str, status: int = 0) -> Finished:
        runtime = ("--storage-driver=vfs", "--runtime", str(self.home / "bin" / "crisp-oci"))
        return self.call("podman", *runtime, *arguments, status=status)


@pytest.fixture(scope="module")
def user() -> Iterator[User]:
    """The machine's /etc does not change: in the box other files are put over its."""
    home = Path(tempfile.mkdtemp(prefix="crisp-user-", dir="/tmp"))
    lines = {"passwd": f"{NAME}:x:{ID}:{ID}::{home}:/bin/sh\n", "group": f"{NAME}:x:{ID}:\n",
             "subuid": f"{NAME}:{FIRST}:65536\n", "subgid": f"{NAME}:{FIRST}:65536\n"}  # fmt: skip
    mounted = []
    try:
        for name, line in lines.items():
            before = Path("/etc", name).read_text() if Path("/etc", name).exists() else ""
            (home / name).write_text(before + line)
            Path("/etc", name).touch()
            subprocess.run(["mount", "--bind", home / name, f"/etc/{name}"], check=True)
            mounted.append(f"/etc/{name}")
        for room in ("runtime", "linux"):
            shutil.copytree(REPOSITORY / room, home / room, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(pyseccomp.__file__, home)
        (home / "bin").mkdir()
        shutil.copy(REPOSITORY / "bin" / "crisp-oci", home / "bin")
        (home / "run").mkdir(0o700)
        (home / "containers.conf").write_text(
            '[engine]\ncgroup_manager="cgroupfs"\nevents_logger="file"\nlock_type="file"\n'
        )
        tar_of(busybox_layout(home / "layout"), home / "busybox.tar")
        subprocess.run(["chown", "-R", f"{ID}:{ID}", home], check=True)
        home.chmod(0o755)
        yield User(home)
    finally:
        for path in reversed(mounted):
            subprocess.run(["umount", path], check=True)
        shutil.rmtree(home)


@pytest.fixture
def bundle(user: User) -> Iterator[Bundle]:
    made = Bundle.make(Path(tempfile.mkdtemp(dir=user.home)))
    os.chown(made.directory.parent, ID, ID)
    subprocess.run(["chown", "-R", f"{ID}:{ID}", made.directory], check=True)
    yield made
    user.oci("delete", "--force", "one", cwd=made.directory)
    assert user.oci("list", "-q", cwd=made.directory).stdout == ""


def _linux(mappings: list[dict[str, int]], *more: str) -> dict[str, Any]:
    kinds = ("pid", "mount", "ipc", "uts", "user", *more)
    return {"namespaces": [{"type": kind} for kind in kinds], "uidMappings": mappings, "gidMappings": mappings}


@pytest.mark.parametrize(("mappings", "more"), [(OWN, ()), (SEVERAL, ("network", "cgroup"))], ids=["own", "several"])
def test_a_container(user: User, bundle: Bundle, mappings: list[dict[str, int]], more: tuple[str, ...]) -> None:
    identity = {"uid": 7, "gid": 8, "additionalGids": [9]} if len(mappings) > 1 else {"uid": 0, "gid": 0}
    process = {"user": identity}
    sys = {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]}
    bundle.configure("sh", "-c", "id; hostname; echo >/dev/null; ls /sys; touch /sys/x; exit 6",
                     process=process, linux=_linux(mappings, *more))  # fmt: skip
    config = json.loads((bundle.directory / "config.json").read_text())
    config["mounts"].append(sys)
    (bundle.directory / "config.json").write_text(json.dumps(config))
    done = user.oci("run", "one", cwd=bundle.directory, status=6)
    shown = "uid=7 gid=8 groups=9" if len(mappings) > 1 else "uid=0 gid=0"
    assert done.stdout.splitlines()[:2] == [shown, "alone"]
    assert "kernel" in done.stdout
    assert "Read-only file system" in done.stderr


def test_life_of_a_container(user: User, bundle: Bundle) -> None:
    bundle.configure("sleep", "100", linux=_linux(SEVERAL))
    directory = bundle.directory
    user.oci("create", "one", cwd=directory)
    assert json.loads(user.oci("state", "one", cwd=directory).stdout)["status"] == "created"
    user.oci("start", "one", cwd=directory)
    (listed,) = json.loads(user.oci("list", "-f", "json", cwd=directory).stdout)
    assert (listed["status"], listed["owner"]) == ("running", NAME)
    map_file = Path(f"/proc/{listed['pid']}/uid_map").read_text().split()
    assert map_file == ["0", str(ID), "1", "1", str(FIRST), "65535"]
    done = user.oci("exec", "-u", "5:6", "one", "sh", "-c", "id; exit 4", cwd=directory, status=4)
    assert done.stdout.startswith("uid=5 gid=6")
    assert "no cgroup" in user.oci("pause", "one", cwd=directory, status=1).stderr
    user.oci("kill", "one", "KILL", cwd=directory)


def test_what_cannot_be(user: User, bundle: Bundle) -> None:
    bundle.configure("true")
    assert "user namespace" in user.oci("run", "one", cwd=bundle.directory, status=1).stderr
    bundle.configure("true", linux=_linux([{"containerID": 0, "hostID": 0, "size": 10}]))
    assert "newuidmap" in user.oci("run", "one", cwd=bundle.directory, status=1).stderr


@pytest.fixture(scope="module")
def podman(user: User) -> Iterator[User]:
    user.podman("load", "-q", "-i", str(user.home / "busybox.tar"))  # and starts the process that keeps its namespaces
    yield user
    user.podman("rm", "-af", "-t", "0")
    user.podman("system", "migrate")  # ends that process


def test_rootless_podman(podman: User) -> None:
    assert podman.podman("run", "--rm", "--network=host", IMAGE, "sh", "-c", "id -u; exit 3", status=3).stdout == "0\n"
    podman.podman("run", "-d", "--name=one", "--network=host", IMAGE, "sleep", "100")
    done = podman.podman("exec", "--user=app", "one", "sh", "-c", "id -u; exit 4", status=4)
    assert done.stdout == "1000\n"
    podman.podman("stop", "-t", "0", "one")
    assert podman.podman("inspect", "-f", "{{.State.Status}}", "one").stdout == "exited\n"
    podman.podman("rm", "one")
