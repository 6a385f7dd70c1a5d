"""What the log says a call is about."""

from __future__ import annotations

from cri.subject import subject
from cri.v1 import api_pb2 as cri
from pods.errors import InvalidArgument


def test_a_call_is_about_what_its_request_names() -> None:
    metadata = cri.PodSandboxMetadata(name="a/b", namespace="ns", uid="u", attempt=2)
    run = cri.RunPodSandboxRequest(config=cri.PodSandboxConfig(metadata=metadata))
    assert subject(run) == {"pod": "ns/a/b/u/2"}
    container = cri.ContainerConfig(metadata=cri.ContainerMetadata(name="main"))
    create = cri.CreateContainerRequest(pod_sandbox_id="s", config=container)
    assert subject(create) == {"sandbox": "s", "container_name": "main"}
    assert subject(cri.ExecSyncRequest(container_id="c", cmd=["true"])) == {"container": "c"}
    assert subject(cri.PullImageRequest(image=cri.ImageSpec(image="i"))) == {"image": "i"}
    assert subject(cri.PullImageResponse(image_ref="sha256:1")) == {"image": "sha256:1"}
    assert subject(cri.VersionRequest()) == subject(InvalidArgument("unreadable")) == {}
