"""What callers of runc (podman, containerd, buildah, GPU tool kits) lean on: flags, words, defaults and statuses."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from pathlib import Path

import pytest

from cri.v1 import api_pb2 as cri
from tests.daemon import Daemon
from tests.oci import REPOSITORY, Bundle
from tests.waiting import until

PASSWD = "root:x:0:0:root:/root:/bin/sh\nmail:x:8:8:mail:/var/mail:/bin/sh\n"


def start(bundle: Bundle, *args: str) -> None:
    bundle.configure(*(args or ("sleep", "100")))
    bundle.create()
    bundle.call("start", "one")


@pytest.mark.trial("home-from-passwd", "HOME, where absent or empty, is what the container's passwd has for the uid")
def test_home(bundle: Bundle) -> None:
    bundle.configure("sh", "-c", "echo $HOME")
    assert bundle.call("run", "one").stdout == "/\n", "there is no passwd"
    (bundle.rootfs / "etc").mkdir()
    (bundle.rootfs / "etc/passwd").write_text(PASSWD)
    assert bundle.call("run", "one").stdout == "/root\n"
    bundle.configure("sh", "-c", "echo $HOME", process={"env": ["PATH=/bin", "HOME="], "user": {"uid": 8, "gid": 8}})
    assert bundle.call("run", "one").stdout == "/var/mail\n"
    start(bundle)
    show = ("one", "sh", "-c", "echo $HOME")
    assert bundle.call("exec", *show).stdout == "/root\n"
    assert bundle.call("exec", "-u", "8", *show).stdout == "/var/mail\n"
    assert bundle.call("exec", "-u", "77:8", *show).stdout == "/\n"
    assert bundle.call("exec", "-e", "HOME=/own", *show).stdout == "/own\n"
    process = {"args": list(show[1:]), "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 8, "gid": 8}}
    (bundle.directory / "process.json").write_text(json.dumps(process))
    assert bundle.call("exec", "--process", str(bundle.directory / "process.json"), "one").stdout == "/var/mail\n"
    bundle.delete()
    (bundle.rootfs / "etc/passwd").unlink()
    os.mkfifo(bundle.rootfs / "etc/passwd")
    bundle.configure("sh", "-c", "echo $HOME")
    assert bundle.call("run", "one").stdout == "/\n", "nobody waits for a writer"


@pytest.mark.trial("home-from-passwd", "HOME, where absent or empty, is what the container's passwd has for the uid")
def test_home_of_pods(daemon: Daemon) -> None:
    with daemon.pod("home") as pod:
        for name, envs in (("absent", []), ("empty", [cri.KeyValue(key="HOME", value=b"")])):
            container = pod.run("sh", "-c", "echo [$HOME]; exec sleep 100", name=name, envs=envs)
            until(lambda name=name: "[/" in pod.log(name))  # type: ignore[misc]
            assert pod.exec(container, "sh", "-c", "echo [$HOME]").stdout.startswith(b"[/")


@pytest.mark.trial("flags-after-the-id", "flags are taken after the container's id, but not among a program's own")
def test_flags_after_the_id(bundle: Bundle) -> None:
    start(bundle)
    bundle.call("update", "one", "--pids-limit", "50", "--memory=64m")
    assert json.loads(bundle.call("ps", "--format=json", "one").stdout)
    assert bundle.call("ps", "one", "-o", "pid").stdout.startswith("    PID\n")
    assert bundle.call("exec", "one", "echo", "--env", "-t", "--", "-u").stdout == "--env -t -- -u\n"
    assert bundle.call("exec", "--", "one", "echo", "--detach").stdout == "--detach\n"
    stats = json.loads(bundle.call("events", "one", "--stats").stdout)
    assert stats["data"]["pids"]["limit"] == 50
    bundle.call("kill", "one", "-a", "KILL")
    assert "not defined: -nosuch" in bundle.call("delete", "one", "--nosuch", check=False).stderr
    bundle.call("delete", "one", "--force")
    assert bundle.call("delete", "one", "--", "--force", check=False).returncode == 1


@pytest.mark.trial("words-of-runc", "the words and forms that callers of runc look for are runc's")
def test_words_and_forms(bundle: Bundle) -> None:
    assert "container does not exist" in bundle.call("state", "one", check=False).stderr
    assert bundle.call("list", check=False).returncode == 1, "--root is not there"
    start(bundle)
    listed = bundle.call("list", "--format", "json").stdout
    assert listed == json.dumps(json.loads(listed), separators=(",", ":")) + "\n"
    pids = bundle.call("ps", "--format", "json", "one").stdout
    assert pids == json.dumps(json.loads(pids), separators=(",", ":")) + "\n"
    for words, said in (
        (("create", "one"), "container with given ID already exists"),
        (("start", "one"), "cannot start an already running container"),
        (("resume", "one"), "container not paused"),
        (("delete", "one"), "cannot delete container one that is not stopped: running"),
        (("run", "two"), "container's cgroup is not empty: 1 process(es) found"),
        (("exec", "one", "/bin/nosuch"), "exec failed: exec: "),
        (("state", "a/b"), "invalid container ID format"),
    ):
        assert said in bundle.call(*words, check=False).stderr
    bundle.call("kill", "one", "KILL")
    until(lambda: bundle.status() == "stopped")
    for words, said in (
        (("kill", "one"), "container not running"),
        (("pause", "one"), "container not running"),
        (("start", "one"), "cannot start a container that has stopped"),
        (("exec", "one", "true"), "cannot exec in a stopped container"),
    ):
        assert said in bundle.call(*words, check=False).stderr
    bundle.delete()
    assert bundle.call("list", "--format", "json").stdout == "null\n"
    bundle.configure("true", process={"cwd": "here"})
    assert "invalid configuration: process.cwd: " in bundle.call("run", "one", check=False).stderr
    assert "exists. Remove it first" in bundle.call("spec", check=False).stderr
    name, version = bundle.call("--version").stdout.splitlines()[0].split(" version ")
    assert (name, version != "") == ("crisp-oci", True)


@pytest.mark.trial("words-of-runc", "the words and forms that callers of runc look for are runc's")
def test_the_hook_that_failed_is_named_by_its_place(bundle: Bundle, tmp_path: Path) -> None:
    well, ill = ({"path": "/bin/sh", "args": ["sh", "-c", f"exit {status}"]} for status in (0, 3))
    for kind in ("createRuntime", "poststop"):
        bundle.configure("true", hooks={kind: [well, ill, well]})
        said = bundle.call("run", "one", check=False).stderr
        assert f"error running {kind} hook #1: `/bin/sh`: exit status 3" in said


@pytest.mark.trial("not-executed-is-255", "a container whose program the kernel refuses to execute ends with 255")
def test_a_program_without_its_interpreter(bundle: Bundle) -> None:
    (bundle.rootfs / "script").write_text("#!/nosuch\n")
    (bundle.rootfs / "script").chmod(0o755)
    (bundle.rootfs / "text").write_text("text")
    for program, status, words in (
        ("/script", 255, "no such file or directory"),
        ("/text", 1, "permission denied"),
        ("/nosuch", 1, "no such file or directory"),
    ):
        bundle.configure(program)
        done = bundle.call("run", "one", check=False)
        assert (done.returncode, words in done.stderr) == (status, True), done.stderr
    bundle.configure("/text")
    assert bundle.call("create", "one", check=False).returncode == 1, "what can be told by then is not left to start"


@pytest.mark.trial("no-carriage-returns", "what a container's terminal shows has no carriage returns in a pipe or file")
def test_a_terminal_into_a_pipe(bundle: Bundle) -> None:
    def typed(*words: str) -> bytes:
        pid, ours = pty.fork()
        if pid == 0:
            os.chdir(bundle.directory)
            os.environ["PYTHONPATH"] = str(REPOSITORY)
            with open("out", "wb") as file:
                os.dup2(file.fileno(), 1)
            os.execv(bundle.command()[0], bundle.command(*words))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        os.close(ours)
        return (bundle.directory / "out").read_bytes()

    bundle.configure("echo", "hi", process={"terminal": True})
    assert typed("run", "one") == b"hi\n"
    start(bundle)
    assert typed("exec", "-t", "one", "echo", "hi") == b"hi\n"
    done = subprocess.run(bundle.command("exec", "-t", "one", "nosuch"), cwd=REPOSITORY, stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert "executable file not found" in done.stderr
