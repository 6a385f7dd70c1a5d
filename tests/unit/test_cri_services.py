"""The services over a real gRPC server on a unix socket, on top of a node made of dictionaries."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

import image.errors
import network.errors
import pods.errors
import runtime.errors
from cri.admin.v1 import admin_pb2
from cri.services.execution import MAX_OUTPUT, fitting
from cri.services.lists import PAGE_BYTES
from cri.v1 import api_pb2, api_pb2_grpc
from image.model import Image, ImageConfig
from pods.model import ContainerState, ExecResult, SandboxState
from tests.unit.cri_fakes import FakeNode, serving

POD: dict[str, Any] = {"metadata": {"name": "web", "uid": "u", "namespace": "n"}}
CONTAINER: dict[str, Any] = {"metadata": {"name": "app"}, "image": {"image": "busybox"}}


@dataclasses.dataclass
class Client:
    """Calls by name, with the members of the request as arguments."""

    node: FakeNode
    channel: Any

    async def call(self, name: str, **members: Any) -> Any:
        request = getattr(api_pb2, f"{'GetEvents' if name == 'GetContainerEvents' else name}Request")(**members)
        image_call = name in api_pb2.DESCRIPTOR.services_by_name["ImageService"].methods_by_name
        stub: Any = (api_pb2_grpc.ImageServiceStub if image_call else api_pb2_grpc.RuntimeServiceStub)(self.channel)
        method = getattr(stub, name)
        if name.startswith("Stream") or name == "GetContainerEvents":
            endless = name == "GetContainerEvents"
            return [message async for message in method(request, timeout=1 if endless else 60)]
        return await method(request, timeout=60)

    async def refused(self, name: str, **members: Any) -> tuple[str, str]:
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await self.call(name, **members)
        return refusal.value.code().name, refusal.value.details() or ""


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    node = FakeNode()
    async with serving(node, tmp_path, cgroup_driver="systemd", pause_image="pause:1") as channel:
        yield Client(node, channel)


async def test_every_call_of_cri_is_served(client: Client) -> None:
    services = api_pb2.DESCRIPTOR.services_by_name.values()
    missing = set()
    for name in [method.name for service in services for method in service.methods]:
        try:
            await client.call(name)
        except grpc.aio.AioRpcError as error:
            missing |= {name} if error.code() is grpc.StatusCode.UNIMPLEMENTED else set()
    assert missing == set()


@pytest.mark.cri("PullSecurityProfile", "auth")
async def test_a_profile_is_pulled_with_the_given_login(client: Client) -> None:
    auth = api_pb2.AuthConfig(username="u", password="p")
    members = {"image": {"image": "r.test/p@sha256:1"}, "profile_kind": api_pb2.Seccomp}
    assert (await client.call("PullSecurityProfile", auth=auth, **members)).cached
    await client.call("PullSecurityProfile", **members)
    (_, given), (_, none) = client.node.profiles.pulls
    assert given is not None
    assert (given.username, given.password, none) == ("u", "p", None)


async def test_a_pods_life(client: Client) -> None:
    run = await client.call("RunPodSandbox", config=POD, runtime_handler="crisp")
    pod_id = run.pod_sandbox_id
    status = await client.call("PodSandboxStatus", pod_sandbox_id=pod_id, verbose=True)
    assert (status.status.metadata.name, status.status.network.ip) == ("web", "1.2.3.4")
    told = json.loads(status.info["info"])
    assert (told["pid"], told["netns"], told["config"]["metadata"]["name"]) == (7, "/run/netns/x", "web")
    assert not (await client.call("PodSandboxStatus", pod_sandbox_id=pod_id)).info

    created = await client.call("CreateContainer", pod_sandbox_id=pod_id, config=CONTAINER)
    container_id = created.container_id
    await client.call("StartContainer", container_id=container_id)
    status = await client.call("ContainerStatus", container_id=container_id, verbose=True)
    assert (status.status.image.image, status.status.image_id) == ("busybox", "sha256:1")
    assert json.loads(status.info["info"])["pid"] == 8
    done = await client.call("ExecSync", container_id=container_id, cmd=["ls", "-l"], timeout=9)
    assert (done.stdout, done.stderr, done.exit_code) == (b"out", b"err", 3)
    await client.call("ReopenContainerLog", container_id=container_id)
    await client.call("StopContainer", container_id=container_id, timeout=30)
    await client.call("RemoveContainer", container_id=container_id)
    await client.call("StopPodSandbox", pod_sandbox_id=pod_id)
    await client.call("RemovePodSandbox", pod_sandbox_id=pod_id)
    assert client.node.calls == [
        ("run_sandbox", "crisp"),
        ("create_container", pod_id),
        ("start_container", container_id),
        ("exec_sync", container_id, ("ls", "-l"), 9),
        ("reopen_log", container_id),
        ("stop_container", container_id, 30),
        ("remove_container", container_id),
        ("stop_sandbox", pod_id),
        ("remove_sandbox", pod_id),
    ]


@pytest.mark.parametrize(
    ("name", "members", "said"),
    [
        ("RunPodSandbox", {}, "config: is required"),
        ("RunPodSandbox", {"config": {}}, "config.metadata: is required"),
        ("StopPodSandbox", {}, "pod_sandbox_id: is required"),
        ("CreateContainer", {"config": CONTAINER}, "pod_sandbox_id: is required"),
        ("CreateContainer", {"pod_sandbox_id": "x"}, "config: is required"),
        ("StartContainer", {}, "container_id: is required"),
        ("StopContainer", {"container_id": "x", "timeout": -1}, "timeout: -1 must be 0 or more"),
        ("ExecSync", {"container_id": "x"}, "cmd: is required"),
        ("ExecSync", {"container_id": "x", "cmd": ["a\0"]}, "cmd[0]: contains a NUL byte"),
        ("ExecSync", {"container_id": "x", "cmd": ["a"], "timeout": -1}, "timeout: -1 must be 0 or more"),
        ("PullImage", {}, "image.image: is required"),
        ("RemoveImage", {"image": {}}, "image.image: is required"),
        ("ListContainers", {"filter": {"state": {"state": 9}}}, "filter.state.state: 9 is not a ContainerState"),
    ],
)
async def test_bad_requests_never_reach_the_node(client: Client, name: str, members: Any, said: str) -> None:
    code, details = await client.refused(name, **members)
    assert code == "INVALID_ARGUMENT"
    assert said in details
    assert client.node.calls == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (pods.errors.InvalidArgument("e"), "INVALID_ARGUMENT"),
        (pods.errors.NotFound("e"), "NOT_FOUND"),
        (pods.errors.AlreadyExists("e"), "ALREADY_EXISTS"),
        (pods.errors.FailedPrecondition("e"), "FAILED_PRECONDITION"),
        (pods.errors.DeadlineExceeded("e"), "DEADLINE_EXCEEDED"),
        (pods.errors.Unavailable("e"), "UNAVAILABLE"),
        (pods.errors.Unimplemented("e"), "UNIMPLEMENTED"),
        (pods.errors.PodError("e"), "INTERNAL"),
        (image.errors.InvalidReference("e"), "INVALID_ARGUMENT"),
        (image.errors.ImageNotFound("e"), "NOT_FOUND"),
        (image.errors.RegistryBlocked("e"), "PERMISSION_DENIED"),
        (image.errors.AuthenticationRequired("e"), "UNAUTHENTICATED"),
        (image.errors.DigestMismatch("e"), "FAILED_PRECONDITION"),
        (image.errors.InvalidImage("e"), "FAILED_PRECONDITION"),
        (image.errors.ImageInUse("e"), "FAILED_PRECONDITION"),
        (image.errors.StorageFull("e"), "RESOURCE_EXHAUSTED"),
        (network.errors.NetworkNotReady("e"), "UNAVAILABLE"),
        (network.errors.PluginFailed("bridge", "ADD", 7, "e"), "INTERNAL"),
        (runtime.errors.SpecError("process.cwd", "e"), "INTERNAL"),
    ],
)
async def test_errors_keep_their_text_and_get_their_code(client: Client, error: Exception, code: str) -> None:
    client.node.failure = error
    assert await client.refused("StartContainer", container_id="x") == (code, str(error))


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (image.errors.RegistryUnavailable("e"), "UNKNOWN", "RegistryUnavailable: e"),
        (image.errors.SignatureRefused("e"), "UNKNOWN", "SignatureValidationFailed: e"),
        (image.errors.ProfileInvalid("e"), "INVALID_ARGUMENT", "SecurityProfileInvalid: e"),
        (pods.errors.ImageVolumeFailed("e"), "INTERNAL", "ImageVolumeMountFailed: e"),
        (pods.errors.ImageVolumeNotFound("e"), "NOT_FOUND", "ImageVolumeMountFailed: e"),
        (pods.errors.ImageVolumeInvalid("e"), "INVALID_ARGUMENT", "ImageVolumeMountFailed: e"),
        (pods.errors.RecursiveReadOnlyUnsupported("e"), "INVALID_ARGUMENT", "RROUnsupported: e"),
    ],
)
async def test_errors_that_kubelet_knows_begin_with_their_word(
    client: Client, error: Exception, code: str, text: str
) -> None:
    """Those of cri-api's errors package. Of a pull, kubelet's client leaves the message as it is only under UNKNOWN."""
    client.node.failure = error
    assert await client.refused("StartContainer", container_id="x") == (code, text)


async def test_an_error_of_no_family_is_internal_and_logged_whole(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    client.node.failure = KeyError("x")
    assert await client.refused("StartContainer", container_id="x") == ("INTERNAL", "StartContainer: KeyError: 'x'")
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.exc_info
    client.node.failure = ValueError("é" * 100_000)
    assert len((await client.refused("StartContainer", container_id="x"))[1]) > 1000


async def test_a_client_that_goes_away_cancels_its_call(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def start_container(_: str) -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    monkeypatch.setattr(client.node, "start_container", start_container)
    stub: Any = api_pb2_grpc.RuntimeServiceStub(client.channel)
    call = stub.StartContainer(api_pb2.StartContainerRequest(container_id="x"))
    await asyncio.wait_for(begun.wait(), 60)
    call.cancel()
    await asyncio.wait_for(cancelled.wait(), 60)


@pytest.mark.cri("ListPodSandbox", "filter")
@pytest.mark.cri("ListContainers", "filter")
@pytest.mark.cri("CreateContainer", "labels")
async def test_lists_honour_every_member_of_their_filters(client: Client) -> None:
    node = client.node
    for name in ("a", "b"):
        await client.call("RunPodSandbox", config={**POD, "labels": {"name": name, "all": "yes"}})
        pod_id = f"{len(node.pods) - 1:02}-pod"
        await client.call("CreateContainer", pod_sandbox_id=pod_id, config={**CONTAINER, "labels": {"name": name}})
    change = {"state": SandboxState.NOT_READY}
    node.pods["01-pod"] = type(node.pods["01-pod"])(**{**_members(node.pods["01-pod"]), **change})
    running = {"state": ContainerState.RUNNING}
    node.held["01-container"] = type(node.held["01-container"])(**{**_members(node.held["01-container"]), **running})

    async def pods_of(**members: Any) -> list[str]:
        return [item.id for item in (await client.call("ListPodSandbox", filter=members)).items]

    async def containers_of(**members: Any) -> list[str]:
        return [item.id for item in (await client.call("ListContainers", filter=members)).containers]

    assert await pods_of() == ["00-pod", "01-pod"]
    assert await pods_of(id="00-pod") == ["00-pod"]
    assert await pods_of(id="01") == ["01-pod"]
    assert await pods_of(id="0") == []  # more than one begins so
    assert await pods_of(state={"state": 0}) == ["00-pod"]
    assert await pods_of(state={"state": 1}) == ["01-pod"]
    assert await pods_of(label_selector={"all": "yes", "name": "b"}) == ["01-pod"]
    assert await pods_of(id="00", state={"state": 1}) == []
    assert await containers_of() == ["00-container", "01-container"]
    assert await containers_of(id="01") == ["01-container"]
    assert await containers_of(state={"state": 0}) == ["00-container"]
    assert await containers_of(state={"state": 3}) == []  # CONTAINER_UNKNOWN
    assert await containers_of(pod_sandbox_id="01") == ["01-container"]
    assert await containers_of(pod_sandbox_id="none") == []
    assert await containers_of(label_selector={"name": "a"}) == ["00-container"]
    assert await containers_of(pod_sandbox_id="00-pod", label_selector={"name": "b"}) == []


def _members(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__struct_fields__}


@pytest.mark.cri("PullImage", "image", "auth")
@pytest.mark.cri("ImageStatus", "image", "verbose")
@pytest.mark.cri("ListImages", "filter")
@pytest.mark.cri("RemoveImage", "image")
@pytest.mark.cri("ImageFsInfo")
async def test_images(client: Client) -> None:
    store = client.node.images
    busybox = Image(
        id="sha256:1", repo_tags=("busybox:1",), repo_digests=(), size=9, config=ImageConfig(user="33"), created=0
    )
    store.stored = {"busybox": busybox}
    pulled = await client.call("PullImage", image={"image": "busybox"}, auth={"username": "u", "password": "p"})
    status = await client.call("ImageStatus", image={"image": "busybox"}, verbose=True)
    assert pulled.image_ref == status.image.id == "sha256:1"
    assert json.loads(status.info["info"])["imageSpec"]["config"] == {"Cmd": ["sh"], "User": "33"}
    assert store.pulls[0][1] is not None
    assert store.pulls[0][1].password == "p"
    assert not (await client.call("ImageStatus", image={"image": "nothing"})).HasField("image")
    assert [image.id for image in (await client.call("ListImages")).images] == ["sha256:1"]
    assert not (await client.call("ListImages", filter={"image": {"image": "nothing"}})).images
    usage = await client.call("ImageFsInfo")
    told = [(one.fs_id.mountpoint, one.used_bytes.value, one.inodes_used.value)
            for one in (*usage.image_filesystems, *usage.container_filesystems)]  # fmt: skip
    assert told == [("/", 5, 6), ("/", 3, 2)]
    await client.call("RemoveImage", image={"image": "busybox"})
    await client.call("RemoveImage", image={"image": "busybox"})
    assert store.stored == {}
    store.failure = image.errors.ImageNotFound("pull x: no such image")
    assert await client.refused("PullImage", image={"image": "x"}) == ("NOT_FOUND", "pull x: no such image")


@pytest.mark.cri("StreamContainers", "filter")
@pytest.mark.cri("StreamPodSandboxes", "filter")
@pytest.mark.cri("StreamImages", "filter")
async def test_lists_in_pieces_are_whole_and_no_piece_is_large(client: Client) -> None:
    assert await client.call("StreamContainers") == []
    sandbox = (await client.call("RunPodSandbox", config=POD)).pod_sandbox_id
    for number in range(25):
        large = {**CONTAINER, "metadata": {"name": f"c{number}"}, "annotations": {"a": "b" * 200_000}}
        await client.call("CreateContainer", pod_sandbox_id=sandbox, config=large)
    sent = await client.call("StreamContainers")
    assert len(sent) == 5
    assert max(message.ByteSize() for message in sent) <= PAGE_BYTES + 100
    listed = (await client.call("ListContainers")).containers
    assert [container for message in sent for container in message.containers] == list(listed)
    stats = await client.call("StreamContainerStats", filter={"pod_sandbox_id": sandbox})
    assert sum(len(message.container_stats) for message in stats) == 25
    (pods_piece,) = await client.call("StreamPodSandboxes")
    assert [pod.id for pod in pods_piece.pod_sandboxes] == [sandbox]
    client.node.images.stored = {
        "busybox": Image(id="sha256:1", repo_tags=(), repo_digests=(), size=9, config=ImageConfig(), created=0)
    }
    (images_piece,) = await client.call("StreamImages")
    assert [found.id for found in images_piece.images] == ["sha256:1"]
    assert await client.call("StreamImages", filter={"image": {"image": "nothing"}}) == []


async def test_stats_of_a_container_that_goes_away_meanwhile_are_not_found(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = (await client.call("RunPodSandbox", config=POD)).pod_sandbox_id
    container = (await client.call("CreateContainer", pod_sandbox_id=sandbox, config=CONTAINER)).container_id

    async def none_left(_: object) -> list[object]:
        return []

    monkeypatch.setattr(client.node.stats, "containers", none_left)
    code, text = await client.refused("ContainerStats", container_id=container)
    assert code == "NOT_FOUND"
    assert container in text


async def test_an_operators_pull_tells_its_progress(client: Client) -> None:
    client.node.images.stored = {
        "busybox": Image(id="sha256:1", repo_tags=(), repo_digests=(), size=9, config=ImageConfig(), created=0)
    }
    pull = client.channel.unary_stream(
        "/crisp.v1.Admin/PullImage",
        request_serializer=admin_pb2.PullImageRequest.SerializeToString,
        response_deserializer=admin_pb2.PullImageResponse.FromString,
    )
    request = admin_pb2.PullImageRequest(reference="busybox")
    progress, last = [message async for message in pull(request)]
    assert (progress.progress.layer, progress.progress.offset, progress.progress.phase) == ("sha256:1", 1, "pulling")
    assert last.image_id == "sha256:1"
    client.node.images.failure = image.errors.RegistryUnavailable("pull busybox: no answer")
    with pytest.raises(grpc.aio.AioRpcError, match="no answer") as refusal:
        [message async for message in pull(request)]
    assert refusal.value.code() is grpc.StatusCode.UNKNOWN


@pytest.mark.cri("Version", "version")
@pytest.mark.cri("Status", "verbose")
@pytest.mark.cri("RuntimeConfig")
@pytest.mark.cri("UpdateRuntimeConfig", "runtime_config")
async def test_what_the_runtime_says_about_itself(client: Client) -> None:
    version = await client.call("Version")
    assert (version.version, version.runtime_name, version.runtime_api_version) == ("0.1.0", "crisp", "v1")
    assert version.runtime_version
    status = await client.call("Status", verbose=True)
    runtime_ready, network_ready, shims_answer = status.status.conditions
    assert (runtime_ready.type, runtime_ready.status) == ("RuntimeReady", True)
    assert (network_ready.type, network_ready.status) == ("NetworkReady", False)
    assert network_ready.reason == "NoConfiguration"
    assert (shims_answer.type, shims_answer.status) == ("ShimsAnswer", True)
    assert [handler.name for handler in status.runtime_handlers] == ["", "crisp", "runc"]
    assert [handler.features.recursive_read_only_mounts for handler in status.runtime_handlers] == [True, True, False]
    assert [handler.features.user_namespaces for handler in status.runtime_handlers] == [True, True, False]
    assert status.features.supplemental_groups_policy
    assert json.loads(status.info["info"])["config"]["pause_image"] == "pause:1"
    assert not (await client.call("Status")).info
    config = await client.call("RuntimeConfig")
    assert config.linux.cgroup_driver == api_pb2.CgroupDriver.SYSTEMD
    await client.call("UpdateRuntimeConfig", runtime_config={"network_config": {"pod_cidr": "10.0.0.0/24"}})


async def test_output_of_a_command_fits_kubelets_message(client: Client) -> None:
    client.node.execution = ExecResult(stdout=b"o" * (16 << 20), stderr=b"e" * (16 << 20), exit_code=-(2**31))
    response = await client.call("ExecSync", container_id="x", cmd=["yes"])
    assert (16 << 20) - 128 < response.ByteSize() <= 16 << 20
    assert len(response.stdout) == len(response.stderr)
    whole, small = fitting(b"o" * (16 << 20), b"e")
    assert (len(whole), small) == (MAX_OUTPUT - 1, b"e")


async def test_a_request_above_kubelets_limit_is_refused(client: Client) -> None:
    code, _ = await client.refused("RunPodSandbox", config={**POD, "annotations": {"a": "b" * (17 << 20)}})
    assert code == "RESOURCE_EXHAUSTED"
