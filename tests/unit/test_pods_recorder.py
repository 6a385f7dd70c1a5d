"""What happened to pods: bounded, counted, and found again after a restart."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from pathlib import Path

import pytest

from pods.errors import PodError
from pods.model import SandboxMetadata
from pods.recorder.entry import Life, Plugin, Ran, Refused, Said, Step, decode, encode
from pods.recorder.recorder import Bounds, Recorder, Teller
from runtime.errors import ExecFailed
from tests.waiting import until

_POD = SandboxMetadata(name="web", uid="u", namespace="default")
_ABOUT = {"pod": "default/web/u/0"}


async def _opened(directory: Path, bounds: Bounds | None = None) -> Recorder:
    recorder = Recorder(directory, bounds or Bounds())
    await recorder.open()
    return recorder


def _recordings(recorder: Recorder) -> list[str]:
    return [str(recording.subject) for recording in recorder.recordings()]


def test_an_entry_comes_back_as_it_was_and_a_torn_line_is_none() -> None:
    step = Step(1, "main", "start container", "program runs", 5)
    assert decode(encode(step)) == step
    assert decode(encode(step)[:20]) is None
    assert decode(b"[" * 100_000) is None
    assert decode(encode(Said(1, "", "info", "no \udcff text"))) == Said(1, "", "info", "no � text")
    plugin = Plugin(1, "", "ADD", "bridge", 5, "its JSON has \ud800")
    assert decode(encode(plugin)) == Plugin(1, "", "ADD", "bridge", 5, "its JSON has �")
    refused = Refused(1, "main", "ExecSync", "INTERNAL", ("PodError", "ExecFailed"), "no \udcff", 5)
    assert decode(encode(refused)) == Refused(1, "main", "ExecSync", "INTERNAL", ("PodError", "ExecFailed"), "no �", 5)


async def test_steps_that_follow_each_other_share_a_line_and_are_told_one_by_one(tmp_path: Path) -> None:
    recorder = await _opened(tmp_path)
    pod, main = recorder.of_pod(_POD), Teller(recorder.of_pod(_POD).recording, "main")
    begun = time.monotonic_ns()
    at = [begun + number * 10**9 for number in range(6)]
    for number in range(3):
        pod.step("run", f"step {number}", at[number], at[number + 1])
    main.step("start", "cloned", at[3], at[4])
    main.said("between")
    main.step("start", "runs", at[4], at[5])
    recorder.close()
    (file,) = tmp_path.iterdir()
    assert len(file.read_bytes().splitlines()) == 1 + 4
    again = await _opened(tmp_path)
    steps = [entry for entry in again.of_pod(_POD).recording.entries() if isinstance(entry, Step)]
    assert [(step.about, step.operation, step.name, step.took) for step in steps] == [
        *(("", "run", f"step {number}", 10**9) for number in range(3)),
        ("main", "start", "cloned", 10**9),
        ("main", "start", "runs", 10**9),
    ]
    again.close()


async def test_the_oldest_makes_room_and_what_repeats_is_counted(tmp_path: Path) -> None:
    recorder = await _opened(tmp_path, Bounds(size=4096))
    teller = recorder.of_pod(_POD)
    for _ in range(1000):
        teller.ran("cat /ready", 0, 10)
    teller.ran("cat /ready", 1, 10)
    for number in range(200):
        teller.said(f"line {number}")
    entries = teller.recording.entries()
    assert teller.recording.size <= 4096
    assert [entry.count for entry in entries if isinstance(entry, Ran)] == [1000, 1]
    said = [entry.text for entry in entries if isinstance(entry, Said)]
    assert said[-1] == "line 199"
    assert 20 < len(said) < 200
    recorder.close()


async def test_a_failure_keeps_its_kinds_and_the_same_of_another_attempt_is_counted(tmp_path: Path) -> None:
    recorder = await _opened(tmp_path)
    for digit in "ab":
        error = PodError(f"start container {digit * 64}: no")
        error.__cause__ = ExecFailed("no", 2)
        recorder.refused("RunPodSandbox", _ABOUT, "INTERNAL", str(error), error, 0.5)
    (entry,) = recorder.of_pod(_POD).recording.entries()
    assert isinstance(entry, Refused)
    assert (entry.kinds, entry.count, "b" * 64 in entry.text) == (("PodError", "ExecFailed"), 2, True)
    recorder.close()


async def test_the_log_s_warnings_that_name_a_pod_are_recorded_from_any_thread(tmp_path: Path) -> None:
    recorder = await _opened(tmp_path)
    recorder.sandbox("s", _POD, "created")
    recorder.container("s", "c", "main", "created")
    log = logging.getLogger("crisp.pods")
    log.warning("clamped", extra={"container": "c", "error": "too much"})
    await asyncio.to_thread(log.warning, "elsewhere", extra={"sandbox": "s"})
    await asyncio.sleep(0)
    log.info("not worth it", extra={"sandbox": "s"})
    log.warning("of no pod")
    said = [(entry.about, entry.text) for entry in recorder.of_pod(_POD).recording.entries() if isinstance(entry, Said)]
    assert said == [("main", "clamped: too much"), ("", "elsewhere")]
    recorder.close()


async def test_a_new_daemon_knows_what_an_earlier_one_recorded(tmp_path: Path) -> None:
    recorder = await _opened(tmp_path)
    recorder.sandbox("s", _POD, "created")
    recorder.container("s", "c", "main", "created")
    for _ in range(3):
        recorder.part("c").ran("true", 0, 1)
    before = recorder.of_pod(_POD).recording.entries()
    recorder.close()
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes() + b'["said",1,"","in')  # a daemon was killed while it wrote
    recorder = await _opened(tmp_path)
    assert recorder.of_pod(_POD).recording.entries() == before
    assert recorder.of_container("c") is not None
    recorder.found_again("s", _POD)
    recorder.part("c").ran("true", 0, 1)
    assert [entry.count for entry in recorder.of_pod(_POD).recording.entries() if isinstance(entry, Ran)] == [4]
    recorder.close()


async def test_what_was_written_is_there_although_the_daemon_is_killed(tmp_path: Path) -> None:
    recorder = await _opened(tmp_path, Bounds(size=4096))
    teller = recorder.of_pod(_POD)
    for number in range(400):  # enough for the file to be written anew more than once
        teller.said(f"line {number}")
        if number % 40 == 0:
            recorder._write(recorder._take())
    recorder._write(recorder._take())
    other = await _opened(tmp_path, Bounds(size=4096))
    assert other.of_pod(_POD).recording.entries() == teller.recording.entries()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 3 * 4096
    other.close()
    recorder.close()


async def test_what_is_gone_is_forgotten_by_number_and_by_age(tmp_path: Path) -> None:
    recorder = await _opened(tmp_path, Bounds(kept=2, seconds=3600))
    for number in range(4):
        pod = SandboxMetadata(name=f"p{number}", uid="u", namespace="n")
        recorder.sandbox(f"s{number}", pod, "created")
        if number:
            recorder.sandbox(f"s{number}", pod, "deleted")
    old = Life(time.time_ns() - 7200 * 10**9, "", "x", "deleted")
    recorder.of_pod(SandboxMetadata(name="old", uid="u", namespace="n")).recording.add(old)
    recorder.close()
    recorder = await _opened(tmp_path, Bounds(kept=2, seconds=3600))
    assert len(_recordings(recorder)) == 5
    recorder._write_behind()
    until(lambda: not recorder._writer.busy)
    assert len(_recordings(recorder)) == 5  # nobody knows yet which pods there are
    recorder.found_again("s0", SandboxMetadata(name="p0", uid="u", namespace="n"))
    recorder.knows_all()
    recorder._write_behind()
    recorder.close()
    assert sorted(_recordings(recorder)) == ["n/p0", "n/p2", "n/p3"]
    assert len(list(tmp_path.iterdir())) == 3


async def test_what_no_disk_takes_and_what_nobody_can_place_uses_no_memory(tmp_path: Path) -> None:
    recorder = await _opened(tmp_path, Bounds(size=4096))
    pod, nobody = recorder.of_pod(_POD), recorder.part("no such container")
    for number in range(2000):  # none of it is written: the loop does not turn
        for teller in (pod, nobody):
            teller.said(f"line {number}")
            teller.ran(f"probe {number}", 1, 10)
        assert len(pod.recording._pending) < 100
    assert nobody.recording.entries() == []
    assert len(nobody.recording.take_unwritten()) == 0
    assert len(pod.recording.take_unwritten()) <= 4096
    pod.said("the disk is back")
    recorder._write(recorder._take())
    (path,) = tmp_path.iterdir()
    assert path.stat().st_size < 2 * 4096
    other = await _opened(tmp_path, Bounds(size=4096))
    assert other.of_pod(_POD).recording.entries() == pod.recording.entries()
    other.close()
    recorder.close()


async def test_names_of_any_length_and_no_names_are_bounded(tmp_path: Path) -> None:
    recorder = await _opened(tmp_path)
    long, error = "x" * (1 << 20), PodError("no such")
    for about in ({"pod": f"{long}/{long}/{long}/0"}, {"image": long}, {"pod": "//../\0//"}, {"pod": "a"}):
        recorder.refused("PullImage", about | {"container_name": long}, "INTERNAL", str(error), error, 0.1)
    recorder.sandbox("s", _POD, "created")
    for number in range(1000):
        about = {"sandbox": "s", "container_name": f"{number}{long}"}
        recorder.refused("CreateContainer", about, "INTERNAL", str(error), error, 0.1)
    assert len(recorder.of_pod(_POD).recording.names) < 200
    recorder._write(recorder._take())
    assert len(_recordings(recorder)) == 4
    assert max(path.stat().st_size for path in tmp_path.iterdir()) < 16 << 10
    assert all(path.parent == tmp_path and len(path.name) == 32 for path in tmp_path.rglob("*"))
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    recorder.close()


async def test_a_crashing_container_does_not_push_out_one_that_runs(tmp_path: Path) -> None:
    recorder = await _opened(tmp_path)
    recorder.sandbox("s", _POD, "created")
    recorder.container("s", "runs", "main", "created")
    for number in range(200):
        for event in ("created", "started", "stopped", "deleted"):
            recorder.container("s", f"crashes {number}", "sidecar", event)
    assert recorder.of_container("runs") is not None
    assert recorder.of_container("crashes 199") is not None
    assert recorder.of_container("crashes 0") is None
    recorder.close()


async def test_a_torn_file_and_a_disk_that_was_full_lose_nothing_that_comes_after(tmp_path: Path) -> None:
    recorder = await _opened(tmp_path / "there")
    recorder.of_pod(_POD).said("before")
    recorder.close()
    (path,) = (tmp_path / "there").iterdir()
    path.write_bytes(path.read_bytes() + b'["said",1,"","in')  # a daemon was killed while it wrote
    (tmp_path / "there/none").write_bytes(b"no subject")
    recorder = await _opened(tmp_path / "there")
    recorder.of_pod(_POD).said("after")
    recorder.close()
    recorder = await _opened(tmp_path / "there")
    assert [entry.text for entry in recorder.of_pod(_POD).recording.entries()] == ["before", "after"]  # type: ignore[union-attr]
    (tmp_path / "there").rename(tmp_path / "away")
    recorder.of_pod(_POD).said("while there was no room")
    recorder._write(recorder._take())
    (tmp_path / "away").rename(tmp_path / "there")
    recorder.of_pod(_POD).said("last")
    recorder.close()
    recorder = await _opened(tmp_path / "there")
    said = [entry.text for entry in recorder.of_pod(_POD).recording.entries() if isinstance(entry, Said)]
    assert said == ["before", "after", "while there was no room", "last"]
    assert [path.name for path in (tmp_path / "there").iterdir()] == [path.name]
    recorder.close()


async def test_a_clock_that_was_ahead_and_one_who_tells_late(tmp_path: Path) -> None:
    """A pod that is gone since a time to come is not the latest for ever; a forgotten one has no file again."""

    def write() -> None:
        recorder._write_behind()
        until(lambda: not recorder._writer.busy)

    recorder = await _opened(tmp_path, Bounds(kept=1, seconds=3600))
    recorder.knows_all()
    ahead = recorder.of_pod(SandboxMetadata(name="ahead", uid="u", namespace="n"))
    ahead.recording.add(Said(time.time_ns() + 10**18, "", "info", "the clock is wrong"))
    write()
    about_to_tell = recorder.of_pod(_POD)
    write()
    assert recorder.of_pod(_POD).recording is about_to_tell.recording
    assert _recordings(recorder) == ["default/web"]
    about_to_tell.said("now")
    ahead.said("late")
    recorder.close()
    assert len(list(tmp_path.iterdir())) == 1


async def test_who_logs_does_not_fail_of_the_recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    recorder = await _opened(tmp_path)
    logging.getLogger("crisp.pods").warning("%d", "no number", extra={"pod": "default/web/u/0"})
    recorder.close()


async def test_a_disk_that_takes_nothing_is_complained_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = await _opened(tmp_path / "there")
    (tmp_path / "there").rmdir()
    for _ in range(2):
        recorder.of_pod(_POD).said("line")
        recorder._write(recorder._take())
    recorder.close()
    message = "writing a recording failed (logged once); crisp why may lack entries"
    assert [record.message for record in caplog.records].count(message) == 1


async def test_a_disk_that_hangs_does_not_hold_up_a_stop(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recorder = await _opened(tmp_path)
    recorder.of_pod(_POD).said("line")
    file = recorder._files._path(recorder.of_pod(_POD).recording.subject)
    os.mkfifo(file)  # opening it for writing waits for a reader
    thread = threading.Thread(target=recorder.close, daemon=True)
    thread.start()
    await asyncio.to_thread(thread.join, 60)
    assert not thread.is_alive()
    assert "the recorder's disk does not answer" in caplog.text
    reader = os.open(file, os.O_RDONLY | os.O_NONBLOCK)  # lets the writer go
    until(lambda: not recorder._writer.busy)
    os.close(reader)
