"""Hooks as runc's callers write them: where they begin, what environment they have, and mounting in the container."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.oci import Bundle

_MAPPINGS = [{"containerID": 0, "hostID": 100_000, "size": 65536}]
_KINDS = ("pid", "mount", "ipc", "uts", "network")
# The process id of the state on its standard input: this is how hooks without jq find it.
FIND_PID = r"""pid=$(sed -n 's/.*"pid": *\([0-9]*\).*/\1/p')"""


def _linux(*, user_namespace: bool) -> dict[str, Any]:
    if not user_namespace:
        return {}
    namespaces = [{"type": kind} for kind in (*_KINDS, "user")]
    return {"namespaces": namespaces, "uidMappings": _MAPPINGS, "gidMappings": _MAPPINGS}


def _shell(script: str, **hook: Any) -> dict[str, Any]:
    return {"path": "/bin/sh", "args": ["sh", "-c", script], "timeout": 20, **hook}


@pytest.mark.trial("hooks-mount", "A hook that enters the container's mounts by its process id mounts in its rootfs.")
@pytest.mark.parametrize("user_namespace", [False, True])
@pytest.mark.parametrize("kind", ["prestart", "createRuntime"])
def test_a_hook_that_mounts_in_the_container(
    bundle: Bundle, tmp_path: Path, kind: str, user_namespace: bool
) -> None:
    (tmp_path / "driver").mkdir()
    (tmp_path / "driver/file").write_text("of the driver\n")
    for place in ("gpu", "late"):
        (bundle.rootfs / place).mkdir()
    enter = f"{FIND_PID}; nsenter -m -t $pid --"
    rootfs = bundle.rootfs
    mount = f"{enter} mount --bind {tmp_path}/driver {rootfs}/gpu"
    look = (f"{enter} sh -c 'mount -t tmpfs over {rootfs}/dev/gpu && touch {rootfs}/dev/gpu/0 &&"
            f" test -e {rootfs}/proc/1 && test -e {rootfs}/given'")  # fmt: skip
    bundle.configure(
        "sh", "-c", "cat /gpu/file; ls /dev/gpu; cat /proc/self/mountinfo; ls /late",
        hooks={kind: [_shell(mount), _shell(look)]}, linux=_linux(user_namespace=user_namespace),
    )  # fmt: skip
    path = bundle.directory / "config.json"
    config = json.loads(path.read_text())
    config["mounts"] += [
        {"destination": "/dev/gpu", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/given", "type": "bind", "source": str(tmp_path / "driver"), "options": ["bind"]},
    ]
    path.write_text(json.dumps(config))
    done = bundle.call("run", "one")
    first, node, *table = done.stdout.splitlines()
    assert (first, node) == ("of the driver", "0")
    points = [line.split()[4] for line in table]
    # Nothing of the host's own mounts is left, though the hooks needed them.
    assert sorted(points) == ["/", "/dev", "/dev/gpu", "/dev/gpu", "/dev/pts", "/given", "/gpu", "/proc"]
    assert str(rootfs) not in Path("/proc/self/mountinfo").read_text()


@pytest.mark.trial("hooks-environment", "A hook without env has the runtime's, in the container its process's.")
def test_where_hooks_begin_and_with_what(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARK", "of the caller")
    said = tmp_path / "said"
    script = f'echo "$KIND|$(pwd)|$MARK|$ONE|$({FIND_PID}; echo $pid)" >>'
    kinds = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
    hooks = {kind: [_shell(f"KIND={kind}; {script}{said}"), _shell(f"KIND=none; {script}{said}", env=[])]
             for kind in kinds}  # fmt: skip
    own = f"KIND=$HOME; {script}/said".replace("sed", "busybox sed")
    (bundle.rootfs / "etc").mkdir()
    (bundle.rootfs / "etc/passwd").write_text("root:x:0:0:root:/home/of/root:/bin/sh\n")
    hooks["startContainer"] = [_shell(own), _shell(own, env=["PATH=/bin", "ONE=three"])]
    bundle.configure("true", hooks=hooks, process={"env": ["PATH=/bin:/usr/bin", "ONE=two"], "cwd": "/tmp"})
    bundle.call("run", "one")
    lines = [line.split("|") for line in said.read_text().splitlines()]
    told = {kind: rest for kind, *rest in lines if kind != "none"}
    assert [kind for kind, *_rest in lines] == [word for kind in kinds for word in (kind, "none")]
    assert all(rest[1:3] == ["", ""] for kind, *rest in lines if kind == "none")
    for kind in set(kinds) - {"createContainer"}:
        assert told[kind][:3] == [str(bundle.directory), "of the caller", ""], kind
    assert told["createContainer"] == [str(bundle.rootfs), "", "two", "1"]
    assert int(told["createRuntime"][3]) > 1
    inside = [line.split("|") for line in (bundle.rootfs / "said").read_text().splitlines()]
    homes = [(line[0], *line[2:]) for line in inside]
    assert homes == [("/home/of/root", "", "two", "1"), ("", "", "three", "1")]


@pytest.mark.trial("hooks-named", "A hook that fails is named by its kind and its own number.")
@pytest.mark.parametrize("kind", ["createRuntime", "createContainer", "startContainer", "poststart"])
def test_the_number_of_a_hook_that_fails(bundle: Bundle, kind: str) -> None:
    fine, failing = _shell("true"), _shell("echo because >&2; exit 4")
    bundle.configure("sleep", "100", hooks={kind: [fine, failing], "poststop": [fine, failing, fine, failing]})
    done = bundle.call("run", "one", check=False)
    assert done.returncode == 1
    assert f"error running {kind} hook #1: `/bin/sh`: exit status 4: because" in done.stderr
    for number, fails in enumerate((False, True, False, True)):
        assert (f"error running poststop hook #{number}: `/bin/sh`" in done.stderr) == fails


@pytest.mark.parametrize("size", [70_000, 250_000])
def test_a_hook_gets_all_of_a_large_state(bundle: Bundle, tmp_path: Path, size: int) -> None:
    keep = _shell(f"cat >{tmp_path}/given")
    bundle.configure("true", hooks={"createContainer": [keep]}, annotations={"large": "a" * size})
    bundle.call("run", "one")
    assert len(json.loads((tmp_path / "given").read_text())["annotations"]["large"]) == size
