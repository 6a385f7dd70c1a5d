"""crisp-oci, runc's command line, on bundles of busybox."""

from __future__ import annotations

import array
import json
import os
import pty
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.oci import PARENT, REPOSITORY, Bundle, Finished, cgroup_file
from tests.waiting import until

Run = Callable[..., Finished]


@pytest.mark.oci("process.args", "process.env", "process.user.uid", "process.user.gid", "hostname", "root.path")
@pytest.mark.oci("linux.cgroupsPath")
def test_run_streams_identity_and_exit_code(bundle: Bundle) -> None:
    bundle.configure("sh", "-c", "id; hostname; echo $$; cat; exit 5", process={"user": {"uid": 7, "gid": 8}})
    done = bundle.call("run", "one", stdin="typed\n", check=False)
    assert done.stdout == "uid=7 gid=8\nalone\n1\ntyped\n"
    assert done.returncode == 5


def test_a_seccomp_filter(bundle: Bundle) -> None:
    profile = {"defaultAction": "SCMP_ACT_ALLOW",
               "syscalls": [{"names": ["uname"], "action": "SCMP_ACT_ERRNO", "errnoRet": 123}]}  # fmt: skip
    bundle.configure("hostname", linux={"seccomp": profile})
    done = bundle.call("run", "one", check=False)
    assert done.returncode != 0 or done.stdout != "alone\n"


def test_a_filter_without_the_gates_calls_makes_the_interpreter_wait(bundle: Bundle) -> None:
    """A profile that kills on execveat works as with other runtimes, which need no such call either."""
    rule = {"names": ["execveat"], "action": "SCMP_ACT_KILL_PROCESS"}
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}
    bundle.configure("sh", "-c", "echo ran", linux={"seccomp": profile})
    pid = bundle.create()
    assert "crisp-gate" not in os.readlink(f"/proc/{pid}/exe")
    assert os.statvfs(f"/proc/{pid}/exe").f_flag & os.ST_RDONLY  # CVE-2019-5736
    bundle.call("start", "one")
    until(lambda: bundle.status() == "stopped")
    assert bundle.output() == "ran\n"


def test_a_program_that_leads_back_to_its_caller_finds_no_interpreter(bundle: Bundle) -> None:
    """CVE-2019-5736."""
    evil = bundle.rootfs / "evil"
    evil.write_text("#!/proc/self/exe -c print(1)\n")
    evil.chmod(0o755)
    bundle.configure("/evil")
    done = bundle.call("run", "one", check=False)
    assert done.returncode != 0
    assert "1\n" not in done.stdout
    bundle.configure("sleep", "100")
    bundle.create()
    bundle.call("start", "one")
    done = bundle.call("exec", "one", "/evil", check=False)
    assert done.returncode != 0
    assert "1\n" not in done.stdout


def test_two_phases(bundle: Bundle) -> None:
    """The init survives its creator, waits small, and does not run the program before `start`."""
    bundle.configure("sh", "-c", "echo started; exec sleep 100")
    pid = bundle.create()
    state = bundle.state()
    assert (state["status"], state["pid"], state["id"]) == ("created", pid, "one")
    assert state["bundle"] == str(bundle.directory)
    assert bundle.output() == ""
    resident = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    assert int(resident.split()[1]) < 100  # KiB
    bundle.call("start", "one")
    until(lambda: "started" in bundle.output())
    assert bundle.status() == "running"
    assert "already running" in bundle.call("start", "one", check=False).stderr
    assert "already exists" in bundle.call("create", "one", check=False).stderr
    assert "not stopped: running" in bundle.call("delete", "one", check=False).stderr
    bundle.call("kill", "one", "KILL")
    until(lambda: bundle.status() == "stopped")
    assert bundle.state()["pid"] == 0
    assert "container not running" in bundle.call("kill", "one", check=False).stderr
    assert "has stopped" in bundle.call("start", "one", check=False).stderr
    bundle.call("delete", "one")
    assert "does not exist" in bundle.call("state", "one", check=False).stderr
    assert "does not exist" in bundle.call("delete", "one", check=False).stderr


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("nosuch", 'exec: "nosuch": executable file not found in $PATH'),
        ("/nosuch", 'exec: "/nosuch": stat /nosuch: no such file or directory'),
        ("/bin", 'exec: "/bin": permission denied'),
        ("/text", 'exec: "/text": exec format error'),
    ],
)
def test_a_program_that_cannot_be_executed(bundle: Bundle, program: str, words: str) -> None:
    (bundle.rootfs / "text").write_text("")
    (bundle.rootfs / "text").chmod(0o755)
    bundle.configure(program)
    done = bundle.call("run", "one", check=False)
    status = 255 if program == "/text" else 1  # the kernel's refusal comes when the container runs
    assert (done.returncode, words in done.stderr) == (status, True), done.stderr
    bundle.configure("sleep", "100")
    bundle.create()
    done = bundle.call("exec", "one", program, check=False)
    assert (done.returncode, words in done.stderr) == (255, True), done.stderr


def test_the_log_that_others_parse(bundle: Bundle) -> None:
    log = bundle.directory.parent / "log"
    bundle.configure("nosuch")
    assert bundle.call("--log", str(log), "--log-format", "json", "create", "one", check=False).returncode == 1
    record = json.loads(log.read_text())
    assert record.keys() == {"level", "msg", "time"}
    assert (record["level"], 'exec: "nosuch"' in record["msg"]) == ("error", True)
    assert bundle.call("--version").stdout.startswith("crisp-oci version ")
    assert bundle.call("run", "--nosuch", "one", check=False).returncode == 1
    assert bundle.call("state", "../one", check=False).stderr == "crisp-oci: invalid container ID format: '../one'\n"


def test_a_configuration_that_cannot_work_leaves_nothing(bundle: Bundle) -> None:
    for linux, words in (
        ({"namespaces": [{"type": "nosuch"}]}, "linux.namespaces[0].type"),
        ({"namespaces": [{"type": "mount"}, {"type": "network", "path": "/nowhere"}]}, "/nowhere"),
        ({"resources": {"memory": {"limit": "much"}}}, "linux.resources.memory.limit"),
    ):
        bundle.configure("sh", linux=linux, hostname="")
        done = bundle.call("run", "one", check=False)
        assert done.returncode == 1
        assert words in done.stderr
        assert "Traceback" not in done.stderr
        assert bundle.call("list", "-q", check=False).stdout == ""


def test_exec(bundle: Bundle) -> None:
    bundle.configure("sleep", "100", process={"env": ["PATH=/bin", "A=1"]})
    pid = bundle.create()
    bundle.call("start", "one")
    done = bundle.call("exec", "--env", "B=2", "-u", "3:4", "-g", "5", "--cwd", "/bin", "one",
                       "sh", "-c", "id; echo $A$B $PWD; cat; exit 3", stdin="typed\n", check=False)  # fmt: skip
    assert (done.stdout, done.returncode) == ("uid=3 gid=4 groups=5\n12 /bin\ntyped\n", 3)
    process = bundle.directory / "process.json"
    process.write_text(json.dumps({"args": ["sleep", "100"], "cwd": "/", "env": ["PATH=/bin"]}))
    pid_file = bundle.directory / "pid"
    subprocess.run(bundle.command("exec", "-d", "--pid-file", str(pid_file), "--process", str(process), "one"),
                   check=True, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)  # fmt: skip
    assert json.loads(bundle.call("ps", "-f", "json", "one").stdout) == sorted([pid, int(pid_file.read_text())])
    assert len(bundle.call("ps", "one").stdout.splitlines()) == 3
    killed = bundle.call("exec", "one", "sh", "-c", "kill -9 $$", check=False)
    assert killed.returncode == 128 + 9
    bundle.call("kill", "--all", "one", "KILL")
    until(lambda: bundle.status() == "stopped")
    assert bundle.call("exec", "one", "true", check=False).returncode == 255


@pytest.mark.trial("capabilities-ambient", "What cannot be ambient is left out with a warning, and the others are.")
def test_capabilities_of_another_user(bundle: Bundle) -> None:
    """Of the container's and of an exec's: only ambient ones survive the execve."""
    given = {"bounding": ["CAP_KILL", "CAP_CHOWN"], "permitted": ["CAP_KILL", "CAP_CHOWN"], "effective": [],
             "inheritable": ["CAP_KILL", "CAP_CHOWN"], "ambient": ["CAP_KILL", "CAP_SYSLOG"]}  # fmt: skip
    process = {"capabilities": given, "user": {"uid": 1000, "gid": 1000}}
    bundle.configure("sh", "-c", "cat /proc/self/status; exec sleep 100", process=process)
    bundle.create()
    bundle.call("start", "one")
    until(lambda: "CapAmb" in bundle.output())
    assert "CAP_SYSLOG is not in process.capabilities.permitted" in bundle.output()
    assert "CapEff:\t0000000000000020" in bundle.output()
    for caps, effective in ((("CAP_CHOWN", "cap_net_raw"), "21"), ((), "20")):
        flags = [word for cap in caps for word in ("--cap", cap)]
        done = bundle.call("exec", *flags, "one", "cat", "/proc/self/status")
        assert f"CapEff:\t00000000000000{effective}" in done.stdout
        assert "CAP_SYSLOG" in done.stderr


@pytest.mark.oci("linux.resources.memory.limit", "linux.resources.pids.limit")
def test_pause_resume_and_update(bundle: Bundle) -> None:
    bundle.configure("sleep", "100", linux={"resources": {"memory": {"limit": 64 << 20}}})
    bundle.create()
    bundle.call("start", "one")
    bundle.call("pause", "one")
    assert bundle.status() == "paused"
    assert "paused" in bundle.call("exec", "one", "true", check=False).stderr
    bundle.call("resume", "one")
    assert bundle.status() == "running"
    assert "not paused" in bundle.call("resume", "one", check=False).stderr
    bundle.call("update", "--memory", "80m", "--pids-limit", "20", "one")
    assert cgroup_file("memory.limit_in_bytes") == str(80 << 20)
    assert cgroup_file("pids.max") == "20"
    bundle.call("update", "--resources", "-", "one", stdin='{"pids": {"limit": 30}, "memory": null}')
    assert cgroup_file("pids.max") == "30"
    bundle.call("pause", "one")
    bundle.call("kill", "one", "9")
    until(lambda: bundle.status() == "stopped")


@pytest.mark.oci("process.terminal", "process.consoleSize")
def test_a_terminal_by_socket(bundle: Bundle) -> None:
    size = {"height": 20, "width": 70}
    bundle.configure("sh", "-c", "tty; stty size; cat", process={"terminal": True, "consoleSize": size})
    assert "console socket" in bundle.call("create", "one", check=False).stderr
    path = bundle.directory / "console"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        bundle.create("--console-socket", str(path))
        with listener.accept()[0] as connection:
            _data, ancillary, _flags, _address = connection.recvmsg(64, socket.CMSG_LEN(4))
    (master,) = array.array("i", ancillary[0][2])
    bundle.call("start", "one")
    shown = b""
    while b"20 70\r\n" not in shown:
        shown += os.read(master, 1000)
    assert shown.startswith(b"/dev/pts/0\r\n")
    os.write(master, b"typed\n\x04")
    while b"typed\r\ntyped\r\n" not in shown:
        shown += os.read(master, 1000)
    os.close(master)


def test_a_terminal_relayed(bundle: Bundle) -> None:
    """In the foreground the caller's terminal becomes raw and is the container's; of exec's too."""
    bundle.configure("sh", "-c", "tty; read line; echo got $line; exit 6", process={"terminal": True})
    pid, ours = pty.fork()
    if pid == 0:
        os.chdir(bundle.directory)
        os.environ["PYTHONPATH"] = str(REPOSITORY)
        command = bundle.command("run", "one")
        os.execv(command[0], command)
    shown = b""
    while b"/dev/pts/0\r\n" not in shown:
        shown += os.read(ours, 1000)
    done = bundle.call("exec", "-t", "one", "sh", "-c", "tty; exit 2", check=False)
    assert (done.stdout, done.returncode) == ("/dev/pts/1\n", 2)
    os.write(ours, b"typed\r")
    while b"got typed\r\n" not in shown:
        shown += os.read(ours, 1000)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 6
    os.close(ours)


@pytest.mark.trial("signals-forwarded", "any signal to crisp-oci in the foreground reaches the container's process")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGALRM, signal.SIGIO, signal.SIGPWR])
def test_signals_reach_the_foreground(bundle: Bundle, number: int) -> None:
    bundle.configure("sh", "-c", f"trap 'exit 9' {number:d}; echo ready; while true; do sleep 0.02; done")
    with subprocess.Popen(
        bundle.command("run", "one"), stdout=subprocess.PIPE, cwd=bundle.directory,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, text=True,
    ) as running:  # fmt: skip
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        running.send_signal(number)
        assert running.wait(20) == 9


def test_run_detached_and_kept(bundle: Bundle) -> None:
    bundle.configure("sh", "-c", "exit 0")
    bundle.call("run", "--keep", "one")
    assert bundle.status() == "stopped"
    bundle.call("delete", "one")
    bundle.configure("sleep", "100")
    subprocess.run(bundle.command("run", "-d", "-b", str(bundle.directory), "one"),
                   check=True, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)  # fmt: skip
    assert bundle.status() == "running"
    (listed,) = json.loads(bundle.call("list", "--format", "json").stdout)
    assert (listed["id"], listed["status"], listed["owner"]) == ("one", "running", "root")
    assert bundle.call("list").stdout.split()[:6] == ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]


def test_preserved_descriptors(bundle: Bundle, tmp_path: Path) -> None:
    bundle.configure("sh", "-c", "echo to 3 >&3; ls /proc/self/fd")
    command = bundle.command("run", "--preserve-fds", "1", "one")
    with_three = ["sh", "-c", f'exec "$@" 3>{tmp_path}/three', "sh", *command]
    done = subprocess.run(with_three, cwd=bundle.directory, env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
                          check=True, capture_output=True, text=True)  # fmt: skip
    assert (tmp_path / "three").read_text() == "to 3\n"
    assert set(done.stdout.split()) == {"0", "1", "2", "3", "4"}  # 4 is the listing's own
    for log in ((), ("--log", f"{tmp_path}/log")):  # which is opened as descriptor 3, and none of the caller's
        done = bundle.call(*log, "run", "--preserve-fds", "1", "one", check=False)
        assert "descriptor 3 is not open" in done.stderr


@pytest.mark.oci("hooks.prestart", "hooks.createRuntime", "hooks.createContainer", "hooks.startContainer")
@pytest.mark.oci("hooks.poststart", "hooks.poststop")
@pytest.mark.oci("annotations")
def test_hooks_run_where_and_when_they_should(bundle: Bundle, tmp_path: Path) -> None:
    script, out = tmp_path / "hook", tmp_path / "out"
    script.write_text(f'#!/bin/sh\necho "$1 $KIND $(readlink /proc/self/ns/mnt) $(cat)" >>{out}\n')
    script.chmod(0o755)
    kinds = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
    hooks = {kind: [{"path": str(script), "args": ["hook", "arg"], "env": [f"KIND={kind}", "PATH=/bin:/usr/bin"],
                     "timeout": 20}] for kind in kinds}  # fmt: skip
    hooks["startContainer"] = [{"path": "/bin/sh", "args": ["sh", "-c", "cat >/state"]}]
    bundle.configure("readlink", "/proc/self/ns/mnt", hooks=hooks, annotations={"who": "me"})
    done = bundle.call("run", "one")
    lines = [line.split(" ", 3) for line in out.read_text().splitlines()]
    assert [line[1] for line in lines] == list(kinds)
    assert {line[0] for line in lines} == {"arg"}
    host = os.readlink("/proc/self/ns/mnt")
    assert [line[2] for line in lines] == [host, host, done.stdout.strip(), host, host]
    states = [json.loads(line[3]) for line in lines]
    assert [state["status"] for state in states] == ["creating", "creating", "creating", "running", "stopped"]
    assert all(state["annotations"] == {"who": "me"} for state in states)
    (own,) = {state["pid"] for state in (*states[:2], states[3])}
    assert (own > 1, states[2]["pid"]) == (True, 1)  # as the container sees itself
    assert json.loads((bundle.rootfs / "state").read_text())["status"] == "created"


@pytest.mark.parametrize("kind", ["prestart", "createRuntime", "createContainer", "startContainer", "poststart"])
def test_a_hook_that_fails_ends_the_container(bundle: Bundle, tmp_path: Path, kind: str) -> None:
    failing = {"path": "/bin/sh", "args": ["sh", "-c", "echo because; exit 4"]}
    mark = tmp_path / "stopped"
    poststop = [{"path": "/nosuch"}, {"path": "/bin/sh", "args": ["sh", "-c", f"cat >{mark}"]}]
    bundle.configure("sleep", "100", hooks={kind: [failing], "poststop": poststop})
    done = bundle.call("run", "one", check=False)
    assert done.returncode == 1
    assert f"error running {kind} hook #0: `/bin/sh`: exit status 4: because" in done.stderr
    assert "error running poststop hook #0: `/nosuch`" in done.stderr
    assert json.loads(mark.read_text())["id"] == "one"


def test_a_hook_that_takes_too_long(bundle: Bundle) -> None:
    bundle.configure("true", hooks={"createRuntime": [{"path": "/bin/sleep", "args": ["sleep", "60"], "timeout": 1}]})
    assert "no exit within 1 s" in bundle.call("run", "one", check=False).stderr


@pytest.mark.parametrize("kind", ["startContainer", "poststart"])
def test_a_start_that_hangs_in_a_hook_can_be_ended(bundle: Bundle, tmp_path: Path, kind: str) -> None:
    """And a poststart hook may use the container."""
    update = " ".join(bundle.command("update", "--pids-limit", "50", "one"))
    script = f"PYTHONPATH={REPOSITORY} {update} && echo $$ >{tmp_path}/hook" if kind == "poststart" else "echo >/hook"
    mark = (tmp_path if kind == "poststart" else bundle.rootfs) / "hook"
    script += "; exec sleep 6000"
    hook = {"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"], "timeout": 6000}
    bundle.configure("sleep", "100", hooks={kind: [hook]})
    bundle.create()
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    starting = subprocess.Popen(bundle.command("start", "one"), env=environment, stderr=subprocess.DEVNULL)
    try:
        until(lambda: mark.exists() and mark.read_text())
        bundle.call("kill", "one", "KILL")
        bundle.call("delete", "--force", "one")
        if kind == "poststart":
            os.kill(int(mark.read_text()), signal.SIGKILL)
    finally:
        starting.wait()


def test_a_cgroup_of_others_is_not_taken(bundle: Bundle) -> None:
    """They would be killed with the container."""
    bundle.configure("sleep", "100")
    bundle.create()
    done = bundle.call("create", "two", check=False)
    assert "container's cgroup is not empty: 1 process(es) found in" in done.stderr
    assert bundle.status() == "created"
    bundle.call("start", "one")
    done = bundle.call("exec", "--cgroup", "../../elsewhere", "one", "true", check=False)
    assert "is not a sub cgroup path" in done.stderr
    (bundle.root / "one/config.json").write_text("{}")  # as a version may find it that asks for more
    bundle.call("delete", "--force", "one")


def test_a_pid_file_is_not_written_through_a_link(bundle: Bundle, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("whole")
    (tmp_path / ".pid").symlink_to(victim)
    bundle.configure("sleep", "100")
    pid = bundle.create()
    assert victim.read_text() == "whole"
    assert (tmp_path / "pid").read_text() == str(pid)


def test_an_exec_without_its_filter_is_refused(bundle: Bundle) -> None:
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["acct"], "action": "SCMP_ACT_ERRNO"}]}
    bundle.configure("sleep", "100", linux={"seccomp": profile})
    bundle.create()
    bundle.call("start", "one")
    bundle.call("exec", "one", "true")
    (bundle.root / "one/filter").unlink()
    assert "filter is missing" in bundle.call("exec", "one", "true", check=False).stderr


def test_commands_at_once(bundle: Bundle) -> None:
    """Of many creations of one id one succeeds, and so does one start."""
    bundle.configure("sleep", "100")
    bundle.create()
    codes: list[int] = []
    threads = [
        threading.Thread(target=lambda: codes.append(bundle.call("start", "one", check=False).returncode))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == [0, 1, 1, 1]


@pytest.mark.oci("root.readonly")
def test_spec_runs_and_features_and_refusals(bundle: Bundle) -> None:
    bundle.call("spec")
    assert "exists" in bundle.call("spec", check=False).stderr
    config = json.loads((bundle.directory / "config.json").read_text())
    config["process"] |= {"terminal": False, "args": ["/bin/sh", "-c", "id; touch /x"]}
    config["linux"]["cgroupsPath"] = f"{PARENT}/one"
    (bundle.directory / "config.json").write_text(json.dumps(config))
    done = bundle.call("run", "one", check=False)
    assert (done.returncode, done.stdout) == (1, "uid=0 gid=0\n")
    assert "Read-only file system" in done.stderr
    features = json.loads(bundle.call("features").stdout)
    assert "mount" in features["linux"]["namespaces"]
    assert "SCMP_ACT_ERRNO" in features["linux"]["seccomp"]["actions"]
    assert "rbind" in features["mountOptions"]


def test_a_checkpoint_that_cannot_be(bundle: Bundle) -> None:
    """That one can: test_runtime_checkpoint.py."""
    bundle.configure("sleep", "100")
    bundle.create()
    assert "cannot checkpoint container one: it is created" in bundle.call("checkpoint", "one", check=False).stderr
    bundle.call("start", "one")
    for arguments, reason in (
        (("--manage-cgroups-mode", "half"), "expected one of ignore, soft, full, strict, got 'half'"),
        (("--page-server", "127.0.0.1:1"), "only whole images"),
        (("--image-path", "config.json"), "open `"),
    ):
        assert reason in bundle.call("checkpoint", *arguments, "one", check=False).stderr
    assert "criu needs root on the host" in bundle.call("--rootless", "true", "checkpoint", "one", check=False).stderr
    assert bundle.status() == "running"
    bundle.delete()
    assert "descriptors.json`: No such file" in bundle.call("restore", "--image-path", ".", "one", check=False).stderr
    assert "does not exist" in bundle.call("state", "one", check=False).stderr


def test_events(bundle: Bundle) -> None:
    limits = {"resources": {"memory": {"limit": 8 << 20}}}
    bundle.configure("sh", "-c", "until [ -e /go ]; do sleep 0.1; done; tail /dev/zero", linux=limits)
    bundle.create()
    bundle.call("start", "one")
    stats = json.loads(bundle.call("events", "--stats", "one").stdout)
    assert (stats["type"], stats["id"]) == ("stats", "one")
    assert stats["data"]["pids"]["current"] >= 1
    assert stats["data"]["memory"]["usage"]["limit"] == 8 << 20
    assert stats["data"]["cpu"]["usage"]["total"] > 0
    command = bundle.command("events", "--interval", "200ms", "one")
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        lines = [json.loads(watching.stdout.readline())]
        (bundle.rootfs / "go").touch()
        lines += [json.loads(line) for line in watching.stdout]
    assert {line["type"] for line in lines} == {"stats", "oom"}


@pytest.mark.oci("linux.namespaces", "linux.uidMappings", "linux.gidMappings")
def test_a_new_user_namespace_owns_the_others(bundle: Bundle) -> None:
    lines = [{"containerID": 0, "hostID": 100_000, "size": 65536}]
    namespaces = [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network", "user")]
    capabilities = {key: ["CAP_SYS_ADMIN"] for key in ("bounding", "effective", "permitted")}
    bundle.configure("sh", "-c", "id; hostname; hostname other && hostname; sleep 100", process={
        "capabilities": capabilities,
    }, linux={"namespaces": namespaces, "uidMappings": lines, "gidMappings": lines})  # fmt: skip
    log = bundle.directory.parent / "out"
    with log.open("w") as out:
        subprocess.run(bundle.command("run", "-d", "-b", str(bundle.directory), "one"), check=True, stdout=out,
                       stdin=subprocess.DEVNULL, cwd=REPOSITORY)  # fmt: skip
    until(lambda: "other" in log.read_text())
    assert log.read_text() == "uid=0 gid=0\nalone\nother\n"
    pid = json.loads(bundle.call("state", "one").stdout)["pid"]
    assert os.stat(f"/proc/{pid}").st_uid == 100_000
    assert bundle.call("exec", "one", "id").stdout == "uid=0 gid=0\n"
