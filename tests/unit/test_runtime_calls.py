"""What crispd and a shim say to each other, as values and as they travel."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runtime.shim.shim import _HANDLERS
from runtime.wire import calls
from runtime.wire.calls import (
    CALLS,
    EVENTS,
    AttachEnded,
    ContainerStatus,
    Created,
    Done,
    ExecEnded,
    ExitStatus,
    Identity,
    Made,
    ShimState,
    Started,
    Updated,
    read_event,
)
from runtime.wire.values import Value

_EXIT = ExitStatus(137, signal=9, oom=True, finished_at=1_700_000_000_000_000_000)
_LOGGED = calls.Logged(1, 2, 3, 4, 5, 6)
_STATUS = ContainerStatus("exited", pid=7, started_at=5, exit=_EXIT, logged=_LOGGED)
_OLD_EXIT = '{"code": 128, "signal": 0, "oom": false, "finished_at": 5, "start_failed": true}'

# As shims and crispds have always said it: members are added, and these stay.
_WIRE: list[tuple[Value, str]] = [
    (
        calls.MakePod(
            "s", "/run/s", "host", {"a": "1"}, ("ipc", "pid"), "/run/netns/s", 64, default_sysctls={"b": "2"},
            users=calls.UserMappings(((0, 1000, 10),), ((0, 2000, 10),)), last_pid=300,
        ),
        '{"sandbox": "s", "directory": "/run/s", "hostname": "host", "sysctls": {"a": "1"}, "new": ["ipc", "pid"], '
        '"netns": "/run/netns/s", "shm_size": 64, "default_sysctls": {"b": "2"}, '
        '"users": {"uids": [[0, 1000, 10]], "gids": [[0, 2000, 10]]}, "last_pid": 300}',
    ),
    (
        calls.Create(
            "c", "/b", ("/1", "/2"), "/u", "/w", calls.UserRequest("web", 5, (6,), merge=False),
            (calls.MountPoint("/s", "/d", directory=True, tree="t", field="mounts[0]"),),
            {"t": calls.ImageMount(("/3",), "sub", "m")}, hold=True, label="l", restored=True,
            runtime=calls.ExternalRuntime("/runc", "/root", systemd=False), cgroup="/g", flags=("--x",),
        ),
        '{"container": "c", "bundle": "/b", "lower": ["/1", "/2"], "upper": "/u", "work": "/w", '
        '"user": {"user": "web", "group": 5, "supplemental": [6], "merge": false}, "mount_points": [{"source": "/s", '
        '"destination": "/d", "directory": true, "tree": "t", "field": "mounts[0]"}], '
        '"images": {"t": {"lower": ["/3"], "sub_path": "sub", "label": "m"}}, "hold": true, "label": "l", '
        '"restored": true, '
        '"runtime": {"path": "/runc", "root": "/root", "systemd": false}, "cgroup": "/g", "flags": ["--x"]}',
    ),
    (
        calls.Start("c", "/l", "/var/log", stdin=True, stdin_once=True, filter_bytes=8, filter="AA==", filter_flags=2,
                    trace=True, restore="/r", work="/w", criu="/criu", log_limit=9, log_rate=10),
        '{"container": "c", "log": "/l", "log_trusted": "/var/log", "stdin": true, "stdin_once": true, '
        '"filter_bytes": 8, "filter": "AA==", "filter_flags": 2, "trace": true, '
        '"restore": "/r", "work": "/w", "criu": "/criu", "log_limit": 9, "log_rate": 10}',
    ),
    (calls.Prepare("c", stdin=True, filter_bytes=8, filter_flags=2),
     '{"container": "c", "stdin": true, "filter_bytes": 8, "filter_flags": 2}'),
    (calls.MakeSandbox("s", "/b", calls.ExternalRuntime("/runsc", "/root", systemd=True), ("--x",), "/g"),
     '{"sandbox": "s", "bundle": "/b", "runtime": {"path": "/runsc", "root": "/root", "systemd": true}, '
     '"flags": ["--x"], "cgroup": "/g"}'),
    (calls.Forward(80), '{"port": 80}'),
    (calls.Exec("c", "1", ("sh", "-c"), terminal=True, bound=True),
     '{"container": "c", "exec": "1", "args": ["sh", "-c"], "terminal": true, "bound": true}'),
    (calls.Attach("c", "1", ("stdout",)), '{"container": "c", "attach": "1", "streams": ["stdout"]}'),
    (calls.Detach("c", "1"), '{"container": "c", "attach": "1"}'),
    (calls.Resize("c", 80, 25), '{"container": "c", "width": 80, "height": 25}'),
    (calls.Freeze(("c",), 2.5), '{"containers": ["c"], "seconds": 2.5}'),
    (calls.Update("c", {"memory": {"limit": 5}}, 7, again=True),
     '{"container": "c", "resources": {"memory": {"limit": 5}}, "oom_score_adj": 7, "again": true}'),
    (calls.Signal("c", 15), '{"container": "c", "signal": 15}'),
    (Made(1, 2, ("a",), "c"), '{"pid": 1, "infra_pid": 2, "abilities": ["a"], "code": "c"}'),
    (Created(Identity(1, 2, (2, 3), "/home"), 9),
     '{"uid": 1, "gid": 2, "additional_gids": [2, 3], "home": "/home", "holder": 9}'),
    (Started(7, 5, ("w",), (("cloned", 3),)),
     '{"pid": 7, "started_at": 5, "warnings": ["w"], "steps": [["cloned", 3]]}'),
    (ShimState(1, 2, True, {"c": _STATUS}, ("a",), kept=True, code="c"),
     '{"pid": 1, "infra_pid": 2, "infra_alive": true, "containers": {"c": {"state": "exited", "pid": 7, '
     '"started_at": 5, "exit": {"code": 137, "signal": 9, "oom": true, "finished_at": 1700000000000000000, '
     '"start_failed": false}, "logged": {"bytes": 1, "lines": 2, "dropped_bytes": 3, "dropped_lines": 4, '
     '"lost_bytes": 5, "lost_lines": 6}}}, "abilities": ["a"], "kept": true, "code": "c"}'),
    (ExecEnded(3), '{"code": 3}'),
    (AttachEnded(), '{"code": null}'),
    (Updated(("w",)), '{"warnings": ["w"]}'),
    (ExitStatus(128, finished_at=5, start_failed=True), _OLD_EXIT),
    (calls.Exited("c", ExitStatus(128, finished_at=5, start_failed=True)),
     f'{{"container": "c", "exit": {_OLD_EXIT}, "logged": {{"bytes": 0, "lines": 0, "dropped_bytes": 0, '
     '"dropped_lines": 0, "lost_bytes": 0, "lost_lines": 0}}'),
]  # fmt: skip


@pytest.mark.parametrize(("value", "text"), _WIRE, ids=[type(value).__name__ for value, _text in _WIRE])
def test_what_travels(value: Value, text: str) -> None:
    assert value.to_json() == json.loads(text)
    assert type(value).from_json(json.loads(text) | {"of a later version": 1}) == value


def test_what_earlier_versions_leave_out() -> None:
    assert Started.from_json({"pid": 7, "started_at": 5}) == Started(7, 5)
    assert Created.from_json({"uid": 1, "gid": 2, "additional_gids": [2], "home": "/"}).holder == 0
    assert AttachEnded.from_json({}) == AttachEnded()
    assert ContainerStatus.from_json({"state": "running"}).logged == calls.Logged()
    assert Made.from_json({"pid": 1, "infra_pid": 2}).abilities == ()
    assert ExitStatus.from_json({"code": 1, "signal": 0, "oom": False, "finished_at": 5}).start_failed is False
    create = {"container": "c", "bundle": "/b", "lower": [], "upper": "", "work": "", "user": {"user": ""}}
    assert calls.Create.from_json(create).runtime is None
    assert calls.Start.from_json({"container": "c", "log": ""}) == calls.Start("c", "")
    with pytest.raises(TypeError, match="'container'"):
        calls.Start.from_json({"log": ""})


def test_every_call_has_its_handler_and_no_member_that_frames_use() -> None:
    assert {name: kind for name, (kind, _handler) in _HANDLERS.items()} == CALLS
    frames = {"id", "call", "event", "fds", "ok", "error"}
    for kind in (*CALLS.values(), *EVENTS.values()):
        assert not frames.intersection(kind.__slots__)


def test_events() -> None:
    assert read_event({"event": "infra-exit"}) == calls.InfraExited()
    assert read_event({"event": "of a later version"}) is None
    assert Done.from_json({}) == Done()


def test_the_calls_that_architecture_names() -> None:
    page = (Path(__file__).parents[2] / "docs/architecture.md").read_text()
    section = page.partition("## The wire between crispd and a shim\n")[2].partition("\n## ")[0]
    calls_named, events_named = section.partition("The events are")[::2]
    for kinds, text in ((CALLS, calls_named), (EVENTS, events_named)):
        named = {word for word in text.split("`")[1::2] if "." not in word and "/" not in word}
        assert named == kinds.keys()
