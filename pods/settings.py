"""The node's settings from the configuration, and the paths where it stores things."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from image.settings import ImageSettings
from runtime.handler import Handler


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """`root` survives a reboot, `state` does not."""

    root: Path
    state: Path
    cni_conf_dir: Path
    cni_bin_dirs: tuple[Path, ...]
    registries_conf: Path
    cgroup_driver: str
    pull_memory_limit: int  # bytes, for all workers of images; 0 for a share of the machine's
    pause_image: str
    trace_start: bool
    checkpoint_images: bool  # whether containers are made from images that hold a checkpoint
    enable_unprivileged_ports: bool  # in pods with a network namespace of their own
    enable_unprivileged_icmp: bool
    cdi_spec_dirs: tuple[Path, ...]  # later ones win
    hooks_dirs: tuple[Path, ...]  # later ones win
    runtime_handlers: Mapping[str, Handler]  # other OCI runtimes
    shim_sleep: int  # seconds without anything to do, after which a pod's shim ends until it is needed; 0 for never
    container_log_limit: int  # bytes of one log, 0 for any; the one before is kept beside it
    container_log_rate: int  # bytes a second of one container, 0 for any; what is above is dropped
    container_log_rate_most: int  # how far pods may raise that, bytes a second
    container_disk_limit: int  # bytes of a container's own files, 0 for any
    container_disk_limit_most: int  # how far pods may raise that, bytes
    recording_bytes: int  # of one pod (pods.recorder)
    recordings_kept: int  # of pods that are gone
    recordings_hours: int  # that long
    selinux: bool  # whether pods that ask for no label get one, on a machine with SELinux
    seccomp_denials: bool  # the kernel reports calls that profiles answer with an error
    record_last_words: bool  # the last lines of a container that ended with an error
    images: ImageSettings

    def sandbox_dir(self, sandbox_id: str) -> Path:
        return _below(self.state, "sandboxes", sandbox_id)

    def bundle_dir(self, container_id: str) -> Path:
        return _below(self.state, "containers", container_id)

    def container_root(self, container_id: str) -> Path:
        return _below(self.root, "containers", container_id)

    def directories_of(self, container_id: str) -> tuple[Path, Path]:
        """Return all directories of a container."""
        return self.bundle_dir(container_id), self.container_root(container_id)

    def netns_path(self, sandbox_id: str) -> Path:
        # Where `ip netns` and network agents in containers look for namespaces.
        return Path("/run/netns") / f"crisp-{sandbox_id}"


@lru_cache(maxsize=256)
def _below(directory: Path, kind: str, object_id: str) -> Path:
    """Cached: each call of a container asks for its paths several times, and joining takes as long as a system call."""
    return directory / kind / object_id
