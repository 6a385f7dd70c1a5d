"""Converts the arguments of `crisp run` to the configuration of a pod with one container. Pure."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from cri.client.errors import UsageError
from cri.client.render import parse_size
from cri.v1 import api_pb2

RUN_ANNOTATION = "crisp.run/logs"  # marks pods whose log directory the client removes
LOG_ROOT = Path("/var/log/crisp")
_CPU_PERIOD = 100_000  # microseconds, the kernel's default
_PROTOCOLS = {"tcp": api_pb2.TCP, "udp": api_pb2.UDP, "sctp": api_pb2.SCTP}
_PROPAGATION = {
    "private": api_pb2.PROPAGATION_PRIVATE,
    "rslave": api_pb2.PROPAGATION_HOST_TO_CONTAINER,
    "rshared": api_pb2.PROPAGATION_BIDIRECTIONAL,
}


def pod_name(image: str, token: str) -> str:
    """Make a DNS label from the image's short name and `token`."""
    base = image.partition("@")[0].rpartition("/")[2].partition(":")[0].lower()
    return f"{re.sub(r'[^a-z0-9]+', '-', base).strip('-')[:40] or 'run'}-{token}"


def log_directory(metadata: api_pb2.PodSandboxMetadata) -> Path:
    """Return the log directory of a pod made by `crisp run`. Raises UsageError for a name that is no file name."""
    name = f"{metadata.namespace}_{metadata.name}_{metadata.uid}"
    if "/" in name or "\0" in name:
        raise UsageError(f"name a pod {metadata.name!r}: a name must not contain a slash")
    return LOG_ROOT / name


def sandbox_config(arguments: argparse.Namespace, name: str, uid: str) -> api_pb2.PodSandboxConfig:
    """Return the pod's configuration. Raises UsageError for an invalid port."""
    metadata = api_pb2.PodSandboxMetadata(name=name, uid=uid, namespace="default")
    security = api_pb2.LinuxSandboxSecurityContext(
        privileged=arguments.privileged, namespace_options=_namespaces(arguments)
    )
    return api_pb2.PodSandboxConfig(
        metadata=metadata,
        hostname="" if arguments.host_network else name[:63],
        log_directory=str(log_directory(metadata)),
        port_mappings=[parse_port(text) for text in arguments.publish],
        annotations={RUN_ANNOTATION: "true"},
        linux=api_pb2.LinuxPodSandboxConfig(security_context=security),
    )


def container_config(arguments: argparse.Namespace, name: str, image: str) -> api_pb2.ContainerConfig:
    """Return the container's configuration; `image` is an id or reference. Raises UsageError."""
    security = api_pb2.LinuxContainerSecurityContext(
        privileged=arguments.privileged, namespace_options=_namespaces(arguments)
    )
    if arguments.user:
        user, _, group = arguments.user.partition(":")
        if user.isdecimal():
            security.run_as_user.value = int(user)
        else:
            security.run_as_username = user
        if group:
            if not group.isdecimal():
                raise UsageError(f"run as {arguments.user!r}: the group must be a number")
            security.run_as_group.value = int(group)
    return api_pb2.ContainerConfig(
        metadata=api_pb2.ContainerMetadata(name=name),
        image=api_pb2.ImageSpec(image=image, user_specified_image=arguments.image),
        args=arguments.command_line[arguments.command_line[:1] == ["--"] :],
        working_dir=arguments.workdir,
        envs=[parse_variable(text) for text in arguments.env],
        mounts=[parse_volume(text) for text in arguments.volume],
        log_path=f"{name}.log",
        linux=api_pb2.LinuxContainerConfig(resources=_resources(arguments), security_context=security),
    )


def parse_variable(text: str) -> api_pb2.KeyValue:
    """Parse an environment variable, NAME=VALUE."""
    name, separator, value = text.partition("=")
    if not name or not separator or not name.isprintable():
        raise UsageError(f"set variable {name!r}: expected NAME=VALUE")
    return api_pb2.KeyValue(key=name, value=os.fsencode(value))


def parse_volume(text: str) -> api_pb2.Mount:
    """Parse a bind mount, HOST:CONTAINER[:OPTION,...] with the options ro, rw, private, rslave, rshared."""
    host, _, rest = text.partition(":")
    inside, _, options = rest.partition(":")
    if not host or not inside.startswith("/"):
        raise UsageError(f"mount {text!r}: expected HOST:CONTAINER[:ro] with an absolute path in the container")
    # A relative host path is relative to the operator's working directory, not the daemon's.
    mount = api_pb2.Mount(host_path=str(Path(host).absolute()), container_path=inside)
    for option in filter(None, options.split(",")):
        if option in _PROPAGATION:
            mount.propagation = _PROPAGATION[option]
        elif option in ("ro", "rw"):
            mount.readonly = option == "ro"
        else:
            raise UsageError(f"mount {text!r}: unknown option {option!r}; expected ro, rw, private, rslave or rshared")
    return mount


def parse_port(text: str) -> api_pb2.PortMapping:
    """Parse a published port, [IP:]HOST:CONTAINER[/tcp|udp|sctp]."""
    ports, _, protocol = text.partition("/")
    address, _, host = ports.rpartition(":")[0].rpartition(":")
    inside = ports.rpartition(":")[2]
    if protocol not in ("", *_PROTOCOLS) or not (_is_port(host) and _is_port(inside)):
        raise UsageError(f"publish {text!r}: expected [IP:]HOST:CONTAINER[/tcp|udp|sctp]")
    return api_pb2.PortMapping(
        protocol=_PROTOCOLS[protocol or "tcp"],
        host_ip=address.strip("[]"),
        host_port=int(host),
        container_port=int(inside),
    )


def _is_port(text: str) -> bool:
    return text.isdecimal() and 0 < int(text) < 65_536


def _namespaces(arguments: argparse.Namespace) -> api_pb2.NamespaceOption:
    network = api_pb2.NODE if arguments.host_network else api_pb2.POD
    return api_pb2.NamespaceOption(network=network, pid=api_pb2.CONTAINER, ipc=api_pb2.POD)


def _resources(arguments: argparse.Namespace) -> api_pb2.LinuxContainerResources:
    resources = api_pb2.LinuxContainerResources()
    if arguments.memory:
        resources.memory_limit_in_bytes = parse_size(arguments.memory)
    if arguments.cpus is not None:
        if not 0.01 <= arguments.cpus <= 10_000:
            raise UsageError(f"limit cpus to {arguments.cpus:g}: expected between 0.01 and 10000")
        resources.cpu_period, resources.cpu_quota = _CPU_PERIOD, round(arguments.cpus * _CPU_PERIOD)
    return resources
