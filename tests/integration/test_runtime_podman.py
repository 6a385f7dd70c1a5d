"""Debian's podman on crisp-oci."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.images import busybox_layout, tar_of
from tests.oci import CRISP_OCI, Finished

IMAGE = "docker.io/library/busybox:latest"
CGROUP = f"crisp-podman-{os.getpid()}"
COMMON = ("--network=none", f"--cgroup-parent=/{CGROUP}")


@dataclass
class Podman:
    """podman with storage, state and settings of its own below `directory`."""

    directory: Path

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"CONTAINERS_CONF": str(self.directory / "containers.conf")}

    def command(self, *arguments: str) -> list[str]:
        where = {"root": "root", "runroot": "run", "tmpdir": "tmp"}
        options = [f"--{name}={self.directory / below}" for name, below in where.items()]
        return ["podman", *options, "--storage-driver=vfs", "--runtime", str(CRISP_OCI), *arguments]

    def call(self, *arguments: str, status: int = 0) -> Finished:
        done = subprocess.run(
            self.command(*arguments), env=self.environment, capture_output=True, text=True, timeout=60,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == status, done.stderr
        return done

    def run(self, *arguments: str, options: tuple[str, ...] = (), status: int = 0) -> Finished:
        """`podman run --rm` without a network."""
        return self.call("run", "--rm", *COMMON, *options, IMAGE, *arguments, status=status)

    def on_a_terminal(self, *arguments: str) -> str:
        """What a command shows on a terminal of ours."""
        pid, terminal = pty.fork()
        if pid == 0:
            os.execvpe("podman", self.command(*arguments), self.environment)
        shown = b""
        try:
            while chunk := os.read(terminal, 4096):
                shown += chunk
        except OSError:
            pass  # EIO: nobody has it open any more
        os.close(terminal)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, shown
        return shown.decode()


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    directory = tmp_path_factory.mktemp("podman")
    (directory / "containers.conf").write_text(
        '[engine]\ncgroup_manager="cgroupfs"\nevents_logger="file"\nlock_type="file"\n'
    )
    made = Podman(directory)
    made.call("load", "-q", "-i", str(tar_of(busybox_layout(directory / "layout"), directory / "busybox.tar")))
    (directory / "subordinate").write_text("containers:1000000:1000000\n")
    for name in ("subuid", "subgid"):  # what --userns=auto hands out, over the machine's own in this box
        Path("/etc", name).touch()
        subprocess.run(["mount", "--bind", directory / "subordinate", f"/etc/{name}"], check=True)
    made.run("true")  # podman makes a cgroup for its conmons, and leaves it
    yield made
    made.call("rm", "-af", "-t", "0")
    subprocess.run(["umount", "/etc/subuid", "/etc/subgid"], check=True)
    for left in [*Path("/sys/fs/cgroup").glob(CGROUP), *Path("/sys/fs/cgroup").glob(f"*/{CGROUP}")]:
        for directory, _below, _files in os.walk(left, topdown=False):
            os.rmdir(directory)


@pytest.fixture
def container(podman: Podman) -> Iterator[str]:
    """One that runs, with limits and a volume."""
    (podman.directory / "volume").mkdir(exist_ok=True)
    volume = f"{podman.directory}/volume:/data:ro"
    podman.call("run", "-d", "--name=one", *COMMON, "--memory=64m", "--pids-limit=40", "-v", volume, IMAGE,
                "sh", "-c", "trap 'exit 7' TERM; while true; do sleep 0.1; done")  # fmt: skip
    yield "one"
    podman.call("rm", "-f", "-t", "0", "one")


def test_life_of_a_container(podman: Podman, container: str) -> None:
    script = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/pids/pids.max; touch /data/x; exit 4"
    done = podman.call("exec", container, "sh", "-c", script, status=4)
    assert done.stdout == f"{64 << 20}\n40\n"
    assert "Read-only file system" in done.stderr
    podman.call("exec", "-d", container, "sleep", "100")
    podman.call("pause", container)
    assert podman.call("inspect", "-f", "{{.State.Status}}", container).stdout == "paused\n"
    podman.call("unpause", container)
    (stats,) = json.loads(podman.call("stats", "--no-stream", "--format=json", container).stdout)
    assert int(stats["pids"]) >= 2
    assert "sleep 100" in podman.call("top", container).stdout
    podman.call("stop", "-t", "600", container)
    assert podman.call("inspect", "-f", "{{.State.ExitCode}}", container).stdout == "7\n"
    podman.call("start", container)
    assert podman.call("exec", container, "echo", "again").stdout == "again\n"


def test_terminals(podman: Podman, container: str) -> None:
    assert "/dev/pts/0\r\n" in podman.on_a_terminal("exec", "-it", container, "tty")
    assert "/dev/pts/0\r\n" in podman.on_a_terminal("run", "--rm", "-t", *COMMON, IMAGE, "tty")


def test_failures_have_podmans_exit_codes(podman: Podman, container: str) -> None:
    assert "executable file not found" in podman.call("exec", container, "nosuch", status=127).stderr
    assert "executable file not found" in podman.run("nosuch", status=127).stderr
    assert "permission denied" in podman.run("/etc", status=126).stderr
    assert podman.run("sh", "-c", "exit 42", status=42)


def test_what_a_container_may(podman: Podman) -> None:
    script = "touch /x; grep CapEff /proc/self/status; ulimit -n; id -u; hostname"
    options = ("--read-only", "--read-only-tmpfs=false", "--cap-drop=all", "--ulimit=nofile=100:200", "--user=app")
    done = podman.run("sh", "-c", script, options=(*options, "--hostname=h"))
    assert done.stdout.split() == ["CapEff:", "0" * 16, "100", "1000", "h"]
    assert "Read-only file system" in done.stderr
    profile = podman.directory / "seccomp.json"
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    done = podman.run("mkdir", "/made", options=(f"--security-opt=seccomp={profile}",), status=1)
    assert "not implemented" in done.stderr
    assert podman.run("sh", "-c", "echo ok", options=("--privileged",)).stdout == "ok\n"
    assert podman.run("echo", "ok", options=("--pid=host", "--ipc=host", "--uts=host")).stdout == "ok\n"


def test_user_namespaces(podman: Podman) -> None:
    script = "cat /proc/self/uid_map; touch /x; stat -c %u /x; echo >/dev/null"
    done = podman.run("sh", "-c", script, options=("--userns=auto",))
    inside, outside, size, owner = map(int, done.stdout.split())
    assert (inside, outside >= 1000000, size >= 1024, owner) == (0, True, True, 0)
    podman.call("run", "-d", "--name=mapped", "--uidmap=0:100000:65536", *COMMON, IMAGE, "sleep", "100")
    assert podman.call("exec", "--user=7", "mapped", "id", "-u").stdout == "7\n"
    podman.call("rm", "-f", "-t", "0", "mapped")
