"""Kernels from 5.4 on, by a filter that answers ENOSYS: crisp-oci does without a call, or names the one it lacks."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from tests.oci import REPOSITORY, Bundle, Finished

# Loads a filter by libseccomp and goes on as the rest of its arguments. Joining namespaces by a pidfd is EINVAL before
# Linux 5.8: of several at once here, which no namespace's own descriptor is joined by.
LAUNCHER = """
import os, sys, pyseccomp
filter = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
for name in sys.argv[1].split(","):
    if name == "setns":
        both = 0x00020000 | 0x40000000
        filter.add_rule(pyseccomp.ERRNO(22), "setns", pyseccomp.Arg(1, pyseccomp.MASKED_EQ, both, both))
    elif name == "pidns":  # a word of proc's since Linux 6.18
        filter.add_rule(pyseccomp.ERRNO(22), "fsconfig", pyseccomp.Arg(1, pyseccomp.EQ, 5))
    elif name:
        filter.add_rule(pyseccomp.ERRNO(38), name)
filter.set_attr(pyseccomp.Attr.CTL_NNP, 0)
filter.load()
os.execv(sys.argv[2], sys.argv[2:])
"""


def _without(calls: str, bundle: Bundle, *arguments: str) -> Finished:
    command = [sys.executable, "-c", LAUNCHER, calls, *bundle.command(*arguments)]
    return subprocess.run(
        command, cwd=bundle.directory, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, capture_output=True,
        text=True, timeout=60, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def _configure(bundle: Bundle, *args: str) -> None:
    mask = {"maskedPaths": ["/secret", "/not/there"], "readonlyPaths": ["/bin"]}
    (bundle.rootfs / "real").mkdir(exist_ok=True)
    (bundle.rootfs / "real/secret").write_text("secret")
    (bundle.rootfs / "secret").symlink_to("../../real/secret")
    bundle.configure(*args, linux=mask)


@pytest.mark.parametrize("calls", ["openat2", "close_range", "openat2,close_range,pidfd_getfd,faccessat2"])
def test_calls_that_are_done_without(bundle: Bundle, calls: str) -> None:
    _configure(bundle, "sh", "-c", "wc -c /secret; touch /bin/x 2>&- || echo readonly; ls /proc/self/fd")
    done = _without(calls, bundle, "run", "one")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["0", "/secret", "readonly", "0", "1", "2", "3"]


def test_namespaces_are_joined_one_by_one(bundle: Bundle) -> None:
    _configure(bundle, "sleep", "100")
    pid = bundle.create()
    bundle.call("start", "one")
    kinds = ("pid", "mnt", "ipc", "uts", "net")
    look = "; ".join(f"readlink /proc/self/ns/{kind}" for kind in kinds)
    done = _without("setns,close_range", bundle, "exec", "one", "sh", "-c", look)
    assert done.stdout.split() == [os.readlink(f"/proc/{pid}/ns/{kind}") for kind in kinds], done.stderr


@pytest.mark.parametrize(
    ("call", "since"),
    [
        ("clone3", "5.3"), ("open_tree", "5.2"), ("move_mount", "5.2"), ("fsopen", "5.2"), ("fsconfig", "5.2"),
        ("fsmount", "5.2"), ("mount_setattr", "5.12"),
    ],
)  # fmt: skip
def test_a_call_that_nothing_stands_in_for_is_named(bundle: Bundle, call: str, since: str) -> None:
    _configure(bundle, "true")
    done = _without(call, bundle, "run", "one")
    assert done.returncode == 1
    assert f"this kernel lacks {call}(2), which needs Linux {since} or later" in done.stderr
    assert os.strerror(errno.ENOSYS) not in done.stderr


@pytest.mark.parametrize("call", ["pidfd_open", "pidfd_send_signal"])
def test_processes_without_descriptors(bundle: Bundle, call: str) -> None:
    _configure(bundle, "sleep", "100")
    bundle.create()
    done = _without(call, bundle, "kill", "one", "TERM")
    assert (done.returncode, f"this kernel lacks {call}(2)" in done.stderr) == (1, True), done.stderr
    assert bundle.status() == "created"
