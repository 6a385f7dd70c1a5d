"""`crisp check` finds each kind of disagreement, made by hand, and mends it; where there is none it finds none."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from cri.admin.v1 import admin_pb2
from cri.v1 import api_pb2 as cri
from linux.mounts import mount_tmpfs
from runtime.cgroups import SHIM_CGROUP, Cgroup, Hierarchies
from runtime.process import infra
from tests import cgroups
from tests.daemon import CALL_SECONDS, Daemon
from tests.waiting import until

_CALL = {"timeout": CALL_SECONDS}
_STRANGER = "ab" * 32


def _check(daemon: Daemon, *, repair: bool = False) -> dict[tuple[str, str], admin_pb2.Disagreement]:
    answer = daemon.admin.Check(admin_pb2.CheckRequest(repair=repair), **_CALL)
    return {(one.kind, one.object): one for one in answer.disagreements}


def test_each_disagreement_is_found_and_mended(fresh_daemon: Daemon) -> None:
    daemon = fresh_daemon
    with daemon.pod("well") as pod:
        runs = pod.run("sleep", "1000", name="runs")
        gone = pod.run("true", name="gone")
        daemon.wait_exited(gone)
        created = pod.create("sleep", "1000", name="created")
        assert _check(daemon) == {}

        expected = {
            ("directory", str(daemon.state / "containers" / _STRANGER)),
            ("directory", str(daemon.root / "containers" / _STRANGER)),
            ("directory", str(daemon.state / "sandboxes" / _STRANGER)),
            ("mount", str(daemon.state / "sandboxes" / _STRANGER / "shm")),
            ("namespace", f"/run/netns/crisp-{_STRANGER}"),
            ("cgroup", f"/crisp/{pod.id}/{_STRANGER}"),
            ("database", gone),
            ("database", created),
            ("database", _STRANGER),
        }
        for place in ("state/containers", "root/containers", "state/sandboxes"):
            (daemon.directory / place / _STRANGER).mkdir()
        mount_tmpfs(str(daemon.state / "sandboxes" / _STRANGER / "shm"), {})
        subprocess.run(["ip", "netns", "add", f"crisp-{_STRANGER}"], check=True)
        for hierarchy in cgroups.hierarchies():
            if (parent := hierarchy / f"crisp/{pod.id}").is_dir():
                (parent / _STRANGER).mkdir()
        with closing(sqlite3.connect(daemon.root / "crisp.db", isolation_level=None)) as database:
            database.execute("DELETE FROM containers WHERE id = ?", (created,))
            (body,) = database.execute("SELECT record FROM containers WHERE id = ?", (gone,)).fetchone()
            database.execute("UPDATE containers SET record = ? WHERE id = ?", (body.replace("gone", "other"), gone))
            database.execute("INSERT INTO containers VALUES (?, ?)", (_STRANGER, body.replace(gone, _STRANGER)))
        found = _check(daemon)
        assert found.keys() == expected
        assert not any(one.repaired for one in found.values())
        mended = _check(daemon, repair=True)
        assert {key for key, one in mended.items() if one.repaired} == expected
        assert _check(daemon) == {}
        daemon.kill9()
        daemon.start()
        assert _check(daemon) == {}
        assert pod.exec(runs, "true").exit_code == 0
        daemon.runtime.StartContainer(cri.StartContainerRequest(container_id=created), **_CALL)


def test_what_cannot_be_mended_is_told(fresh_daemon: Daemon) -> None:
    daemon = fresh_daemon
    with daemon.pod("ill") as pod:
        container = pod.create("true")
        (lease,) = daemon.leases.rglob("10.*")
        stranger = lease.parent / "10.255.255.254"
        stranger.write_text(f"{_STRANGER}\r\neth0")
        unfinished = lease.parent / "10.255.255.253"
        unfinished.touch()  # as host-local does before it writes whose it is
        shutil.rmtree(daemon.root / "containers" / container)
        layer = next(path for path in (daemon.root / "image/layers").iterdir() if path.name != "0" and path.is_dir())
        layer.rename(layer.with_suffix(".aside"))
        found = _check(daemon, repair=True)
        assert {kind for kind, _ in found} == {"address", "directory", "image"}
        assert all(one.advice and not one.repaired for one in found.values())
        assert "nobody" in found["address", str(unfinished)].text
        layer.with_suffix(".aside").rename(layer)
        stranger.unlink()
        unfinished.unlink()
        daemon.runtime.RemoveContainer(cri.RemoveContainerRequest(container_id=container), **_CALL)
        assert _check(daemon) == {}


def test_what_is_under_way_is_no_disagreement(fresh_daemon: Daemon) -> None:
    daemon = fresh_daemon
    ended = threading.Event()

    def churn(number: int) -> None:
        while not ended.is_set():
            with daemon.pod(f"churn{number}") as pod:
                pod.run("true")

    threads = [threading.Thread(target=churn, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        found = [_check(daemon, repair=True) for _ in range(10)]
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert found == [{}] * 10


@pytest.mark.parametrize("repair", [False, True])
def test_the_command(fresh_daemon: Daemon, repair: bool) -> None:
    daemon = fresh_daemon
    command = [Path(sys.executable).parent / "crisp", "--listen", daemon.listen, "check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "records and machine agree\n")
    place = daemon.state / "containers" / _STRANGER
    place.mkdir(parents=True)
    done = subprocess.run([*command, *(["--repair"] if repair else [])], capture_output=True, text=True)
    assert done.returncode == (0 if repair else 1), done.stderr
    assert str(place) in done.stdout
    assert place.exists() is not repair
    if not repair:
        place.rmdir()


def test_a_shim_of_no_pod(fresh_daemon: Daemon) -> None:
    """Its record was removed behind crispd's back, and its directory too."""
    daemon = fresh_daemon
    with daemon.pod("hidden") as pod:
        shim = int(subprocess.run(["pgrep", "-f", f"^crisp-shim {pod.id}"], capture_output=True, text=True).stdout)
        os.kill(shim, signal.SIGSTOP)
        aside = daemon.state / "aside"
        daemon.kill9()
        (daemon.state / "sandboxes" / pod.id / "shim.sock").rename(aside)
        daemon.start()  # finds no shim, and takes the pod for lost
        assert pod.status().state == cri.SANDBOX_NOTREADY
        os.kill(shim, signal.SIGCONT)
        assert _check(daemon) == {}  # the pod is to be stopped still
        pod.remove()
        found = _check(daemon, repair=True)
        assert [(kind, one.repaired) for (kind, _), one in found.items()] == [("shim", True)]
        until(lambda: not Path(f"/proc/{shim}").exists())


def test_what_has_lost_its_shim(fresh_daemon: Daemon) -> None:
    """An infra process, or what holds a scope; that of a pod which no record knows may be another crispd's."""
    daemon = fresh_daemon
    with daemon.pod("past") as past:
        pass
    with daemon.pod("lost") as pod:
        shims = Cgroup.at(Hierarchies.detect(), SHIM_CGROUP)
        titles = {f"crisp-infra {one.id}": True for one in (pod, past)}
        titles |= {f"crisp-scope {pod.id}": True, f"crisp-infra {_STRANGER}": False}
        pids = {_orphan(title, shims): ours for title, ours in titles.items()}
        here = _orphan(f"crisp-infra {pod.id}")  # not where shims are: somebody's who calls himself so
        try:
            found = _check(daemon)
            assert found.keys() == {("process", str(pid)) for pid in pids}
            assert all("without its shim" in one.text for one in found.values())
            mended = _check(daemon, repair=True)
            assert {int(pid): one.repaired for (_, pid), one in mended.items()} == pids
            assert [one.advice for one in mended.values() if not one.repaired] == [
                f"unless another crispd has that pod: kill -9 {pid}" for pid, ours in pids.items() if not ours
            ]
            assert [pid for pid, ours in pids.items() if ours and os.waitpid(pid, 0)[1] != signal.SIGKILL] == []
            assert pod.status().state == cri.SANDBOX_READY
        finally:
            for pid in (here, *(pid for pid, ours in pids.items() if not ours)):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        assert _check(daemon) == {}


def _orphan(title: str, cgroup: Cgroup | None = None) -> int:
    """An infra process of ours instead of a shim's, in the shims' cgroup or where we are."""
    program = infra.program_file()
    pid = os.fork()
    if pid == 0:
        if cgroup is not None:
            cgroup.join_self()
        signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT})
        os.execve(program, [title], {})
    os.close(program)
    until(lambda: Path(f"/proc/{pid}/cmdline").read_bytes() == title.encode() + b"\0")
    return pid
