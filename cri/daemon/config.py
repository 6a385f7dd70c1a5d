"""crispd's configuration: the only table of its keys.

Flags, the reference, the man page, deploy/crisp.toml and the settings of each component are all derived from it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from cri import logfmt
from cri.daemon import kinds
from cri.daemon.keys import Component, Flag, keys_of, setting
from cri.plugin_policy import PluginPolicy
from image.settings import LAYER_KINDS, ImageSettings
from runtime.handler import OCI, Handler

_IMAGES = ImageSettings()  # the source of the defaults below

_SOCKETS = "Sockets and directories"
_NETWORK = "Network"
_DEVICES = "Devices"
_PLUGINS = "Plugins"
_PULLS = "Images"
_RUNTIMES = "Other runtimes"
_CGROUPS = "Cgroups"
_STREAMING = "Streaming"
_LIMITS = "Limits"
_SECURITY = "Security"
_WATCHING = "Watching"


@dataclass(frozen=True, slots=True)
class Configuration:
    """The values in force. `sources` names the flag or file that set each key; keys with a default are not in it."""

    listen: str = setting(
        _SOCKETS, kinds.LISTEN, "unix:///run/crisp/crisp.sock",
        "Socket of CRI, and of crisp. Only root may open it.",
        flag=Flag("ADDRESS", "socket of CRI"),
    )  # fmt: skip
    root: Path = setting(
        _SOCKETS, kinds.PATH, Path("/var/lib/crisp"),
        "Images, and the data of pods and containers that survives a reboot.",
        flag=Flag("DIR", "data that survives a reboot"), to=Component.NODE,
    )  # fmt: skip
    state: Path = setting(
        _SOCKETS, kinds.PATH, Path("/run/crisp"),
        "Sockets, bundles and exit statuses, which must not survive a reboot. Best on a tmpfs.",
        flag=Flag("DIR", "state that must not survive a reboot"), to=Component.NODE,
    )  # fmt: skip

    cni_conf_dir: Path = setting(
        _NETWORK, kinds.PATH, Path("/etc/cni/net.d"),
        "CNI configurations. The first one by name is the pods' network. The directory is watched.",
        flag=Flag("DIR", "CNI configurations"), to=Component.NODE,
    )  # fmt: skip
    cni_bin_dirs: tuple[Path, ...] = setting(
        _NETWORK, kinds.PATHS, (Path("/opt/cni/bin"), Path("/usr/lib/cni")),
        "Directories of CNI plugins, searched in this order.",
        flag=Flag("DIR", "CNI plugins; may be repeated", name="cni-bin-dir"), to=Component.NODE,
    )  # fmt: skip
    enable_unprivileged_ports: bool = setting(
        _NETWORK, kinds.BOOLEAN, True,
        "In a pod with a network of its own anybody may bind ports below 1024, unless its sysctls say otherwise "
        "(net.ipv4.ip_unprivileged_port_start).",
        to=Component.NODE,
    )  # fmt: skip
    enable_unprivileged_icmp: bool = setting(
        _NETWORK, kinds.BOOLEAN, True,
        "In a pod with a network of its own anybody may ping without NET_RAW, unless its sysctls say otherwise "
        "(net.ipv4.ping_group_range).",
        to=Component.NODE,
    )  # fmt: skip

    cdi_spec_dirs: tuple[Path, ...] = setting(
        _DEVICES, kinds.PATHS, (Path("/etc/cdi"), Path("/var/run/cdi")),
        "Specs of CDI devices (JSON and YAML). Later directories win.",
        to=Component.NODE,
    )  # fmt: skip
    checkpoint_images: bool = setting(
        _DEVICES, kinds.BOOLEAN, False,
        "Allow containers from images that hold a checkpoint. Their processes get the rights that the checkpoint gives "
        "them, whatever the pod asks for and admission allows.",
        to=Component.NODE,
    )  # fmt: skip
    hooks_dirs: tuple[Path, ...] = setting(
        _DEVICES, kinds.PATHS, (Path("/usr/share/containers/oci/hooks.d"), Path("/etc/containers/oci/hooks.d")),
        "OCI hooks for containers, oci-hooks(5). Files in later directories win.",
        to=Component.NODE,
    )  # fmt: skip

    selinux: bool = setting(
        _SECURITY, kinds.BOOLEAN, True,
        "On a machine with SELinux, give every pod categories of its own, and label its containers by the policy "
        "(container_t) where they ask for nothing else. If false, only containers that ask for a label get one.",
        to=Component.NODE,
    )  # fmt: skip

    nri_socket: Path | None = setting(
        _PLUGINS, kinds.PATH_IF_ANY, Path("/var/run/nri/nri.sock"),  # where plugins look
        "Socket for NRI plugins. Only root can open it; a plugin can change any container. If another runtime serves "
        "the default socket, crispd runs without plugins. Empty: no socket.",
        flag=Flag("FILE", "serve NRI plugins at this socket; off when empty"),
    )  # fmt: skip

    nri_plugins: Mapping[str, PluginPolicy] = setting(
        _PLUGINS, kinds.NRI_PLUGINS, {},
        "NRI plugins by name, each in a table of its own, such as `[nri_plugins.policy]`. `failure` says what happens "
        "to a new pod or container if the plugin is not connected or does not answer: it goes on (ignore, as for "
        "plugins without a table), it fails (fail), or it waits `wait_seconds` (60) for the plugin to connect, and "
        "then fails (wait). `seconds` (2) is the plugin's time for an answer. kubelet gives a call two minutes.",
    )  # fmt: skip

    registries_conf: Path = setting(
        _PULLS, kinds.PATH, Path("/etc/containers/registries.conf"),
        "Mirrors, insecure and blocked registries: containers-registries.conf(5).",
        flag=Flag("FILE", "containers-registries.conf(5)"), to=Component.NODE,
    )  # fmt: skip
    auth_file: Path | None = setting(
        _PULLS, kinds.PATH_IF_ANY, _IMAGES.auth_file,
        "Logins to registries: containers-auth.json(5) or docker's config.json, with credential helpers. Empty: "
        "the files of podman, skopeo and docker for root. Credentials that kubelet sends with a pull win over these.",
        flag=Flag("FILE", "logins to registries, containers-auth.json(5)"), to=Component.IMAGES,
    )  # fmt: skip
    registry_certs_dirs: tuple[Path, ...] = setting(
        _PULLS, kinds.PATHS, _IMAGES.certs_dirs,
        "CAs and client certificates for registries, <dir>/<host[:port]>/*.crt, *.cert, *.key: "
        "containers-certs.d(5).",
        to=Component.IMAGES, attribute="certs_dirs",
    )  # fmt: skip
    signature_policy: Path | None = setting(
        _PULLS, kinds.PATH_IF_ANY, _IMAGES.signature_policy,
        "Which images may be pulled and run: containers-policy.json(5). Empty: /etc/containers/policy.json if it "
        "exists, else every image.",
        flag=Flag("FILE", "containers-policy.json(5) (/etc/containers/policy.json, if any)"), to=Component.IMAGES,
    )  # fmt: skip
    registries_d: Path = setting(
        _PULLS, kinds.PATH, _IMAGES.registries_d,
        "Locations of signatures: containers-registries.d(5).",
        to=Component.IMAGES,
    )  # fmt: skip
    pull_progress_timeout: int = setting(
        _PULLS, kinds.whole(0, 86_400), int(_IMAGES.progress_timeout),
        "How long a registry may send nothing, or too little, before a pull fails; 0 for no limit.",
        unit="seconds", to=Component.IMAGES, attribute="progress_timeout",
    )  # fmt: skip
    pull_least_speed: int = setting(
        _PULLS, kinds.whole(0, 1 << 30), _IMAGES.least_speed,
        "How fast a registry must send, on average over each pull_progress_timeout, or the pull fails; 0 for as little "
        "as 64 KiB in that time.",
        unit="bytes a second", to=Component.IMAGES, attribute="least_speed",
    )  # fmt: skip
    parallel_downloads: int = setting(
        _PULLS, kinds.whole(0, 64), _IMAGES.parallel_downloads,
        "How many layers of one image are fetched and unpacked at a time; 0 for half of what the node works at (see "
        "docs/images.md), 3 at least.",
        to=Component.IMAGES,
    )  # fmt: skip
    keep_blobs: bool = setting(
        _PULLS, kinds.BOOLEAN, _IMAGES.keep_blobs,
        "Keep layers also compressed, as they came, so that `crisp image export` can write them. Takes additional disk "
        "space.",
        to=Component.IMAGES,
    )  # fmt: skip
    image_layers: str = setting(
        _PULLS, kinds.one_of(*LAYER_KINDS), _IMAGES.image_layers,
        "What the layers of new images become: directories of their files (unpacked), tars that the kernel mounts by "
        "an EROFS index (erofs; crispd does not start where it cannot), or that where it can (auto). Those that are "
        "there stay as they are.",
        flag=Flag("", "what the layers of new images become"), to=Component.IMAGES,
    )  # fmt: skip
    additional_image_stores: tuple[Path, ...] = setting(
        _PULLS, kinds.PATHS_IF_ANY, _IMAGES.additional_stores,
        "Image stores (`<root>/image` of another crisp) whose images are available here too. Read at the start, never "
        "written to.",
        to=Component.IMAGES, attribute="additional_stores",
    )  # fmt: skip
    layer_limit: int = setting(
        _PULLS, kinds.whole(0, 1 << 60), _IMAGES.layer_limit,
        "How much one layer may unpack to (64 GiB), so that a small download cannot fill the disk; 0 for no limit.",
        unit="bytes", to=Component.IMAGES,
    )  # fmt: skip
    pull_memory_limit: int = setting(
        _PULLS, kinds.whole(0, 1 << 60), 0,
        "How much memory all processes that unpack layers may take together, by their cgroup, with what they have "
        "written and is not yet on the disk; 0 for a quarter of the machine's, and 1 GiB at least.",
        unit="bytes", to=Component.NODE,
    )  # fmt: skip
    pause_image: str = setting(
        _PULLS, kinds.STRING, "",
        "An image to report as pinned, so that kubelet's garbage collection keeps it. Pods need no pause image.",
        flag=Flag("NAME", "image reported as pinned; pods need none"), to=Component.NODE,
    )  # fmt: skip

    runtime_handlers: Mapping[str, Handler] = setting(
        _RUNTIMES, kinds.RUNTIMES, {},
        'Other OCI runtimes, each in a table of its own, such as `[runtime_handlers.runc]` with '
        '`path = "/usr/sbin/runc"`. A RuntimeClass names one as its handler. gVisor\'s runsc needs `kind = "gvisor"`. '
        '`options` is a list of flags for every command, such as `["--platform=systrap"]`.',
        to=Component.NODE,
    )  # fmt: skip

    cgroup_driver: str = setting(
        _CGROUPS, kinds.one_of("cgroupfs", "systemd"), "cgroupfs",
        "Who makes cgroups. Must be the same as kubelet's; kubelet 1.34 and later asks crisp.",
        flag=Flag("", "who makes cgroups"), to=Component.NODE,
    )  # fmt: skip

    stream_addr: str = setting(
        _STREAMING, kinds.ADDRESS, "127.0.0.1:0",
        "Address of the streaming server (exec, attach, port-forward). Port 0 takes a free one.",
        flag=Flag("HOST:PORT", "address of the streaming server"), to=Component.STREAMING, attribute="address",
    )  # fmt: skip
    stream_tls_cert: Path | None = setting(
        _STREAMING, kinds.PATH_IF_ANY, None,
        "Certificate (PEM) to serve streams over TLS. Needs stream_tls_key.",
        flag=Flag("FILE", "serve streaming over TLS with this certificate (PEM)"),
        to=Component.STREAMING, attribute="cert",
    )  # fmt: skip
    stream_tls_key: Path | None = setting(
        _STREAMING, kinds.PATH_IF_ANY, None,
        "Key (PEM) of stream_tls_cert.",
        flag=Flag("FILE", "key (PEM) of --stream-tls-cert"), to=Component.STREAMING, attribute="key",
    )  # fmt: skip
    stream_tls_ca: Path | None = setting(
        _STREAMING, kinds.PATH_IF_ANY, None,
        "CA certificate (PEM): clients must have a certificate signed by it.",
        flag=Flag("FILE", "accept only clients with a certificate of this CA (PEM)"),
        to=Component.STREAMING, attribute="ca",
    )  # fmt: skip

    shim_sleep: int = setting(
        _LIMITS, kinds.whole(0, 86_400), 0,
        "After how long without anything to do a pod's shim gives its memory back, until a call, a line of a log or "
        "the end of a process needs it; 0 for never, 30 is a good value. New, so it is not the default yet. It holds "
        "for pods made after the next start. Needs Linux 6.15.",
        unit="seconds", to=Component.NODE,
    )  # fmt: skip
    container_disk_limit: int = setting(
        _LIMITS, kinds.whole(0, 1 << 50), 0,
        "How much the files of a container may take that are its own: its writable layer, and the volumes that its "
        "image declares; 0 for any. Above it writes fail, with EDQUOT or on XFS ENOSPC. root must be on a file system "
        "that enforces project quotas (ext4 or XFS, mounted with prjquota), or crispd does not start. In force for "
        "containers that are created from then on.",
        unit="bytes", to=Component.NODE,
    )  # fmt: skip
    container_disk_limit_most: int = setting(
        _LIMITS, kinds.whole(0, 1 << 50), 0,
        "How far a pod's annotation crisp/disk-limit may raise container_disk_limit. With less than that, as by "
        "default, annotations can only lower it. Where container_disk_limit is 0 they may ask for any.",
        unit="bytes", to=Component.NODE,
    )  # fmt: skip
    log_level: str = setting(
        _WATCHING, kinds.one_of(*logfmt.LEVELS), "info",
        "The lowest level to log, to standard error.",
        flag=Flag("", "the lowest level to log, to standard error"), reloaded=True,
    )  # fmt: skip
    metrics_addr: str = setting(
        _WATCHING, kinds.ADDRESS_IF_ANY, "",
        "Address for Prometheus metrics of crispd itself, http://ADDRESS/metrics, such as 127.0.0.1:9091; empty is "
        "off. Anybody who can connect can read them: use a loopback address.",
        flag=Flag("HOST:PORT", "address of Prometheus metrics; off when not given"),
    )  # fmt: skip
    trace_start: bool = setting(
        _WATCHING, kinds.BOOLEAN, False,
        "Log each step of a pod's and container's start, with its duration.",
        flag=Flag("", "log each step of a start and its duration"), reloaded=True, to=Component.NODE,
    )  # fmt: skip
    container_log_limit: int = setting(
        _WATCHING, kinds.whole(0, 1 << 50), 0,
        "How large a container's log may become before crisp begins a new one and keeps the last beside it, as NAME.1; "
        "0 for any size. kubelet rotates logs too (containerLogMaxSize), but looks only every ten seconds: choose "
        "several times its size. In force for containers that start from then on.",
        unit="bytes", to=Component.NODE,
    )  # fmt: skip
    container_log_rate: int = setting(
        _WATCHING, kinds.whole(0, 1 << 40), 0,
        "How many bytes a second of a container's output are logged; 0 for any. Lines above it are dropped, and a line "
        "of the log says how many; the container is not held up, and who is attached to it gets everything. A quarter "
        "of a MiB, or one second's bytes if that is more, may come at once. In force for containers that start from "
        "then on.",
        unit="bytes", to=Component.NODE,
    )  # fmt: skip
    container_log_rate_most: int = setting(
        _WATCHING, kinds.whole(0, 1 << 40), 0,
        "How far a pod's annotation crisp/log-rate may raise container_log_rate. With less than that, as by default, "
        "annotations can only lower it. Where container_log_rate is 0 they may ask for any.",
        unit="bytes", to=Component.NODE,
    )  # fmt: skip
    recording_bytes: int = setting(
        _WATCHING, kinds.whole(4096, 1 << 20), 16 << 10,
        "How much of what happens to a pod is recorded, for `crisp why`; the oldest makes room.",
        unit="bytes", to=Component.NODE,
    )  # fmt: skip
    recordings_kept: int = setting(
        _WATCHING, kinds.whole(0, 100_000), 200,
        "Of how many pods that are gone the recording is kept, the latest.",
        to=Component.NODE,
    )  # fmt: skip
    recordings_hours: int = setting(
        _WATCHING, kinds.whole(1, 8_760), 24,
        "How long it is kept.",
        unit="hours", to=Component.NODE,
    )  # fmt: skip
    record_last_words: bool = setting(
        _WATCHING, kinds.BOOLEAN, True,
        "Record the last lines that a container wrote before it ended with an error. It may hold what the program "
        "should not have logged.",
        to=Component.NODE,
    )  # fmt: skip
    seccomp_denials: bool = setting(
        _WATCHING, kinds.BOOLEAN, False,
        "Have the kernel report each system call that a container's seccomp profile answers with an error, so that "
        "`crisp seccomp denials` and `crisp why` name it. Containers notice nothing; the kernel's log gets a line for "
        "many of these calls.",
        to=Component.NODE,
    )  # fmt: skip
    tracing_endpoint: str = setting(
        _WATCHING, kinds.ADDRESS_IF_ANY, "",
        "OpenTelemetry collector to send traces to, by OTLP over gRPC without TLS, such as 127.0.0.1:4317; empty "
        "is off. Needs the Python packages of the extra `tracing`.",
        flag=Flag("HOST:PORT", "OpenTelemetry collector (OTLP over gRPC); off when not given"),
        to=Component.TRACING, attribute="endpoint",
    )  # fmt: skip
    tracing_sampling_rate_per_million: int = setting(
        _WATCHING, kinds.whole(0, 1_000_000), 0,
        "How many of a million calls start a trace. A call whose caller has a trace, as kubelet with its own "
        "`tracing`, follows the caller's decision.",
        flag=Flag("N", "how many of a million calls start a trace"),
        to=Component.TRACING, attribute="sampling_rate_per_million",
    )  # fmt: skip

    sources: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def socket(self) -> Path:
        """The path of the CRI socket."""
        return Path(self.listen.removeprefix(kinds.UNIX))

    def of(self, component: Component) -> dict[str, Any]:
        """Return a component's settings, by the names of its arguments."""
        return {key.attribute: getattr(self, key.name) for key in KEYS.values() if key.component is component}

    def values(self) -> dict[str, Any]:
        """Return all keys with their values in the types of TOML and JSON."""
        return {key: plain(getattr(self, key)) for key in KEYS}

    def to_toml(self) -> str:
        """Return the configuration as a TOML file; comments name the source of each value."""
        return "".join(
            f"{key} = {_literal(value)}  # {self.sources.get(key, 'default')}\n" for key, value in self.values().items()
        )


KEYS: Final = keys_of(Configuration)


def plain(value: object) -> object:
    """Convert a key's value to the types of TOML and JSON."""
    if isinstance(value, Mapping):
        return {name: asdict(one) if isinstance(one, PluginPolicy) else _handler(one) for name, one in value.items()}
    if isinstance(value, tuple):
        return [str(item) for item in value]
    if value is None:
        return ""
    return value if isinstance(value, bool | int) else str(value)


def _handler(handler: Handler) -> dict[str, object]:
    members: dict[str, object] = {"path": str(handler.path)}
    if handler.kind != OCI:
        members["kind"] = handler.kind
    if handler.options:
        members["options"] = list(handler.options)
    return members


def _literal(value: object) -> str:
    if isinstance(value, dict):
        inner = ", ".join(f"{json.dumps(key)} = {_literal(one)}" for key, one in value.items())
        return f"{{{inner}}}"
    # JSON's strings, arrays and booleans are valid TOML as long as no character is written as a surrogate pair.
    return json.dumps(value, ensure_ascii=False)
