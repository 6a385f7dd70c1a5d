"""What callers of runc (podman, containerd, buildah, GPU tool kits) lean on: flags, words, defaults and statuses."""

from __future__ import annotations

import array
import json
import os
import pty
import socket
import subprocess
from pathlib import Path

import pytest

from cri.v1 import api_pb2 as cri
from linux import syscalls
from runtime.cgroups import Hierarchies
from tests.daemon import Daemon
from tests.oci import PARENT, REPOSITORY, Bundle, cgroup_file
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


@pytest.mark.trial("pidfd-socket", "--pidfd-socket of create, run and exec gives a pidfd of the process")
def test_a_pidfd_by_socket(bundle: Bundle) -> None:
    path = str(bundle.directory / "pidfd")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def got() -> tuple[bytes, int]:
            with listener.accept()[0] as connection:
                said, ancillary, _flags, _address = connection.recvmsg(64, socket.CMSG_LEN(4))
            (pidfd,) = array.array("i", ancillary[0][2])
            lines = Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines()
            os.close(pidfd)
            return said, int(next(line for line in lines if line.startswith("Pid:")).split()[1])

        bundle.configure("sleep", "100")
        pid = bundle.create("--pidfd-socket", path)
        assert got() == (b"standard", pid)
        bundle.call("start", "one")
        pid_file = bundle.directory / "pid"
        command = bundle.command("exec", "-d", "--pidfd-socket", path, "--pid-file", str(pid_file), "one", "sleep", "9")
        subprocess.run(command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
        assert got() == (b"setns", int(pid_file.read_text()))
        bundle.delete()
        subprocess.run(bundle.command("run", "-d", "--pidfd-socket", path, "one"), cwd=bundle.directory, check=True,
                       env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
                       stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)  # fmt: skip
        assert got() == (b"standard", bundle.state()["pid"])
        bundle.delete()
    assert "send pidfd to" in bundle.call("run", "--pidfd-socket", path, "one", check=False).stderr
    assert "does not exist" in bundle.call("state", "one", check=False).stderr


@pytest.mark.trial("exec-cgroups", "exec --cgroup takes CONTROLLER[,CONTROLLER]:PATH several times, or one PATH")
def test_an_exec_in_cgroups_below(bundle: Bundle) -> None:
    start(bundle)
    homes = Hierarchies.detect()
    for name in ("sub", "sub2"):
        for mountpoint in homes.mountpoints():
            os.mkdir(f"{mountpoint}{PARENT}/one/{name}")
        if cpuset := homes.v1.get("cpuset"):
            for file in ("cpuset.cpus", "cpuset.mems"):
                given = Path(f"{cpuset}{PARENT}/one/{file}").read_text()
                Path(f"{cpuset}{PARENT}/one/{name}/{file}").write_text(given)

    def places(*flags: str) -> dict[str, str]:
        pid_file = bundle.directory / "pid"
        command = bundle.command("exec", "-d", "--pid-file", str(pid_file), *flags, "one", "sleep", "100")
        subprocess.run(command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
        pid = int(pid_file.read_text())
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        os.kill(pid, 9)
        until(lambda: not os.path.exists(f"/proc/{pid}/ns/mnt"))
        return {names: path.partition("/one")[2] for _number, names, path in (line.split(":", 2) for line in lines)}

    all_below = places("--cgroup", "sub")
    assert {all_below[names] for names in all_below if names} == {"/sub"}
    for wrong in (["../other"], ["sub", "sub2"], ["nosuch:sub"], [":sub"]):
        flags = [word for path in wrong for word in ("--cgroup", path)]
        assert bundle.call("exec", *flags, "one", "true", check=False).returncode == 255
    if homes.pure_v2:
        return
    found = places("--cgroup", "memory,pids:sub", "--cgroup", "cpu:/sub2")
    assert (found["memory"], found["pids"], found["freezer"], found[""]) == ("/sub", "/sub", "", "")
    assert next(path for names, path in found.items() if "cpu" in names.split(",")) == "/sub2"
    twice = ["--cgroup", "memory:sub", "--cgroup", "memory:sub2"]
    assert "invalid --cgroup argument" in bundle.call("exec", *twice, "one", "true", check=False).stderr


@pytest.mark.trial("update-one-limit", "update of one limit alone goes by the others that are there")
def test_updates_of_one_limit(bundle: Bundle) -> None:
    limits = {"memory": {"limit": 32 << 20}, "cpu": {"quota": 50000, "period": 100000}, "pids": {"limit": 0}}
    bundle.configure("sleep", "100", linux={"resources": limits})
    bundle.create()
    bundle.call("start", "one")
    assert cgroup_file("pids.max") == "1"
    bundle.call("update", "--memory-swap", "64m", "one")
    bundle.call("update", "--memory", "48MiB", "one")
    bundle.call("update", "one", "--cpu-quota", "20000")
    bundle.call("update", "one", "--cpu-period", "50000")
    assert "less than the memory limit" in bundle.call("update", "--memory", "80m", "one", check=False).stderr
    if not Hierarchies.detect().pure_v2:
        swap = Path(f"/sys/fs/cgroup/memory{PARENT}/one/memory.memsw.limit_in_bytes")
        assert not swap.exists() or swap.read_text() == f"{64 << 20}\n"
        assert cgroup_file("memory.limit_in_bytes") == str(48 << 20)
        assert (cgroup_file("cpu.cfs_quota_us"), cgroup_file("cpu.cfs_period_us")) == ("20000", "50000")
    bundle.call("update", "--memory", "-1", "one")
    bundle.call("update", "-r", "-", "one", stdin='{"PIDS": {"Limit": 9}, "Devices": [{"Allow": false}]}')
    assert cgroup_file("pids.max") == "9"
    bundle.call("update", "--pids-limit", "0", "one")
    assert cgroup_file("pids.max") == "1"


@pytest.mark.trial("user-namespace-by-file", "a user namespace is joined by any path; its mappings are read")
def test_a_user_namespace_by_a_mounted_file(bundle: Bundle) -> None:
    with subprocess.Popen(["unshare", "--user", "sleep", "100"]) as holder:
        try:
            ours = os.readlink("/proc/self/ns/user")
            until(lambda: os.readlink(f"/proc/{holder.pid}/ns/user") != ours)
            for name in ("uid_map", "gid_map"):
                Path(f"/proc/{holder.pid}/{name}").write_text("0 70000 1000\n")
            place = bundle.directory / "user"
            place.touch()
            syscalls.mount(f"/proc/{holder.pid}/ns/user", str(place), None, syscalls.MS_BIND)
        finally:
            holder.kill()
    kinds = [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network")]
    bundle.configure("sleep", "100", linux={"namespaces": [*kinds, {"type": "user", "path": str(place)}]})
    try:
        pid = bundle.create()
        bundle.call("start", "one")
    finally:
        syscalls.umount2(str(place), syscalls.MNT_DETACH)
    assert Path(f"/proc/{pid}/uid_map").read_text().split() == ["0", "70000", "1000"]
    assert os.stat(f"/proc/{pid}").st_uid == 70000
    assert bundle.call("exec", "one", "id").stdout == "uid=0 gid=0\n"
    bundle.delete()
    bundle.configure("true", linux={"namespaces": [*kinds, {"type": "user", "path": "/proc/self/ns/net"}]})
    assert "expected a user namespace" in bundle.call("run", "one", check=False).stderr


@pytest.mark.trial("members-in-any-case", "members of config.json are taken in any case, as by Go's decoder")
def test_a_configuration_in_another_case(bundle: Bundle) -> None:
    bundle.configure("echo", "hi", annotations={"A": "b"})
    path = bundle.directory / "config.json"
    path.write_text(path.read_text().replace('"args"', '"Args"').replace('"annotations"', '"ANNOTATIONS"'))
    assert bundle.call("run", "one").stdout == "hi\n"
    bundle.create()
    assert bundle.state()["annotations"] == {"A": "b"}


@pytest.mark.trial("exec-debug", "--debug tells what exec does, and no value of the environment")
def test_debug_of_an_exec(bundle: Bundle) -> None:
    start(bundle)
    log = bundle.directory.parent / "log"
    flags = ("--debug", "--log", str(log), "--log-format", "json")
    bundle.call(*flags, "exec", "-e", "TOKEN=secret", "one", "sh", "-c", "exit 3", check=False)
    records = [json.loads(line) for line in log.read_text().splitlines()]
    said = " ".join(record["msg"] for record in records)
    assert {record["level"] for record in records} == {"debug"}
    assert all(word in said for word in ("`sh`", "0:0", f"{PARENT}/one", "ended with 3"))
    assert "secret" not in said


@pytest.mark.trial("notify-socket", "a manager at $NOTIFY_SOCKET is told when the container's program says it is ready")
@pytest.mark.parametrize("how", ["run", "run -d", "start"])
def test_a_manager_is_told_that_a_container_is_ready(bundle: Bundle, how: str) -> None:
    bundle.configure("sleep", "100")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        path = str(bundle.directory / "manager")
        manager.bind(path)
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "NOTIFY_SOCKET": path}
        if how == "start":
            subprocess.run(bundle.command("create", "one"), cwd=bundle.directory, env=environment, check=True,
                           stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)  # fmt: skip
        with subprocess.Popen(bundle.command(*how.split(), "one"), cwd=bundle.directory, env=environment,
                              stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as waiting:  # fmt: skip
            until(lambda: bundle.call("state", "one", check=False).stdout and bundle.status() == "running")
            state = bundle.state()
            assert waiting.poll() is None
            there = f"/proc/{state['pid']}/root/run/notify/notify.sock"
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as program:
                program.connect(there)
                program.send(b"STATUS=soon")
                program.send(b"STATUS=now\nREADY=1")
            assert manager.recv(4096).decode() == f"READY=1\nMAINPID={state['pid']}"
            if how == "run":
                bundle.call("kill", "one", "KILL")
            assert waiting.wait(20) == (128 + 9 if how == "run" else 0)
    if how != "run":
        environ = Path(f"/proc/{state['pid']}/environ").read_bytes().split(b"\0")
        assert b"NOTIFY_SOCKET=/run/notify/notify.sock" in environ


@pytest.mark.skipif("hugetlb" not in Hierarchies.detect().unified_controllers, reason="cgroup v2 has no hugetlb")
@pytest.mark.trial("exec-beside-a-manager", "exec works in a container that has cgroups of its own, on cgroup v2")
def test_an_exec_where_the_container_has_cgroups_of_its_own(bundle: Bundle, daemon: Daemon) -> None:
    """As with systemd, or containers, in a container: its cgroup takes no process itself."""

    def divide(pid: int) -> None:
        own = Path(f"/proc/{pid}/cgroup").read_text().rpartition("0::")[2].strip()
        root = Path(Hierarchies.detect().unified)
        inner = root / own[1:] / "init.scope"
        inner.mkdir()
        (inner / "cgroup.procs").write_text(str(pid))
        for above in reversed(inner.parents):
            if above.is_relative_to(root):
                (above / "cgroup.subtree_control").write_text("+hugetlb")

    start(bundle)
    divide(bundle.state()["pid"])
    assert "/init.scope\n" in bundle.call("exec", "one", "cat", "/proc/self/cgroup").stdout
    with daemon.pod("divided") as pod:
        container = pod.run("sleep", "100")
        found = json.loads(daemon.runtime.ContainerStatus(
            cri.ContainerStatusRequest(container_id=container, verbose=True)).info["info"])  # fmt: skip
        divide(found["pid"])
        assert b"/init.scope\n" in pod.exec(container, "cat", "/proc/self/cgroup").stdout
