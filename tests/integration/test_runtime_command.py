"""crisp-oci runs a bundle with the core that shims use, and no daemon."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a command in a bundle made from the host's busybox; keywords change members of the configuration."""
    binaries = tmp_path / "rootfs" / "bin"
    binaries.mkdir(parents=True)
    shutil.copy("/bin/busybox", binaries / "busybox")
    for name in ("sh", "cat", "id", "hostname", "sleep", "kill", "mkdir"):
        (binaries / name).symlink_to("busybox")

    def run_bundle(*args: str, stdin: str = "", **linux: Any) -> subprocess.CompletedProcess[str]:
        config = {
            "ociVersion": "1.2.0",
            "process": {
                "args": args, "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 7, "gid": 8}, "noNewPrivileges": True,
            },
            "root": {"path": "rootfs", "readonly": True},
            "hostname": "alone",
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"},
                       {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]}],
            "linux": {"namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network")],
                      "cgroupsPath": f"/crisp-oci-test-{os.getpid()}/one", **linux},
        }  # fmt: skip
        (tmp_path / "config.json").write_text(json.dumps(config))
        command = [sys.executable, "-m", "runtime.command", "run", "--bundle", str(tmp_path), "one"]
        root = Path(__file__).parent.parent.parent
        return subprocess.run(command, input=stdin, capture_output=True, text=True, cwd=root, timeout=30)

    return run_bundle


def test_streams_identity_and_exit_code(run: Run) -> None:
    done = run("sh", "-c", "id; hostname; echo $$; cat; exit 5", stdin="typed\n")
    assert done.stdout == "uid=7 gid=8\nalone\n1\ntyped\n"
    assert done.returncode == 5


def test_a_seccomp_filter(run: Run) -> None:
    profile = {"defaultAction": "SCMP_ACT_ALLOW",
               "syscalls": [{"names": ["uname"], "action": "SCMP_ACT_ERRNO", "errnoRet": 123}]}  # fmt: skip
    done = run("hostname", seccomp=profile)
    assert done.returncode != 0 or done.stdout != "alone\n"


def test_a_program_that_is_not_there(run: Run) -> None:
    done = run("nosuch")
    assert done.returncode == 1
    assert 'exec: "nosuch": executable file not found in $PATH' in done.stderr


def test_a_configuration_that_cannot_work_leaves_nothing(run: Run) -> None:
    for linux, words in (
        ({"namespaces": [{"type": "time"}]}, "time"),
        ({"namespaces": [{"type": "mount"}, {"type": "network", "path": "/nowhere"}]}, "/nowhere"),
        ({"resources": {"memory": {"limit": "much"}}}, "linux.resources.memory.limit"),
    ):
        done = run("sh", **linux)
        assert done.returncode == 1
        assert words in done.stderr
        assert "Traceback" not in done.stderr
