"""crispd's configuration: the one table of its keys.

Flags, the reference, the man page and deploy/crisp.toml are made of it, and so is what each component is told.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cri.daemon import kinds, logfmt
from cri.daemon.keys import Component, Flag, keys_of, setting
from image.settings import ImageSettings

_IMAGES = ImageSettings()  # whose defaults are ours

_SOCKETS = "Sockets and directories"
_NETWORK = "Network"
_DEVICES = "Devices"
_PLUGINS = "Plugins"
_PULLS = "Images"
_RUNTIMES = "Other runtimes"
_CGROUPS = "Cgroups"
_STREAMING = "Streaming"
_WATCHING = "Watching"


@dataclass(frozen=True, slots=True)
class Configuration:
    """What is in force. `sources` tells, for each key that is not a default, which flag or file set it."""

    listen: str = setting(
        _SOCKETS, kinds.LISTEN, "unix:///run/crisp/crisp.sock",
        "Socket of CRI, and of crisp. Only root may open it.",
        flag=Flag("ADDRESS", "socket of CRI"),
    )  # fmt: skip
    root: Path = setting(
        _SOCKETS, kinds.PATH, Path("/var/lib/crisp"),
        "Images, and what of pods and containers outlives a reboot.",
        flag=Flag("DIR", "data that outlives a reboot"), to=Component.NODE,
    )  # fmt: skip
    state: Path = setting(
        _SOCKETS, kinds.PATH, Path("/run/crisp"),
        "Sockets, bundles and exit statuses: what must not outlive a reboot. Best on a tmpfs.",
        flag=Flag("DIR", "state that does not"), to=Component.NODE,
    )  # fmt: skip

    cni_conf_dir: Path = setting(
        _NETWORK, kinds.PATH, Path("/etc/cni/net.d"),
        "CNI: the first configuration by name in the directory is the pods' network. The directory is watched.",
        flag=Flag("DIR", "CNI configurations"), to=Component.NODE,
    )  # fmt: skip
    cni_bin_dirs: tuple[Path, ...] = setting(
        _NETWORK, kinds.PATHS, (Path("/opt/cni/bin"), Path("/usr/lib/cni")),
        "Where CNI plugins are looked for, in this order.",
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
        "Specs of CDI devices (JSON and YAML); those of later directories win.",
        to=Component.NODE,
    )  # fmt: skip
    checkpoint_images: bool = setting(
        _DEVICES, kinds.BOOLEAN, False,
        "Make containers from images that hold a checkpoint. Their processes have the rights that the checkpoint gives "
        "them, whatever the pod asks for and admission allows.",
        to=Component.NODE,
    )  # fmt: skip
    hooks_dirs: tuple[Path, ...] = setting(
        _DEVICES, kinds.PATHS, (Path("/usr/share/containers/oci/hooks.d"), Path("/etc/containers/oci/hooks.d")),
        "OCI hooks of containers, oci-hooks(5); files of later directories win.",
        to=Component.NODE,
    )  # fmt: skip

    nri_socket: Path | None = setting(
        _PLUGINS, kinds.PATH_IF_ANY, Path("/var/run/nri/nri.sock"),  # where plugins look
        "Socket for NRI plugins. Root can open it, and so change any container. Where another runtime serves the "
        "default one, crispd goes on without. Empty: there is none.",
        flag=Flag("FILE", "serve NRI plugins at this socket; off when empty"),
    )  # fmt: skip

    registries_conf: Path = setting(
        _PULLS, kinds.PATH, Path("/etc/containers/registries.conf"),
        "Mirrors, insecure and blocked registries: containers-registries.conf(5).",
        flag=Flag("FILE", "containers-registries.conf(5)"), to=Component.NODE,
    )  # fmt: skip
    auth_file: Path | None = setting(
        _PULLS, kinds.PATH_IF_ANY, _IMAGES.auth_file,
        "Logins to registries: containers-auth.json(5) or docker's config.json, credential helpers included. Empty: "
        "what podman, skopeo and docker keep for root. Kubelet's own credentials for a pull win over these.",
        flag=Flag("FILE", "logins to registries, containers-auth.json(5)"), to=Component.IMAGES,
    )  # fmt: skip
    registry_certs_dirs: tuple[Path, ...] = setting(
        _PULLS, kinds.PATHS, _IMAGES.certs_dirs,
        "Authorities and client certificates of registries, <dir>/<host[:port]>/*.crt, *.cert, *.key: "
        "containers-certs.d(5).",
        to=Component.IMAGES, attribute="certs_dirs",
    )  # fmt: skip
    signature_policy: Path | None = setting(
        _PULLS, kinds.PATH_IF_ANY, _IMAGES.signature_policy,
        "Whose images may be pulled and run: containers-policy.json(5). Empty: /etc/containers/policy.json if there is "
        "one, else every image.",
        flag=Flag("FILE", "containers-policy.json(5) (/etc/containers/policy.json, if any)"), to=Component.IMAGES,
    )  # fmt: skip
    registries_d: Path = setting(
        _PULLS, kinds.PATH, _IMAGES.registries_d,
        "Where signatures lie: containers-registries.d(5).",
        to=Component.IMAGES,
    )  # fmt: skip
    pull_progress_timeout: int = setting(
        _PULLS, kinds.whole(0, 86_400), int(_IMAGES.progress_timeout),
        "How long a registry may send nothing before a pull fails; 0 for no limit.",
        unit="seconds", to=Component.IMAGES, attribute="progress_timeout",
    )  # fmt: skip
    parallel_downloads: int = setting(
        _PULLS, kinds.whole(1, 64), _IMAGES.parallel_downloads,
        "Layers of one image fetched and unpacked at a time.",
        to=Component.IMAGES,
    )  # fmt: skip
    keep_blobs: bool = setting(
        _PULLS, kinds.BOOLEAN, _IMAGES.keep_blobs,
        "Keep layers also as they came (compressed), so that `crisp image export` can write them; takes that much more "
        "of the disk.",
        to=Component.IMAGES,
    )  # fmt: skip
    additional_image_stores: tuple[Path, ...] = setting(
        _PULLS, kinds.PATHS_IF_ANY, _IMAGES.additional_stores,
        "Image stores (`<root>/image` of another crisp) whose images are there too; read at the start, never written "
        "to.",
        to=Component.IMAGES, attribute="additional_stores",
    )  # fmt: skip
    layer_limit: int = setting(
        _PULLS, kinds.whole(0, 1 << 60), _IMAGES.layer_limit,
        "How much one layer may unpack to (64 GiB), so that no image fills the disk with what takes little to send; 0 "
        "for no limit.",
        unit="bytes", to=Component.IMAGES,
    )  # fmt: skip
    pause_image: str = setting(
        _PULLS, kinds.STRING, "",
        "Pods need no pause image. One named here is reported as pinned, so that kubelet's garbage collection leaves "
        "it alone.",
        flag=Flag("NAME", "image reported as pinned; pods need none"), to=Component.NODE,
    )  # fmt: skip

    runtime_handlers: Mapping[str, Path] = setting(
        _RUNTIMES, kinds.RUNTIMES, {},
        'Other OCI runtimes, each a table of its own: after `[runtime_handlers.runc]` comes `path = "/usr/sbin/runc"`. '
        "A RuntimeClass names them by its handler.",
        to=Component.NODE,
    )  # fmt: skip

    cgroup_driver: str = setting(
        _CGROUPS, kinds.one_of("cgroupfs", "systemd"), "cgroupfs",
        "Who makes cgroups. Has to be kubelet's; kubelet 1.34 and later asks crisp.",
        flag=Flag("", "who makes cgroups"), to=Component.NODE,
    )  # fmt: skip

    stream_addr: str = setting(
        _STREAMING, kinds.ADDRESS, "127.0.0.1:0",
        "Where the streaming server (exec, attach, port-forward) listens. Port 0 takes a free one.",
        flag=Flag("HOST:PORT", "address of the streaming server"), to=Component.STREAMING, attribute="address",
    )  # fmt: skip
    stream_tls_cert: Path | None = setting(
        _STREAMING, kinds.PATH_IF_ANY, None,
        "Certificate (PEM) for serving streams over TLS. Goes with stream_tls_key.",
        flag=Flag("FILE", "serve streaming over TLS with this certificate (PEM)"),
        to=Component.STREAMING, attribute="cert",
    )  # fmt: skip
    stream_tls_key: Path | None = setting(
        _STREAMING, kinds.PATH_IF_ANY, None,
        "Key (PEM) of stream_tls_cert.",
        flag=Flag("FILE", "and its key"), to=Component.STREAMING, attribute="key",
    )  # fmt: skip
    stream_tls_ca: Path | None = setting(
        _STREAMING, kinds.PATH_IF_ANY, None,
        "Certificate of an authority (PEM): clients must have a certificate that it signed.",
        flag=Flag("FILE", "let clients in that have a certificate of this authority, only"),
        to=Component.STREAMING, attribute="ca",
    )  # fmt: skip

    log_level: str = setting(
        _WATCHING, kinds.one_of(*logfmt.LEVELS), "info",
        "What is logged, to standard error.",
        flag=Flag("", "what is logged, to standard error"), reloaded=True,
    )  # fmt: skip
    metrics_addr: str = setting(
        _WATCHING, kinds.ADDRESS_IF_ANY, "",
        "Prometheus metrics of crispd itself, at http://ADDRESS/metrics such as 127.0.0.1:9091; empty is off. Anybody "
        "who can connect can read them: give a loopback address.",
        flag=Flag("HOST:PORT", "address of Prometheus metrics; off when not given"),
    )  # fmt: skip
    trace_start: bool = setting(
        _WATCHING, kinds.BOOLEAN, False,
        "Log each step of a pod's and container's start, with its duration.",
        flag=Flag("", "log each step of a start and its duration"), reloaded=True, to=Component.NODE,
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
    tracing_endpoint: str = setting(
        _WATCHING, kinds.ADDRESS_IF_ANY, "",
        "OpenTelemetry collector that traces are sent to, by OTLP over gRPC without TLS, such as 127.0.0.1:4317; empty "
        "is off. Needs the Python packages of the extra `tracing`.",
        flag=Flag("HOST:PORT", "OpenTelemetry collector (OTLP over gRPC); off when not given"),
        to=Component.TRACING, attribute="endpoint",
    )  # fmt: skip
    tracing_sampling_rate_per_million: int = setting(
        _WATCHING, kinds.whole(0, 1_000_000), 0,
        "How many of a million calls begin a trace. One whose caller has begun a trace, as kubelet does with its own "
        "`tracing`, goes by the caller's decision.",
        flag=Flag("N", "how many calls begin a trace"),
        to=Component.TRACING, attribute="sampling_rate_per_million",
    )  # fmt: skip

    sources: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def socket(self) -> Path:
        """The path of the CRI socket."""
        return Path(self.listen.removeprefix(kinds.UNIX))

    def of(self, component: Component) -> dict[str, Any]:
        """What a component is made of, by the names of its arguments."""
        return {key.attribute: getattr(self, key.name) for key in KEYS.values() if key.component is component}

    def values(self) -> dict[str, Any]:
        """The keys and their values as TOML or JSON take them."""
        return {key: plain(getattr(self, key)) for key in KEYS}

    def to_toml(self) -> str:
        """The configuration as a file that could be read back; a comment tells where each value is from."""
        return "".join(
            f"{key} = {_literal(value)}  # {self.sources.get(key, 'default')}\n" for key, value in self.values().items()
        )


KEYS: Final = keys_of(Configuration)


def plain(value: object) -> object:
    """A key's value as TOML or JSON take it."""
    if isinstance(value, Mapping):
        return {name: {"path": str(path)} for name, path in value.items()}
    if isinstance(value, tuple):
        return [str(item) for item in value]
    if value is None:
        return ""
    return value if isinstance(value, bool | int) else str(value)


def _literal(value: object) -> str:
    if isinstance(value, dict):
        inner = ", ".join(f"{json.dumps(key)} = {_literal(one)}" for key, one in value.items())
        return f"{{{inner}}}"
    # JSON's strings, arrays and booleans are TOML's, as long as nothing is written as a pair of surrogates.
    return json.dumps(value, ensure_ascii=False)
