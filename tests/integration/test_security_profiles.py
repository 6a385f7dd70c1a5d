"""Seccomp profiles from a registry: pulled by digest, kept apart from images, intersected with a base."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from cri.v1 import api_pb2 as cri
from tests.daemon import CALL_SECONDS, Daemon
from tests.images import OCI_MANIFEST, BuiltImage, build_image, digest, entry, layer
from tests.registry import Registry

TYPE = "application/vnd.cncf.seccomp-profile.config.v1+json"
# Directories cannot be made, and the rest is allowed: what the default profile forbids too.
PROFILE = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 71}],
}
LOOSE = {"defaultAction": "SCMP_ACT_ALLOW"}


def _artifact(profile: object, *, layers: int = 1, **manifest: Any) -> BuiltImage:
    content, config = profile if isinstance(profile, bytes) else json.dumps(profile).encode(), b"{}"
    blob = {"mediaType": "application/json", "digest": digest(content), "size": len(content)}
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": TYPE, "digest": digest(config), "size": len(config)},
        "layers": [blob] * layers,
        **manifest,
    }
    return BuiltImage(
        json.dumps(document).encode(), OCI_MANIFEST, {digest(content): content, digest(config): config}, ""
    )


@dataclass(frozen=True, slots=True)
class Node:
    daemon: Daemon
    registry: Registry


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with _running(tmp_path_factory.mktemp("registry")) as running:
        yield running


@contextmanager
def _running(directory: Path) -> Iterator[Node]:
    """A daemon, and a registry that ends first and takes its connections with it."""
    with Daemon.running() as daemon:
        daemon.import_busybox()
        with Registry(directory) as registry:
            daemon.registries_conf.write_text(f'[[registry]]\nlocation = "{registry.host}"\ninsecure = true\n')
            yield Node(daemon, registry)


def _push(registry: Registry, artifact: BuiltImage) -> str:
    return f"{registry.host}/profile@{registry.push('profile', 'latest', artifact)}"


def _pull(daemon: Daemon, reference: str, kind: cri.SecurityProfileKind.ValueType = cri.Seccomp) -> bool:
    request = cri.PullSecurityProfileRequest(image=cri.ImageSpec(image=reference), profile_kind=kind)
    return bool(daemon.images.PullSecurityProfile(request, timeout=CALL_SECONDS).cached)


def _listed(daemon: Daemon) -> dict[str, cri.SecurityProfileInfo]:
    answer = daemon.images.ListSecurityProfiles(cri.ListSecurityProfilesRequest(), timeout=CALL_SECONDS)
    return {profile.digest: profile for profile in answer.profiles}


def _with(reference: str, base: cri.SecurityProfileBase | None = None) -> cri.LinuxContainerConfig:
    profile = cri.SecurityProfile(profile_type=cri.SecurityProfile.OCI, oci_ref=reference, base_profile=base)
    return cri.LinuxContainerConfig(security_context=cri.LinuxContainerSecurityContext(seccomp=profile))


@pytest.mark.answer("PullSecurityProfileResponse")
@pytest.mark.answer("ListSecurityProfilesResponse")
@pytest.mark.answer("SecurityProfileInfo")
@pytest.mark.cri("PullSecurityProfile", "image", "profile_kind")
@pytest.mark.cri("ListSecurityProfiles")
@pytest.mark.cri("RemoveSecurityProfile", "digest")
def test_a_profile_is_pulled_once_listed_and_removed(tmp_path: Path) -> None:
    with _running(tmp_path) as node:
        _pulled_listed_and_removed(node.daemon, node.registry)


def _pulled_listed_and_removed(daemon: Daemon, registry: Registry) -> None:
    assert daemon.runtime.Status(cri.StatusRequest()).features.seccomp_profile_oci
    reference = _push(registry, _artifact(PROFILE))
    pinned, images = reference.partition("@")[2], len(daemon.images.ListImages(cri.ListImagesRequest()).images)
    assert [_pull(daemon, reference), _pull(daemon, reference)] == [False, True]
    tagged = reference.replace("@", ":latest@")
    assert _pull(daemon, tagged)
    assert list(_listed(daemon)[pinned].refs) == [reference, tagged]
    assert _listed(daemon)[pinned].size == len(json.dumps(PROFILE))
    assert len(daemon.images.ListImages(cri.ListImagesRequest()).images) == images  # it is none
    daemon.restart()
    assert list(_listed(daemon)[pinned].refs) == [reference, tagged]
    for _ in range(2):
        daemon.images.RemoveSecurityProfile(cri.RemoveSecurityProfileRequest(digest=pinned), timeout=CALL_SECONDS)
        assert pinned not in _listed(daemon)
    assert list((daemon.root / "image/profiles").iterdir()) == []


@pytest.mark.cri("CreateContainer", "security_context.seccomp")
def test_a_container_may_do_what_both_its_profile_and_the_base_allow(tmp_path: Path) -> None:
    with _running(tmp_path) as node:
        _intersected(node.daemon, node.registry)


def _intersected(daemon: Daemon, registry: Registry) -> None:
    reference = _push(registry, _artifact(PROFILE))
    assert not _pull(daemon, reference)
    loose = daemon.directory / "loose.json"
    loose.write_text(json.dumps(LOOSE))
    local = cri.SecurityProfileBase(type=cri.SecurityProfileBase.Localhost, localhost_ref=str(loose))
    # mkdir is the profile's to refuse, unshare the default base's.
    script = "mkdir /x; unshare -U true; grep Seccomp: /proc/self/status"
    with daemon.pod("profiled") as pod:
        for name, base in (("default", None), ("loose", local)):
            container_id = pod.run("sleep", "1000", name=name, linux=_with(reference, base))
            answer = pod.exec(container_id, "sh", "-c", script)
            assert b"Protocol error" in answer.stderr  # 71, EPROTO
            assert (b"Operation not permitted" in answer.stderr) == (base is None), answer.stderr
            assert answer.stdout.split() == [b"Seccomp:", b"2"]
        # What was created keeps its profile when that is removed, also over a restart.
        created = pod.create("sh", "-c", script, name="created", linux=_with(reference))
        request = cri.RemoveSecurityProfileRequest(digest=reference.partition("@")[2])
        daemon.images.RemoveSecurityProfile(request, timeout=CALL_SECONDS)
        daemon.restart()
        daemon.runtime.StartContainer(cri.StartContainerRequest(container_id=created), timeout=CALL_SECONDS)
        daemon.wait_exited(created)
        assert "Protocol error" in pod.log("created")
        for call in (
            lambda: pod.create("true", name="late", linux=_with(reference)),
            lambda: _pod_of(daemon, reference),
        ):
            with pytest.raises(grpc.RpcError) as raised:
                call()
            assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert "pull it by PullSecurityProfile first" in raised.value.details()


def _pod_of(daemon: Daemon, reference: str) -> None:
    profile = cri.SecurityProfile(profile_type=cri.SecurityProfile.OCI, oci_ref=reference)
    linux = cri.LinuxPodSandboxConfig(security_context=cri.LinuxSandboxSecurityContext(seccomp=profile))
    request = cri.RunPodSandboxRequest(config=daemon.sandbox_config("late", linux=linux))
    daemon.runtime.RunPodSandbox(request, timeout=CALL_SECONDS)


@pytest.mark.parametrize(
    ("artifact", "said"),
    [
        (_artifact(b"no JSON"), "is not JSON"),
        (_artifact([]), "does not hold a JSON object"),
        (_artifact({"defaultAction": "SCMP_ACT_MAYBE"}), "unknown action 'SCMP_ACT_MAYBE'"),
        (_artifact({**LOOSE, "listenerPath": "/run/x"}), "listenerPath"),
        (_artifact({**LOOSE, "syscalls": [{"names": ["read"], "action": "SCMP_ACT_NOTIFY"}]}), "SCMP_ACT_NOTIFY"),
        (_artifact(LOOSE, layers=2), "it has 2 layers"),
        (_artifact(LOOSE, layers=0), "it has 0 layers"),
        (_artifact(b" " * ((1 << 20) + 1)), "over the limit of 1048576"),
        (build_image([layer(entry("f", b""))]), "its type is application/vnd.oci.image.config.v1+json"),
    ],
    ids=["text", "list", "action", "listener", "notify", "two layers", "no layer", "large", "image"],
)
def test_what_is_no_profile_is_refused_for_good(node: Node, artifact: BuiltImage, said: str) -> None:
    daemon, registry = node.daemon, node.registry
    reference, before = _push(registry, artifact), set(_listed(daemon))
    with pytest.raises(grpc.RpcError) as raised:
        _pull(daemon, reference)
    assert raised.value.details().startswith("SecurityProfileInvalid: ")
    assert said in raised.value.details()
    assert set(_listed(daemon)) == before


def test_requests_that_cannot_be_served(node: Node) -> None:
    daemon, registry = node.daemon, node.registry
    reference = _push(registry, _artifact(LOOSE))
    for wrong, kind, said in (
        (f"{registry.host}/profile:latest", cri.Seccomp, "the reference must have a digest"),
        (reference, cri.SecurityProfileKindUnspecified, "profile_kind 0 is not supported"),
    ):
        with pytest.raises(grpc.RpcError) as raised:
            _pull(daemon, wrong, kind)
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert raised.value.details().startswith("SecurityProfileInvalid: ")
        assert said in raised.value.details()
    with pytest.raises(grpc.RpcError) as raised:
        _pull(daemon, f"{registry.host}/profile@sha256:{'0' * 64}")
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
