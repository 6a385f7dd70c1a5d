"""The crisp command on a real daemon."""

from __future__ import annotations

import json
import os
import select
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from cri.client.runplan import LOG_ROOT
from cri.v1 import api_pb2
from tests.daemon import BUSYBOX, REPOSITORY, Daemon, busybox_layout

SECONDS = 120.0


def command(daemon: Daemon, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "cri.client", "--listen", daemon.listen, *arguments]


def crisp(daemon: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(daemon, *arguments), cwd=REPOSITORY, capture_output=True, text=True, timeout=SECONDS
    )


def start(daemon: Daemon, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(command(daemon, *arguments), cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)


def test_an_archive_is_imported_and_run_by_the_name_given(daemon: Daemon) -> None:
    name = "localhost/copy:1"
    done = crisp(daemon, "image", "import", "--name", name, str(busybox_layout()))
    assert name in done.stdout
    listed = [line.split()[:2] for line in crisp(daemon, "images").stdout.splitlines()]
    assert ["localhost/copy", "1"] in listed
    assert crisp(daemon, "run", "--rm", name, "true").returncode == 0


def test_images_are_verified_exported_and_told_of(daemon: Daemon) -> None:
    done = crisp(daemon, "image", "verify", BUSYBOX)
    assert (done.returncode, done.stdout.split()[-1]) == (0, "whole")
    told = json.loads(crisp(daemon, "inspect", "--type", "image", BUSYBOX).stdout)["info"]
    assert told["manifest"]["layers"]
    assert told["layers"][0]["inodes"] > 1
    refused = crisp(daemon, "image", "export", BUSYBOX, str(daemon.directory / "exported.tar"))
    assert refused.returncode
    assert "keep_blobs" in refused.stderr
    (layer,) = (path for path in (daemon.root / "image/layers").iterdir() if path.name != "0")
    some = next(layer.iterdir())  # of either kind of layer
    some.chmod(stat.S_IMODE(some.stat().st_mode))
    done = crisp(daemon, "image", "verify")
    assert done.returncode == 1
    assert "was changed after it was unpacked" in done.stdout


def test_run_gives_the_output_and_the_status_and_leaves_nothing(daemon: Daemon) -> None:
    logs = set(LOG_ROOT.iterdir()) if LOG_ROOT.exists() else set()
    script = "echo out $A; cat /data/file; echo err >&2; exit 7"
    (daemon.directory / "data").mkdir()
    (daemon.directory / "data" / "file").write_text("shared\n")
    volume = f"{daemon.directory}/data:/data:ro"
    done = crisp(daemon, "run", "--rm", "-e", "A=b", "-v", volume, "--memory", "32m", BUSYBOX, "sh", "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (7, "out b\nshared\n", "err\n")
    assert not daemon.runtime.ListPodSandbox(api_pb2.ListPodSandboxRequest()).items
    assert set(LOG_ROOT.iterdir()) == logs


_EXITS = pytest.mark.trial(
    "run-status", "`crisp run` and `crisp exec` exit 127 for a program that is not there, 126 for one that cannot run"
)
_PROGRAMS = pytest.mark.parametrize(
    ("program", "status"),
    [("no-such-program", 127), ("/no/such", 127), ("/etc/passwd", 126), ("/bin", 126), ("", 127)],
)


@_EXITS
@_PROGRAMS
def test_a_run_that_cannot_start_leaves_nothing(daemon: Daemon, program: str, status: int) -> None:
    done = crisp(daemon, "run", "--name", "lost", BUSYBOX, program)
    assert done.returncode == status
    assert program in done.stderr
    assert not daemon.runtime.ListPodSandbox(api_pb2.ListPodSandboxRequest()).items
    assert not list(LOG_ROOT.glob("*lost*"))


@_EXITS
def test_an_exec_of_what_cannot_run(daemon: Daemon) -> None:
    crisp(daemon, "run", "-d", "--name", "target", BUSYBOX, "sleep", "60")
    try:
        for program, status in (("nope", 127), ("/no/such", 127), ("/etc/passwd", 126), ("/bin", 126)):
            for flags in ([], ["-i"]):
                assert (program, flags, crisp(daemon, "exec", *flags, "target", program).returncode) == (
                    program, flags, status
                )  # fmt: skip
        assert crisp(daemon, "exec", "nobody", "true").returncode == 125
    finally:
        crisp(daemon, "rm", "-f", "target")


def test_a_detached_pod_by_its_name(daemon: Daemon) -> None:
    script = "trap 'exit 3' TERM; echo up; while :; do sleep 0.1; done"
    assert crisp(daemon, "run", "-d", "--name", "web", BUSYBOX, "sh", "-c", script).returncode == 0
    try:
        assert crisp(daemon, "exec", "web", "sh", "-c", "exit 42").returncode == 42
        timed_out = crisp(daemon, "exec", "--timeout", "1", "web", "sleep", "60")
        assert timed_out.returncode == 125
        assert crisp(daemon, "stop", "web").returncode == 0
        assert "exited (3)" in crisp(daemon, "ps", "-a").stdout
        assert crisp(daemon, "logs", "web").stdout == "up\n"
    finally:
        assert crisp(daemon, "rm", "-f", "web").returncode == 0
    assert not list(LOG_ROOT.glob("*web*"))


def test_logs_are_followed_through_a_rotation_to_the_end(daemon: Daemon) -> None:
    fifo = daemon.directory / "gate"
    fifo.mkdir()
    os.mkfifo(fifo / "fifo")
    script = "seq 1 5000; cat /gate/fifo; seq 5001 10000"
    crisp(daemon, "run", "-d", "--name", "talk", "-v", f"{fifo}:/gate", BUSYBOX, "sh", "-c", script)
    (container,) = daemon.runtime.ListContainers(api_pb2.ListContainersRequest()).containers
    log = Path(daemon.status(container.id).log_path)
    with start(daemon, "logs", "-f", "talk") as follower:
        assert follower.stdout is not None
        lines = [follower.stdout.readline() for _ in range(5000)]
        log.rename(f"{log}.rotated")
        daemon.runtime.ReopenContainerLog(api_pb2.ReopenContainerLogRequest(container_id=container.id))
        (fifo / "fifo").write_text("")
        lines += follower.stdout.readlines()
        assert follower.wait(SECONDS) == 0
    assert [int(line) for line in lines] == list(range(1, 10001))
    assert crisp(daemon, "rm", "-f", "talk").returncode == 0


def test_an_interrupted_run_stops_its_container(daemon: Daemon) -> None:
    script = "trap 'echo bye; exit 9' TERM; echo up; while :; do sleep 0.1; done"
    with start(daemon, "run", "--rm", BUSYBOX, "sh", "-c", script) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "up\n"
        running.send_signal(signal.SIGINT)
        assert running.stdout.read() == "bye\n"
        assert running.wait(SECONDS) == 9
    assert not daemon.runtime.ListPodSandbox(api_pb2.ListPodSandboxRequest()).items


def test_stats_and_top_tell_what_is_busy(daemon: Daemon) -> None:
    with daemon.pod("busy") as pod:
        busy = pod.run("sh", "-c", "while :; do :; done", name="spin")
        idle = pod.run("sleep", "100", name="idle")
        for arguments in (("stats",), ("top", "--once")):
            header, *rows = [line.split() for line in crisp(daemon, *arguments).stdout.splitlines()]
            assert header[:4] == ["CONTAINER", "NAME", "POD", "CPU"]
            assert [row[:3] for row in rows] == [[busy[:13], "spin", "busy"], [idle[:13], "idle", "busy"]]
            assert float(rows[0][3]) > 5
        (told,) = json.loads(crisp(daemon, "stats", "-o", "json", "idle").stdout)["stats"]
        assert told["attributes"]["id"] == idle
        (row,) = crisp(daemon, "statsp").stdout.splitlines()[1:]
        assert row.split()[:3] == [pod.id[:13], "busy", "default"]
        assert float(row.split()[3]) > 5


def test_events_are_printed_as_they_happen(daemon: Daemon) -> None:
    events = start(daemon, "events")
    lines: list[str] = []
    ended = ""
    try:
        assert events.stdout is not None
        # Another pod while the command does not listen yet, or began to in the middle of this one's life.
        while not all(
            any(wanted in line for line in lines)
            for wanted in (f"created  container  {ended[:13]}", f"{ended[:13]}  default/told/main: exit-code: ")
        ):
            with daemon.pod("told") as pod:
                ended = pod.run("sh", "-c", "exit 3")
                daemon.wait_exited(ended)
            if select.select([events.stdout], [], [], 0.5)[0]:
                while not lines or f"deleted  pod        {pod.id[:13]}" not in lines[-1]:
                    lines.append(events.stdout.readline())
    finally:
        events.kill()
        events.wait()
        events.stdout.close()
    assert any(line.endswith(f"{ended[:13]}  default/told/main (3 Error)\n") for line in lines)


def test_top_goes_on_over_a_restart_of_crispd(fresh_daemon: Daemon) -> None:
    leader, follower = os.openpty()
    with fresh_daemon.pod("busy") as pod:
        pod.run("sleep", "100000", name="sleeper")
        top = subprocess.Popen(
            command(fresh_daemon, "top", "-d", "0.1"), cwd=REPOSITORY, stdin=follower, stdout=follower, stderr=follower,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "150", "LINES": "40"},
        )  # fmt: skip
        os.close(follower)
        try:
            _read_until(leader, b"sleeper")
            fresh_daemon.kill9()
            _read_until(leader, b"does not answer")
            fresh_daemon.start()
            _read_until(leader, b"sleeper", without=b"does not answer")
            assert top.poll() is None
        finally:
            top.send_signal(signal.SIGINT)
            while top.poll() is None:  # it may write before it ends
                _read_until(leader, b"")
            os.close(leader)
    assert top.returncode == 128 + signal.SIGINT


def _read_until(terminal: int, wanted: bytes, without: bytes = b"\xff") -> None:
    """Read a terminal until one screen of it has `wanted` and not `without`."""
    read = b""
    while True:
        assert select.select([terminal], [], [], SECONDS)[0]
        try:
            read += os.read(terminal, 1 << 16)
        except OSError:  # the other side is closed
            return
        screens = read.split(b"CONTAINER")[1:-1]  # each begins with the columns' names
        if not wanted or any(wanted in screen and without not in screen for screen in screens[-1:]):
            return
