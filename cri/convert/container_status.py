"""Converts containers for ContainerStatus and ListContainers."""

from __future__ import annotations

from cri.convert import fields
from cri.convert.image import image_spec_message
from cri.convert.resources import resources_message
from cri.convert.security import id_mapping_messages
from cri.convert.signals import signal_message
from cri.v1 import api_pb2
from pods.model import Container, ContainerState, Mount

_STATES = {
    ContainerState.CREATED: api_pb2.ContainerState.CONTAINER_CREATED,
    ContainerState.RUNNING: api_pb2.ContainerState.CONTAINER_RUNNING,
    ContainerState.EXITED: api_pb2.ContainerState.CONTAINER_EXITED,
}


def container_states(path: str, number: int) -> tuple[ContainerState, ...]:
    """Return the states that a filter selects. No container is ever CONTAINER_UNKNOWN."""
    if number not in api_pb2.ContainerState.values():
        raise fields.invalid(path, number, "is not a ContainerState of CRI v1")
    return tuple(state for state, known in _STATES.items() if number == known)


def container_item(container: Container) -> api_pb2.Container:
    """Convert a container to an entry of ListContainers."""
    config = container.config
    return api_pb2.Container(
        id=container.id,
        pod_sandbox_id=container.sandbox_id,
        metadata=api_pb2.ContainerMetadata(name=config.metadata.name, attempt=config.metadata.attempt),
        image=image_spec_message(config.image),
        image_ref=container.image_ref,
        image_id=container.image_id,
        state=_STATES[container.state],
        created_at=container.created_at,
        labels=config.labels,
        annotations=config.annotations,
    )


def container_status(container: Container) -> api_pb2.ContainerStatus:
    """Convert a container for ContainerStatus. kubelet copies resources and user into the pod's status."""
    config, user = container.config, container.user
    return api_pb2.ContainerStatus(
        id=container.id,
        metadata=api_pb2.ContainerMetadata(name=config.metadata.name, attempt=config.metadata.attempt),
        state=_STATES[container.state],
        created_at=container.created_at,
        started_at=container.started_at,
        finished_at=container.finished_at,
        exit_code=container.exit_code,
        image=image_spec_message(config.image),
        image_ref=container.image_ref,
        image_id=container.image_id,
        reason=container.reason,
        message=container.message,
        labels=config.labels,
        annotations=config.annotations,
        mounts=_mounts(container),
        log_path=container.log_path,
        resources=api_pb2.ContainerResources(linux=resources_message(container.resources)),
        user=api_pb2.ContainerUser(
            linux=api_pb2.LinuxContainerUser(uid=user.uid, gid=user.gid, supplemental_groups=user.additional_gids)
        ),
        stop_signal=signal_message(container.stop_signal),
    )


def _mounts(container: Container) -> list[api_pb2.Mount]:
    images = {mounted.mount: mounted.image_id for mounted in container.mounted_images}
    return [_mount(mount, images.get(index, "")) for index, mount in enumerate(container.config.mounts)]


def _mount(mount: Mount, image_id: str) -> api_pb2.Mount:
    return api_pb2.Mount(
        container_path=mount.container_path,
        host_path=mount.host_path,
        readonly=mount.readonly,
        recursive_read_only=mount.recursive_read_only,
        selinux_relabel=mount.selinux_relabel,
        propagation=api_pb2.MountPropagation.ValueType(mount.propagation),
        uidMappings=id_mapping_messages(mount.uid_mappings),
        gidMappings=id_mapping_messages(mount.gid_mappings),
        image=image_spec_message(mount.image, image_id) if mount.image else None,
        image_sub_path=mount.image_sub_path,
        mount_options=mount.mount_options,
    )
